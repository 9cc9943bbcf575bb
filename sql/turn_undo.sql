-- Take back a turn that nobody was told of: its question, its reply, its key, and its chat if it began one.
-- takes:   org_id, reply_id, server_id (that opened it)
-- returns: a row or none (chat_id); none if this server has no such reply running
-- repeat:  yes
with reply as (
    select messages.org_id, messages.id, messages.chat_id, messages.position, chats.user_id
    from messages
    join chats
        on chats.org_id = messages.org_id and chats.id = messages.chat_id
    where messages.org_id = %(org_id)s
        and messages.id = %(reply_id)s
        and messages.server_id = %(server_id)s
        and messages.status = 'streaming'
    for update
),
turn as (
    delete from messages
    using reply
    where messages.org_id = reply.org_id
        and messages.chat_id = reply.chat_id
        and messages.position in (reply.position - 1, reply.position)
),
keyed as (
    delete from turn_keys
    using reply
    where turn_keys.org_id = reply.org_id
        and turn_keys.user_id = reply.user_id
        and turn_keys.reply_id = reply.id
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
