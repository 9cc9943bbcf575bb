-- Take the question that a ticket is for, once.
-- takes:   hash, reply_id (of the turn that will ask it), lifetime_s (seconds)
-- returns: a row or none (org_id, user_id, message, chat_id); none if there is no such ticket, or it was used, or is
--          too old
-- repeat:  no
with ticket as (
    select hash, org_id, user_id, message, chat_id
    from tickets
    where hash = %(hash)s
        and reply_id is null
        and created_at > now() - make_interval(secs => %(lifetime_s)s::float8)
    for update
),
used as (
    update tickets
    set reply_id = %(reply_id)s, message = null
    from ticket
    where tickets.hash = ticket.hash
)
select org_id, user_id, message, chat_id
from ticket
