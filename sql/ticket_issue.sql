-- Keep a question for whoever shows the ticket.
-- takes:   org_id, user_id, create_caller (whether a user who is not known is made, and their org), hash (SHA-256 of the
--          ticket), message, chat_id (null: a new chat), replaces, last (both as in turn_open)
-- returns: a row or none (created_at); none if the user is not in the org
-- repeat:  no
with caller as (
    -- All of it as in turn_open.
    select id
    from users
    where org_id = %(org_id)s and id = %(user_id)s
    for key share
)
insert into tickets (org_id, hash, user_id, message, chat_id, replaces, last)
select %(org_id)s, %(hash)s, %(user_id)s, %(message)s, %(chat_id)s::uuid, %(replaces)s::uuid, %(last)s::uuid
where case
    when exists (select from caller) then true
    when %(create_caller)s::boolean then caller_created(%(org_id)s, %(user_id)s)
    else false
end
returning created_at
