-- See which replies still run. What another server has begun to close is waited for: no other closes them after this, as
-- long as this server holds its lock (turn_interrupt looks at that once it has locked the rows).
-- takes:   server_id (that opened them), org_ids, reply_ids (of each)
-- returns: rows (id), one for each that runs
-- repeat:  yes
select messages.id
from unnest(%(org_ids)s::text[]::uuid[], %(reply_ids)s::text[]::uuid[]) as said (org_id, id)
join messages
    on messages.org_id = said.org_id and messages.id = said.id
where messages.server_id = %(server_id)s::bigint
    -- It is streaming. By its status, the planner might look for it among all that are.
    and messages.finished_at is null
-- In one order, as turn_interrupt.
order by messages.org_id, messages.id
for share of messages
