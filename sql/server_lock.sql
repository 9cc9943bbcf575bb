-- Hold the lock that tells other servers that this one lives, for as long as the connection lasts.
-- takes:   server_id
-- returns: one row (locked)
select pg_try_advisory_lock(%(server_id)s) as locked
