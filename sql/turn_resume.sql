-- Make a disconnected reply run again, for a reader who has come back.
-- takes:   org_id, reply_id, server_id (that opened it and has its stream)
-- returns: a row or none (id); none if its time is over, or a newer question has ended it
-- repeat:  yes
--
-- Violates the index messages_running if another reply of the chat runs.
update messages
set status = 'streaming', finished_at = null, resumable_until = null
where org_id = %(org_id)s
    and id = %(reply_id)s
    and server_id = %(server_id)s
    and (status = 'streaming' or (status = 'disconnected' and resumable_until > clock_timestamp()))
returning id
