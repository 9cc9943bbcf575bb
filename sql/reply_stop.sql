-- Stop a reply that nobody reads; find one that runs, for its server to stop.
-- takes:   org_id, user_id, reply_id
-- returns: a row or none (status, server_id); none if the caller has no such reply
-- repeat:  yes
with reply as (
    select messages.org_id, messages.id, messages.status, messages.server_id
    from messages
    join chats
        on chats.org_id = messages.org_id and chats.id = messages.chat_id
    where messages.org_id = %(org_id)s
        and messages.id = %(reply_id)s
        and messages.role = 'assistant'
        and chats.user_id = %(user_id)s
    -- One that is being resumed is seen as it is then.
    for update of messages
),
stopped as (
    update messages
    set status = 'stopped', resumable_until = null
    from reply
    where messages.org_id = reply.org_id
        and messages.id = reply.id
        and messages.status = 'disconnected'
        and messages.resumable_until > clock_timestamp()
    returning messages.status
)
select coalesce(stopped.status, reply.status) as status, reply.server_id
from reply
left join stopped on true
