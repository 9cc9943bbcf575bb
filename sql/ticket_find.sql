-- Find what a ticket asks, and the reply that it has.
-- takes:   org_id, hash (SHA-256 of the ticket), lifetime_s (seconds that it has to ask)
-- returns: a row or none (user_id, message, chat_id, replaces, last, reply_id); reply_id is null if it has not asked yet;
--          none if there is no such ticket, or it has not asked in time
-- repeat:  yes
select tickets.user_id, tickets.message, tickets.chat_id, tickets.replaces, tickets.last, turn_keys.reply_id
from tickets
left join turn_keys
    on turn_keys.org_id = %(org_id)s
    and turn_keys.user_id = tickets.user_id
    and turn_keys.key = encode(tickets.hash, 'hex')
where tickets.org_id = %(org_id)s
    and tickets.hash = %(hash)s
    and (
        turn_keys.reply_id is not null
        or tickets.created_at > now() - make_interval(secs => %(lifetime_s)s::float8)
    )
