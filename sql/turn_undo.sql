-- Take back a turn that nobody was told of: its question, its reply, its key, and its chat if it began one.
-- takes:   org_id, reply_id, server_id (that opened it)
-- returns: a row or none (chat_id); none if this server has no such reply running
-- repeat:  yes
with reply as (
    select chat_id, position
    from messages
    where org_id = %(org_id)s
        and id = %(reply_id)s
        and server_id = %(server_id)s
        -- It is streaming. By its status, the planner might look for it among all that are.
        and finished_at is null
    for update
),
-- And with the reply its key (on delete cascade), and what was set aside for it (messages_give_back).
turn as (
    delete from messages
    where org_id = %(org_id)s
        and chat_id = (select chat_id from reply)
        and position in ((select position - 1 from reply), (select position from reply))
),
continued as (
    update chats
    set message_count = message_count - 2
    where org_id = %(org_id)s and id = (select chat_id from reply where position > 2)
),
started as (
    delete from chats
    where org_id = %(org_id)s and id = (select chat_id from reply where position = 2)
)
select chat_id from reply
