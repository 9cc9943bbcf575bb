-- Close a reply once its stream has ended, however it ended. May be repeated.
-- takes:   org_id, reply_id, content, status (complete|disconnected|failed|interrupted)
-- returns: one row (finished_at); none if the reply is not this org's or was closed otherwise before
update messages
set content = %(content)s, status = %(status)s, finished_at = coalesce(finished_at, clock_timestamp())
where org_id = %(org_id)s
    and id = %(reply_id)s
    and (status = 'streaming' or (status = %(status)s and content = %(content)s))
returning finished_at
