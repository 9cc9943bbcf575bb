-- Take back a turn that nobody was told of: its question, its reply, its key, and its chat if it began one.
-- takes:   org_id, reply_id, server_id (that opened it)
-- returns: one row (chat_id); none if this server has no such running reply
with reply as (
    delete from messages
    where org_id = %(org_id)s and id = %(reply_id)s and server_id = %(server_id)s and status = 'streaming'
    returning org_id, chat_id, position
),
question as (
    delete from messages
    using reply
    where messages.org_id = reply.org_id
        and messages.chat_id = reply.chat_id
        and messages.position = reply.position - 1
),
keyed as (
    delete from turn_keys
    using reply, chats
    where chats.org_id = reply.org_id
        and chats.id = reply.chat_id
        and turn_keys.org_id = chats.org_id
        and turn_keys.user_id = chats.user_id
        and turn_keys.reply_id = %(reply_id)s
),
continued as (
    update chats
    set message_count = message_count - 2
    from reply
    where chats.org_id = reply.org_id and chats.id = reply.chat_id and reply.position > 2
),
started as (
    delete from chats
    using reply
    where chats.org_id = reply.org_id and chats.id = reply.chat_id and reply.position = 2
)
select chat_id from reply
