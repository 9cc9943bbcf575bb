-- Close a reply once its stream has ended, however it ended.
-- takes:   org_id, reply_id, server_id (that opened it), content (null: what it has),
--          status (complete|disconnected|failed|interrupted|stopped)
-- returns: a row or none (finished_at); none if this server has no such reply running: what has ended stays as it is
-- repeat:  yes
update messages
set content = coalesce(%(content)s, content), status = %(status)s, finished_at = clock_timestamp()
where org_id = %(org_id)s
    and id = %(reply_id)s
    and server_id = %(server_id)s
    -- It is streaming. By its status, the planner might look for it among all that are.
    and finished_at is null
returning finished_at
