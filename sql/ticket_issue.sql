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
),
org as (
    insert into orgs (id)
    select %(org_id)s
    where %(create_caller)s::boolean and not exists (select from caller)
    -- Locked, as by who deletes it, and before its user is.
    on conflict (id) do update set id = excluded.id
    returning id
),
newcomer as (
    insert into users (org_id, id)
    select %(org_id)s, %(user_id)s
    from org
    on conflict (org_id, id) do update set org_id = excluded.org_id
    returning id
)
insert into tickets (org_id, hash, user_id, message, chat_id, replaces, last)
select %(org_id)s, %(hash)s, id, %(message)s, %(chat_id)s::uuid, %(replaces)s::uuid, %(last)s::uuid
from (select id from caller union all select id from newcomer) as anyone
returning created_at
