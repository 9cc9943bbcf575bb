-- Forget old idempotency keys; their turns stay.
-- takes:   age_s (seconds)
-- returns: rows (key), one for each
-- repeat:  yes
delete from turn_keys
where created_at < now() - make_interval(secs => %(age_s)s::float8)
returning key
