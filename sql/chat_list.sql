-- List a user's chats, newest first, a page at a time.
-- takes:   org_id, user_id, before (a chat's id: only older ones; null: from the newest), page_size
-- returns: rows (chat_id, title, created_at, before_known), one for each chat;
--          one row with a null chat_id if there are none; no row if the user is not in the org
-- repeat:  yes
select chat.id as chat_id, chat.title, chat.created_at, %(before)s::uuid is null or edge.id is not null as before_known
from users
left join chats as edge
    on edge.org_id = users.org_id and edge.id = %(before)s::uuid and edge.user_id = users.id
left join lateral (
    select id, title, created_at
    from chats
    where chats.org_id = %(org_id)s
        and chats.user_id = users.id
        -- With no edge the bound is later than any chat.
        and (chats.created_at, chats.id)
            < (coalesce(edge.created_at, 'infinity'), coalesce(edge.id, 'ffffffff-ffff-ffff-ffff-ffffffffffff'))
    order by chats.created_at desc, chats.id desc
    limit %(page_size)s
) as chat on true
where users.org_id = %(org_id)s and users.id = %(user_id)s
order by chat.created_at desc, chat.id desc
