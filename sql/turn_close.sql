-- Close a reply once its stream has ended, however it ended.
-- takes:   org_id, reply_id, server_id (that opened it), content,
--          status (complete|disconnected|failed|interrupted|stopped),
--          resume_window_s (seconds for which a disconnected reply can be resumed; null: it cannot)
-- returns: a row or none (finished_at); none if this server has no such open reply
-- repeat:  yes
--
-- A reply that others have taken for a dead server's is closed all the same: its server lives, and has the text. One
-- that is disconnected by now was resumed before, and an earlier, slow statement has come too late.
update messages
set content = %(content)s,
    status = %(status)s,
    finished_at = coalesce(finished_at, clock_timestamp()),
    resumable_until = clock_timestamp() + make_interval(secs => %(resume_window_s)s::float8)
where org_id = %(org_id)s
    and id = %(reply_id)s
    and server_id = %(server_id)s
    and (status in ('streaming', 'interrupted', 'disconnected') or (status = %(status)s and content = %(content)s))
returning finished_at
