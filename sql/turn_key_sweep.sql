-- Forget old idempotency keys, ten thousand at a time; their turns stay.
-- takes:   age_s (seconds)
-- returns: a row (forgotten: how many; as long as there are some, there may be more)
-- repeat:  yes
with old as (
    select tableoid, ctid
    from turn_keys
    where created_at < now() - make_interval(secs => %(age_s)s::float8)
    order by created_at
    limit 10000
    -- What another server forgets at this moment is not waited for.
    for update skip locked
),
forgotten as (
    delete from turn_keys
    using old
    -- A ctid is unique within a partition.
    where turn_keys.tableoid = old.tableoid and turn_keys.ctid = old.ctid
    returning true
)
select count(*) as forgotten from forgotten
