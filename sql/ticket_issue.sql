-- Keep a question for whoever shows the ticket.
-- takes:   hash (SHA-256 of the ticket), org_id, user_id, message, chat_id (null: a new chat)
-- returns: a row or none (created_at); none if the user is not in the org
-- repeat:  no
insert into tickets (hash, org_id, user_id, message, chat_id)
select %(hash)s, org_id, id, %(message)s, %(chat_id)s::uuid
from users
where org_id = %(org_id)s and id = %(user_id)s
returning created_at
