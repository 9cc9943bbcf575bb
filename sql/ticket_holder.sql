-- Find whose a used ticket is.
-- takes:   hash, reply_id (of the turn that it has asked)
-- returns: a row or none (org_id, user_id); none if there is no such ticket
-- repeat:  yes
select org_id, user_id
from tickets
where hash = %(hash)s and reply_id = %(reply_id)s
