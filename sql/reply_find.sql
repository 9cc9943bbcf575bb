-- Find a reply, as it is stored.
-- takes:   org_id, user_id, reply_id
-- returns: a row or none (chat_id, content, status, created_at, server_id, reason, input_tokens, output_tokens,
--          is_estimated); none if the caller has no such reply
-- repeat:  yes
select
    messages.chat_id,
    messages.content,
    messages.status,
    messages.created_at,
    messages.server_id,
    messages.reason,
    messages.input_tokens,
    messages.output_tokens,
    messages.is_estimated
from messages
join chats
    on chats.org_id = messages.org_id and chats.id = messages.chat_id
where messages.org_id = %(org_id)s
    and messages.id = %(reply_id)s
    and messages.role = 'assistant'
    and chats.user_id = %(user_id)s
