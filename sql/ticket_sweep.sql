-- Forget old tickets.
-- takes:   age_s (seconds)
-- returns: rows (hash), one for each
-- repeat:  yes
delete from tickets
where created_at < now() - make_interval(secs => %(age_s)s::float8)
returning hash
