-- Find the turn that a key was used for. Of one that failed because the provider was busy, the key is free again.
-- takes:   org_id, user_id, key, asked (SHA-256 of the question), replaces (of the question, as in turn_open)
-- returns: a row or none (reply_id, same, to_replace); none if the key is new, or free; same is false if it was used for
--          another question; to_replace: it is free to whom replaces that reply, as what the question is to replace is gone
-- repeat:  yes
with freed as (
    delete from turn_keys
    where org_id = %(org_id)s
        and user_id = %(user_id)s
        and key = %(key)s
        and asked = %(asked)s
        and %(replaces)s::uuid is null
        -- Not by a join: for that the planner might look through all messages of the org.
        and (select reason from messages where org_id = %(org_id)s and id = turn_keys.reply_id) = 'busy'
    returning true
)
select
    reply_id,
    asked = %(asked)s as same,
    %(replaces)s::uuid is not null
        and (select reason from messages where org_id = %(org_id)s and id = turn_keys.reply_id) is not distinct from 'busy'
        as to_replace
from turn_keys
where org_id = %(org_id)s
    and user_id = %(user_id)s
    and key = %(key)s
    -- It sees the row all the same...
    and not exists (select from freed)
-- ...and not where another has freed it at this moment.
for key share
