-- Read on in a chat, from its beginning to its end, a page at a time, with all that its user may know of each message.
-- takes:   org_id, user_id, chat_id, after (a message's id: only later ones; null: from the beginning), page_size,
--          page_bytes (of text in a page, as UTF-8; one message may be more)
-- returns: rows, one for each message (message_id, role, content, status, reason, input_tokens, output_tokens,
--          is_estimated, created_at, finished_at); one row with a null message_id at the chat's end;
--          no row if the caller has no such chat, or it no longer has that message
-- repeat:  yes
select
    message.id as message_id,
    message.role,
    message.content,
    message.status,
    message.reason,
    message.input_tokens,
    message.output_tokens,
    message.is_estimated,
    message.created_at,
    message.finished_at
from chats
left join messages as edge
    on edge.org_id = %(org_id)s and edge.id = %(after)s::uuid and edge.chat_id = chats.id
left join lateral (
    select
        id, role, content, status, reason, input_tokens, output_tokens, is_estimated, created_at, finished_at, position,
        sum(octet_length(content)) over (order by position) as bytes,
        row_number() over (order by position) as number
    from (
        select
            id, position, role, content, status, reason, input_tokens, output_tokens, is_estimated,
            created_at, finished_at
        from messages
        where messages.org_id = %(org_id)s
            and messages.chat_id = chats.id
            and messages.position > coalesce(edge.position, 0)
        order by messages.position
        limit %(page_size)s
    ) as next_ones
) as message on message.bytes <= %(page_bytes)s or message.number = 1
where chats.org_id = %(org_id)s
    and chats.id = %(chat_id)s
    and chats.user_id = %(user_id)s
    and (%(after)s::uuid is null or edge.id is not null)
order by message.position
