-- Close the replies of servers that are no more, and tell which servers seem to be: nobody holds their lock.
-- takes:   given_up (numbers of the servers whose replies are to be closed if they still seem to be gone)
-- returns: rows (server_id, closed: how many were), one for each server with open replies and without its lock
-- repeat:  yes
--
-- Open are those that run, and those that can be resumed: they stay disconnected, and can not be any more.
-- A server that lives takes its lock again within a moment of losing its connection, or of a restart of PostgreSQL.
with open as (
    select org_id, id, server_id from messages where status = 'streaming'
    union all
    select org_id, id, server_id from messages where resumable_until > now()
),
missing as (
    select org_id, id, server_id
    from open
    where server_id not in (
        -- A lock on one 64-bit number is shown as its two halves (PostgreSQL manual, pg_locks).
        select classid::bigint << 32 | objid::bigint
        from pg_locks
        where locktype = 'advisory'
            and objsubid = 1
            and database = (select oid from pg_database where datname = current_database())
    )
),
closed as (
    update messages
    set status = case messages.status when 'streaming' then 'interrupted' else messages.status end,
        finished_at = coalesce(messages.finished_at, clock_timestamp()),
        resumable_until = null
    from missing
    where messages.org_id = missing.org_id
        and messages.id = missing.id
        and missing.server_id = any(%(given_up)s::bigint[])
        and (messages.status = 'streaming' or messages.resumable_until is not null)
    returning messages.server_id
)
select missing.server_id, (select count(*) from closed where closed.server_id = missing.server_id) as closed
from missing
group by missing.server_id
