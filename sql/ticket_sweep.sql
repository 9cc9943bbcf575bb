-- Forget old tickets.
-- takes:   age_s (seconds)
-- returns: one row for each (hash)
delete from tickets
where created_at < now() - make_interval(secs => %(age_s)s::float8)
returning hash
