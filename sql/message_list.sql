-- List a chat's messages, a page at a time from the end, oldest first within the page.
-- takes:   org_id, user_id, chat_id, before (a message's id: only earlier ones; null: from the end), page_size,
--          page_bytes (of text in a page, as UTF-8; one message may be more)
-- returns: rows, one for each message (chat_id, message_id, role, content, status, created_at, before_known, fits);
--          fits is false, and content null, of those that are too much for the page;
--          one row with a null message_id if there are none; a null chat_id if the caller has no such chat;
--          no row if the user is not in the org
-- repeat:  yes
select
    chats.id as chat_id,
    message.id as message_id,
    message.role,
    case when message.fits then message.content end as content,
    message.status,
    message.created_at,
    %(before)s::uuid is null or edge.id is not null as before_known,
    message.fits
from users
left join chats
    on chats.org_id = users.org_id and chats.id = %(chat_id)s and chats.user_id = users.id
left join messages as edge
    on edge.org_id = chats.org_id and edge.id = %(before)s::uuid and edge.chat_id = chats.id
left join lateral (
    select
        id, position, role, content, status, created_at,
        sum(octet_length(content)) over (order by position desc) <= %(page_bytes)s
            or row_number() over (order by position desc) = 1 as fits
    from (
        select id, position, role, content, status, created_at
        from messages
        where messages.org_id = %(org_id)s
            and messages.chat_id = chats.id
            -- With no edge the bound is later than any message.
            and messages.position < coalesce(edge.position, 2147483647)
        order by messages.position desc
        limit %(page_size)s
    ) as last_ones
) as message on true
where users.org_id = %(org_id)s and users.id = %(user_id)s
order by message.position
