-- Close a reply once its stream has ended, however it ended. May be repeated.
-- takes:   org_id, reply_id, server_id (that opened it), content,
--          status (complete|disconnected|failed|interrupted)
-- returns: one row (finished_at); none if this server has no such open reply
--
-- A reply that others have taken for a dead server's is closed all the same: its server lives, and has the text.
update messages
set content = %(content)s, status = %(status)s, finished_at = coalesce(finished_at, clock_timestamp())
where org_id = %(org_id)s
    and id = %(reply_id)s
    and server_id = %(server_id)s
    and (status in ('streaming', 'interrupted') or (status = %(status)s and content = %(content)s))
returning finished_at
