-- Hold the lock that tells other servers that this one lives, for as long as the connection lasts.
-- takes:   server_id
-- returns: a row (locked)
-- repeat:  yes
-- on:      the guard's connection
select pg_try_advisory_lock(%(server_id)s) as locked
