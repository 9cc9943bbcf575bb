-- Find the turn that a key was used for. Of one that failed because the provider was busy, the key is free again.
-- takes:   org_id, user_id, key, asked (SHA-256 of the question)
-- returns: a row or none (reply_id, same); none if the key is new, or free; same is false if it was used for another
--          question
-- repeat:  yes
with freed as (
    delete from turn_keys
    where org_id = %(org_id)s
        and user_id = %(user_id)s
        and key = %(key)s
        and asked = %(asked)s
        -- Not by a join: for that the planner might look through all messages of the org.
        and (select reason from messages where org_id = %(org_id)s and id = turn_keys.reply_id) = 'busy'
    returning true
)
select reply_id, asked = %(asked)s as same
from turn_keys
where org_id = %(org_id)s
    and user_id = %(user_id)s
    and key = %(key)s
    -- It sees the row all the same...
    and not exists (select from freed)
-- ...and not where another has freed it at this moment.
for key share
