-- Open a turn: check the caller, find or create the chat, store the question and an empty reply. All or nothing.
-- takes:   org_id, user_id, chat_id (null: a new chat), new_chat_id, title (of a new chat),
--          question_id, reply_id, content (of the question), server_id (whose lock this server holds),
--          history_limit (messages)
-- returns: one row (caller_known, chat_id, created_at, history);
--          caller_known is false if the user is not in the org; chat_id is null if the caller has no such chat
--          (nothing is stored in either case); history is a JSON array of {role, content}, oldest first,
--          without the question and without replies that have no text
with caller as (
    select org_id, id
    from users
    where org_id = %(org_id)s and id = %(user_id)s
),
started as (
    insert into chats (org_id, id, user_id, title, message_count)
    select org_id, %(new_chat_id)s::uuid, id, %(title)s, 2
    from caller
    where %(chat_id)s::uuid is null
    returning id, message_count
),
continued as (
    update chats
    set message_count = message_count + 2
    from caller
    where chats.org_id = caller.org_id and chats.user_id = caller.id and chats.id = %(chat_id)s::uuid
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
    reply.chat_id,
    reply.created_at,
    (
        select coalesce(json_agg(json_build_object('role', role, 'content', content) order by position), '[]')
        from history
        where reply.chat_id is not null
    ) as history
from (select) as one_row
left join reply on true
