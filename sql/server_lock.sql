-- Hold the lock that tells other servers that this one lives, for as long as the connection lasts.
-- takes:   server_id
-- returns: a row (locked); false while a connection that the server has lost holds it still
-- repeat:  yes
-- on:      the guard's connection
select pg_try_advisory_lock(%(server_id)s) as locked
