-- List a user's chats, the last one that was active first, a page at a time.
-- takes:   org_id, user_id, before_at, before_id (the updated_at and the id of a chat: only those that come after it in the
--          list; null: from the first), words (that titles are to hold, in capitals or not; null: all chats), page_size
-- returns: rows (chat_id, title, created_at, updated_at), one for each chat;
--          one row with a null chat_id if there are none; no row if the user is not in the org
-- repeat:  yes
select chat.id as chat_id, chat.title, chat.created_at, chat.updated_at
from users
left join lateral (
    select id, title, created_at, coalesce(updated_at, created_at) as updated_at
    from chats
    where chats.org_id = %(org_id)s
        and chats.user_id = users.id
        -- A place in time, so that a chat that has moved up since stands in the way of no other.
        and (coalesce(chats.updated_at, chats.created_at), chats.id) < (
            coalesce(%(before_at)s::timestamptz, 'infinity'),
            coalesce(%(before_id)s::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
        )
        -- Not like: it would take some characters for patterns.
        and (%(words)s::text is null or strpos(lower(chats.title), lower(%(words)s::text)) > 0)
    order by coalesce(chats.updated_at, chats.created_at) desc, chats.id desc
    limit %(page_size)s
) as chat on true
where users.org_id = %(org_id)s and users.id = %(user_id)s
order by chat.updated_at desc, chat.id desc
