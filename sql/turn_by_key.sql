-- Find the turn that a key was used for.
-- takes:   org_id, user_id, key, asked (SHA-256 of the question)
-- returns: a row or none (reply_id, same); none if the key is new; same is false if it was used for another question
-- repeat:  yes
select reply_id, asked = %(asked)s as same
from turn_keys
where org_id = %(org_id)s and user_id = %(user_id)s and key = %(key)s
