-- Open a turn: check the caller, find or create the chat, store the question and an empty reply. All or nothing.
-- takes:   org_id, user_id, create_caller (whether a user who is not known is made, and their org),
--          chat_id (null: a new chat), title (of a new chat; never null), reply_id,
--          replaces (a question of the chat, or its reply: the new one takes the place of it and of all after it; null: of
--          none), last (what its asker takes for the last message of the chat; null: the reply to what is replaced),
--          content (of the question), server_id (whose lock this server holds), history_limit (messages),
--          key (of the turn, unique for the user; null: none), asked (SHA-256 of the question; null where key is),
--          max_tokens (of a reply), min_tokens (fewer are not worth a reply), system_bytes (of a system prompt),
--          input_price, output_price (of a token, in millionths of a budget's unit)
-- returns: a row (caller_known, chat_known, overtaken, gone_on, chat_id, created_at, history, running_id,
--          running_server_id, granted, short, budgets);
--          caller_known is false if the user is not in the org, chat_known if the caller has no such chat;
--          running_id is the reply that the chat has running, and running_server_id its server, null if none;
--          overtaken: another turn of the chat came first, and this statement could not see it: to be repeated;
--          gone_on: what is to be replaced is not there, or is more than its asker knows of;
--          chat_id is null if nothing is stored: in these cases, or because the key is taken;
--          granted is how many tokens the budgets leave for the reply, null where there are none;
--          short: some budget leaves too few (used: for what its window has used; reserved: for what runs), null: none;
--          budgets is a JSON array of {scope (org|user), period, units, left, resets_s (seconds until its window ends)},
--          null where there are none;
--          history is a JSON array of {role, content}, oldest first, of whole turns, without the question
-- repeat:  no
with caller as (
    select org_id, id
    from users
    where org_id = %(org_id)s and id = %(user_id)s
    -- Where the user is being deleted, wait and find none: else what is stored for them would break a foreign key.
    for key share
),
known as (
    select case
        when exists (select from caller) then true
        when %(create_caller)s::boolean then caller_created(%(org_id)s, %(user_id)s)
        else false
    end as caller_known
),
-- Who waits here for another turn is given the row as that turn has left it...
chat as (
    select chats.id, chats.message_count, chats.xmin as version
    from caller
    join chats
        -- Not user_id = caller.id: while few chats are known of, the planner would look for it among all of the org.
        on chats.org_id = %(org_id)s and chats.user_id is not distinct from caller.id and chats.id = %(chat_id)s::uuid
    for update of chats
),
-- ...but all else as it was when this statement began (READ COMMITTED). So the two are compared: by the transaction that
-- has written it, because a turn that takes the place of another leaves message_count as it was.
last_reply as (
    select messages.id, messages.status, messages.server_id, chats.xmin as version
    from caller
    join chats
        on chats.org_id = %(org_id)s and chats.user_id is not distinct from caller.id and chats.id = %(chat_id)s::uuid
    -- None, if it was deleted by hand.
    left join messages
        on messages.org_id = chats.org_id
        and messages.chat_id = chats.id
        and messages.position = chats.message_count
),
place as (
    select new_id() as chat_id, 0 as message_count
    from known
    where caller_known and %(chat_id)s::uuid is null
    union all
    select chat.id, kept.message_count
    from chat
    join last_reply
        on last_reply.version = chat.version
    cross join lateral (
        -- What is for those that replace is in functions: as parts of the statement it would cost every turn 0.02 ms.
        select case
            when %(replaces)s::uuid is null then chat.message_count
            else chat_kept(%(org_id)s, chat.id, %(replaces)s, %(last)s, last_reply.id, chat.message_count)
        end as message_count
    ) as kept
    where last_reply.status is distinct from 'streaming' or kept.message_count is null
),
quoted as (
    select
        chat_id,
        message_count,
        case
            when message_count is not null and exists (
                select from budgets
                where org_id = %(org_id)s
                    and owner_id = any(array['00000000-0000-0000-0000-000000000000', %(user_id)s]::uuid[])
            )
            then budget_quote(
                %(org_id)s,
                %(user_id)s,
                chat_id,
                -- Of the history.
                message_count - %(history_limit)s::integer / 2 * 2,
                %(system_bytes)s::integer + octet_length(%(content)s)
                    - case when %(replaces)s::uuid is null then 0
                        else chat_bytes(%(org_id)s, chat_id, message_count)
                    end,
                %(max_tokens)s,
                %(min_tokens)s,
                %(input_price)s,
                %(output_price)s
            )
        end as quote
    from place
),
keyed as (
    insert into turn_keys (org_id, user_id, key, asked, reply_id)
    select %(org_id)s, %(user_id)s, %(key)s, %(asked)s, %(reply_id)s::uuid
    from quoted
    where %(key)s::text is not null and message_count is not null and (quote).short is null
    on conflict (org_id, user_id, key) do update set reply_id = excluded.reply_id
    -- Of the turn whose place this one takes, because its provider was busy. See turn_by_key.
    where turn_keys.reply_id = %(replaces)s::uuid and turn_keys.asked = excluded.asked
    returning reply_id
),
admitted as (
    select
        chat_id,
        message_count,
        quote,
        -- Not now(): that is when this statement came, and the turn before may have come later, and been through.
        coalesce((quote).at, clock_timestamp()) as at
    from quoted
    where case
        when message_count is null or (quote).short is not null then false
        when %(key)s::text is not null and not exists (select from keyed) then false
        when %(replaces)s::uuid is not null then chat_shorten(%(org_id)s, chat_id, message_count)
        else true
    end
),
-- A new chat, or one that goes on: that one, this statement has locked.
counted as (
    insert into chats (org_id, id, user_id, title, message_count, updated_at)
    select %(org_id)s, chat_id, %(user_id)s, %(title)s, message_count + 2, at
    from admitted
    on conflict (org_id, id) do update set message_count = excluded.message_count, updated_at = excluded.updated_at
),
-- Both with one insert: for each, PostgreSQL reads all checks of the table anew, which takes 0.03 ms.
turn as (
    insert into messages (
        org_id, id, chat_id, position, role, content, status, created_at, finished_at, server_id, user_id, budgets, reserved
    )
    select
        %(org_id)s, message.id, chat_id, message_count + nth, role, content, status, at, finished_at, server_id, user_id,
        budgets, message.reserved
    from admitted
    cross join lateral (
        values
            (1, new_id(), 'user', %(content)s, 'complete', at, null::bigint, null::uuid, null::smallint, null::bigint),
            (
                2, %(reply_id)s::uuid, 'assistant', '', 'streaming', null, %(server_id)s::bigint, %(user_id)s::uuid,
                (quote).budgets,
                case when (quote).budgets is not null then budget_reserve(%(org_id)s, %(user_id)s, quote) end
            )
    ) as message (nth, id, role, content, status, finished_at, server_id, user_id, budgets, reserved)
)
select
    known.caller_known,
    %(chat_id)s::uuid is null or chat.id is not null as chat_known,
    chat.id is not null and chat.version is distinct from last_reply.version as overtaken,
    quoted.chat_id is not null and quoted.message_count is null as gone_on,
    admitted.chat_id,
    admitted.at as created_at,
    (
        select coalesce(json_agg(json_build_object('role', role, 'content', content) order by position), '[]')
        from messages
        where org_id = %(org_id)s
            and chat_id = %(chat_id)s::uuid
            -- An even number of them, so that the first one is a question. None, if nothing was stored.
            and position > admitted.message_count - %(history_limit)s::integer / 2 * 2
            -- What is replaced was there when this statement began.
            and position <= admitted.message_count
    ) as history,
    case when last_reply.status = 'streaming' then last_reply.id end as running_id,
    case when last_reply.status = 'streaming' then last_reply.server_id end as running_server_id,
    (quoted.quote).granted,
    (quoted.quote).short,
    (quoted.quote).state as budgets
from known
left join chat on true
left join last_reply on true
left join quoted on true
left join admitted on true
