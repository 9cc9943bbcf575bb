-- Close the running replies of servers that are no more, and tell which servers seem to be: nobody holds their lock.
-- takes:   given_up (numbers of the servers whose replies are to be closed if they still seem to be gone)
-- returns: one row for each server with running replies and without its lock (server_id, closed: how many were)
--
-- One that lives takes its lock again within a moment of losing its connection, or of a restart of PostgreSQL.
with missing as (
    select distinct server_id
    from messages
    where status = 'streaming'
        and server_id not in (
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
    set status = 'interrupted', finished_at = clock_timestamp()
    from missing
    where messages.status = 'streaming'
        and messages.server_id = missing.server_id
        and missing.server_id = any(%(given_up)s::bigint[])
    returning messages.server_id
)
select missing.server_id, (select count(*) from closed where closed.server_id = missing.server_id) as closed
from missing
