-- Hold the lock that tells other servers that this one lives, for as long as the connection lasts.
-- takes:   server_id
-- returns: a row (locked)
-- repeat:  yes
-- on:      the guard's connection
select case
    when pg_try_advisory_lock(%(server_id)s) then true
    -- Another connection has it, which this server has lost, and PostgreSQL takes for open: a router has forgotten it, say.
    -- It is silent, so that others would give the server up. It is ended; within a second, or the next time.
    when (
        select bool_and(pg_terminate_backend(pid, 1000))
        from pg_locks
        where locktype = 'advisory'
            and objsubid = 1
            -- As in living_servers.
            and classid::bigint << 32 | objid::bigint = %(server_id)s
            and database = (select oid from pg_database where datname = current_database())
    ) then pg_try_advisory_lock(%(server_id)s)
    else false
end as locked
