-- Close the replies of servers that are no more, and tell which servers seem to be: nobody holds their lock, or its
-- holder has said nothing for a while.
-- takes:   given_up (numbers of the servers whose replies are to be closed if they still seem to be gone),
--          silence_s (seconds; a server takes its lock again each second)
-- returns: rows, one for each server with running replies that seems to be gone (server_id, closed: how many were)
-- repeat:  yes
--
-- A server that lives takes its lock again within a moment of losing its connection, or of a restart of PostgreSQL. One
-- that is frozen keeps both. The silence is measured by PostgreSQL's clock alone; a step of it is over by the next look.
with missing as (
    select org_id, id, server_id
    from messages
    where status = 'streaming'
        and server_id not in (
            -- A lock on one 64-bit number is shown as its two halves (PostgreSQL manual, pg_locks).
            select classid::bigint << 32 | objid::bigint
            from pg_locks
            where locktype = 'advisory'
                and objsubid = 1
                and database = (select oid from pg_database where datname = current_database())
                and pid not in (
                    select pid
                    from pg_stat_activity
                    -- Null, and so not silent, of those that are not to be seen by this role.
                    where state_change < clock_timestamp() - make_interval(secs => %(silence_s)s::float8)
                )
        )
),
-- In one order, as turn_checkpoint.
given_up as (
    select messages.org_id, messages.id
    from missing
    join messages
        on messages.org_id = missing.org_id and messages.id = missing.id
    where missing.server_id = any(%(given_up)s::bigint[]) and messages.finished_at is null
    order by messages.org_id, messages.id
    for update of messages
),
closed as (
    update messages
    set status = 'interrupted', finished_at = clock_timestamp()
    from given_up
    where messages.org_id = given_up.org_id and messages.id = given_up.id
    returning messages.server_id
)
select missing.server_id, (select count(*) from closed where closed.server_id = missing.server_id) as closed
from missing
group by missing.server_id
