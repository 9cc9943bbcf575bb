-- Give a chat another title. It counts as no activity.
-- takes:   org_id, user_id, chat_id, title
-- returns: a row or none (chat_id, title, created_at, updated_at); a null chat_id if the caller has no such chat;
--          none if the user is not in the org
-- repeat:  yes
with renamed as (
    update chats
    set title = %(title)s
    where org_id = %(org_id)s and id = %(chat_id)s and user_id = %(user_id)s
    returning id, title, created_at, coalesce(updated_at, created_at) as updated_at
)
select renamed.id as chat_id, renamed.title, renamed.created_at, renamed.updated_at
from users
left join renamed on true
where users.org_id = %(org_id)s and users.id = %(user_id)s
