-- Close the replies of servers that are no more: nobody holds their lock.
-- takes:   nothing
-- returns: one row for each reply closed (id)
update messages
set status = 'interrupted', finished_at = clock_timestamp()
where status = 'streaming'
    and server_id not in (
        -- A lock on one 64-bit number is shown as its two halves (PostgreSQL manual, pg_locks).
        select classid::bigint << 32 | objid::bigint
        from pg_locks
        where locktype = 'advisory'
            and objsubid = 1
            and database = (select oid from pg_database where datname = current_database())
    )
returning id
