-- Delete a chat and all that is in it, unless a reply runs there.
-- takes:   org_id, user_id, chat_id
-- returns: a row (caller_known, running_id, overtaken); caller_known is false if the user is not in the org;
--          running_id is the reply that runs, null if none;
--          overtaken: the chat was changed by others, and this statement could not see it: to be repeated;
--          in these cases nothing is deleted, nor where the caller has no such chat, as when it was deleted before
-- repeat:  yes
with chat as (
    -- Who waits here for a question is given the row as that has left it...
    select id, xmin::text as version
    from chats
    where org_id = %(org_id)s and user_id = %(user_id)s and id = %(chat_id)s
    for update
),
-- ...but all else as it was when this statement began (READ COMMITTED), without the reply to it. So the two are compared.
seen as (
    select xmin::text as version
    from chats
    where org_id = %(org_id)s and user_id = %(user_id)s and id = %(chat_id)s
),
running as (
    select messages.id
    from chat
    join messages
        on messages.org_id = %(org_id)s and messages.chat_id = %(chat_id)s and messages.status = 'streaming'
),
deleted as (
    delete from chats
    using chat
    join seen on seen.version = chat.version
    where chats.org_id = %(org_id)s and chats.id = %(chat_id)s and not exists (select from running)
)
select
    exists (select from users where org_id = %(org_id)s and id = %(user_id)s) as caller_known,
    (select id from running) as running_id,
    exists (select from chat join seen on seen.version <> chat.version) as overtaken
