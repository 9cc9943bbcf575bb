-- Close the replies that a server which is no more left open. Only for a start, before anything is served.
-- takes:   nothing
-- returns: one row for each reply closed (id)
update messages
set status = 'interrupted', finished_at = clock_timestamp()
where status = 'streaming'
returning id
