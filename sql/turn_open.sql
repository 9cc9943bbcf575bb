-- Open a turn: check the caller, find or create the chat, store the question and an empty reply. All or nothing.
-- takes:   org_id, user_id, chat_id (null: a new chat), new_chat_id, title (of a new chat),
--          question_id, reply_id, content (of the question), server_id (whose lock this server holds),
--          history_limit (messages), key (of the turn, unique for the user; null: none), asked (SHA-256 of the question)
-- returns: a row (caller_known, chat_known, chat_id, created_at, history, running_id);
--          caller_known is false if the user is not in the org, chat_known if the caller has no such chat;
--          running_id is the reply that the chat has running, null if none; chat_id is null if nothing is stored:
--          in these cases, or because the key is taken;
--          history is a JSON array of {role, content}, oldest first, without the question and without replies that
--          have no text
-- repeat:  no
--
-- Of two that open a turn in one chat at once, one violates the index messages_running, and nothing of it is stored.
with caller as (
    select org_id, id
    from users
    where org_id = %(org_id)s and id = %(user_id)s
),
last_reply as (
    select messages.id, messages.status
    from caller
    join chats
        on chats.org_id = caller.org_id and chats.user_id = caller.id and chats.id = %(chat_id)s::uuid
    join messages
        on messages.org_id = chats.org_id
        and messages.chat_id = chats.id
        and messages.position = chats.message_count
),
keyed as (
    insert into turn_keys (org_id, user_id, key, asked, reply_id)
    select org_id, id, %(key)s, %(asked)s, %(reply_id)s::uuid
    from caller
    where %(key)s::text is not null
        and (%(chat_id)s::uuid is null or exists (select from last_reply where status <> 'streaming'))
    on conflict do nothing
    returning reply_id
),
admitted as (
    select org_id, id
    from caller
    where %(key)s::text is null or exists (select from keyed)
),
superseded as (
    -- Nobody reads it, so the new question ends it.
    update messages
    set resumable_until = null
    from admitted, last_reply
    where messages.org_id = admitted.org_id
        and messages.id = last_reply.id
        and messages.status = 'disconnected'
        and messages.resumable_until is not null
    returning messages.id
),
started as (
    insert into chats (org_id, id, user_id, title, message_count)
    select org_id, %(new_chat_id)s::uuid, id, %(title)s, 2
    from admitted
    where %(chat_id)s::uuid is null
    returning id, message_count
),
continued as (
    update chats
    set message_count = message_count + 2
    from admitted
    where chats.org_id = admitted.org_id
        and chats.user_id = admitted.id
        and chats.id = %(chat_id)s::uuid
        and exists (select from last_reply where status <> 'streaming')
        -- Before the new reply is inserted: turn_resume, too, locks the old one first.
        and (select count(*) from superseded) >= 0
    returning chats.id, chats.message_count
),
chat as (
    select id, message_count from started
    union all
    select id, message_count from continued
),
question as (
    insert into messages (org_id, id, chat_id, position, role, content, status, finished_at)
    select %(org_id)s, %(question_id)s::uuid, id, message_count - 1, 'user', %(content)s, 'complete', now()
    from chat
),
reply as (
    insert into messages (org_id, id, chat_id, position, role, content, status, server_id)
    select %(org_id)s, %(reply_id)s::uuid, id, message_count, 'assistant', '', 'streaming', %(server_id)s::bigint
    from chat
    returning chat_id, created_at
),
history as (
    select position, role, content
    from messages
    where org_id = %(org_id)s and chat_id = %(chat_id)s::uuid and content <> ''
    order by position desc
    limit %(history_limit)s
)
select
    exists (select from caller) as caller_known,
    %(chat_id)s::uuid is null or exists (select from last_reply) as chat_known,
    reply.chat_id,
    reply.created_at,
    (
        select coalesce(json_agg(json_build_object('role', role, 'content', content) order by position), '[]')
        from history
        where reply.chat_id is not null
    ) as history,
    (select id from last_reply where status = 'streaming') as running_id
from (select) as one_row
left join reply on true
