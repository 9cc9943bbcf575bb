-- Find a user's chat.
-- takes:   org_id, user_id, chat_id
-- returns: a row or none (chat_id, title, created_at, updated_at); a null chat_id if the caller has no such chat;
--          none if the user is not in the org
-- repeat:  yes
select
    chats.id as chat_id,
    chats.title,
    chats.created_at,
    coalesce(chats.updated_at, chats.created_at) as updated_at
from users
left join chats
    on chats.org_id = %(org_id)s and chats.id = %(chat_id)s and chats.user_id = users.id
where users.org_id = %(org_id)s and users.id = %(user_id)s
