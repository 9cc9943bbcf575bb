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
        from server_locks()
        where server_id = %(server_id)s::bigint
    ) then pg_try_advisory_lock(%(server_id)s)
    else false
end as locked
