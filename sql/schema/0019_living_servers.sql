-- The servers whose lock is held, by connections that have said something within so many seconds: for turn_interrupt, which
-- looks twice.
create function living_servers(silence_s double precision) returns setof bigint language sql volatile as $$
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
            where state_change < clock_timestamp() - make_interval(secs => silence_s)
        )
$$;
