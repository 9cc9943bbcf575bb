-- Forget old idempotency keys; their turns stay.
-- takes:   age_s (seconds)
-- returns: one row for each (key)
delete from turn_keys
where created_at < now() - make_interval(secs => %(age_s)s::float8)
returning key
