-- The locks by which servers show that they live, and the connections that hold them: for server_lock, which takes one from a
-- connection that was lost.
create function server_locks() returns table (server_id bigint, pid integer) language sql volatile as $$
    -- A lock on one 64-bit number is shown as its two halves (PostgreSQL manual, pg_locks).
    select classid::bigint << 32 | objid::bigint, pid
    from pg_locks
    where locktype = 'advisory'
        and objsubid = 1
        and database = (select oid from pg_database where datname = current_database())
$$;

-- The servers whose lock is held, by connections that have said something within so many seconds: for turn_interrupt, which
-- looks twice.
create function living_servers(silence_s double precision) returns setof bigint language sql volatile as $$
    select server_id
    from server_locks()
    where pid not in (
        select pid
        from pg_stat_activity
        -- Null, and so not silent, of those that are not to be seen by this role.
        where state_change < clock_timestamp() - make_interval(secs => silence_s)
    )
$$;
