-- Hold the lock that tells other servers that this one lives, for as long as the connection lasts; tell the time.
-- takes:   server_id
-- returns: a row (locked, now_s: seconds since 1970)
-- repeat:  yes
-- on:      the guard's connection
select
    pg_try_advisory_lock(%(server_id)s) as locked,
    extract(epoch from clock_timestamp())::float8 as now_s
