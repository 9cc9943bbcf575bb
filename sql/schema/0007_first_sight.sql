-- Users who are made at first sight of their token, and tickets that are worth an Idempotency-Key.

-- Servers go on meanwhile; see 0008.
set local lock_timeout = '500ms';

-- Null where a token said no more than an id (JWT_CREATE_USERS).
alter table orgs alter column name drop not null;
alter table users alter column email drop not null;

-- Tickets of before are not found any more: a ticket now begins with its org's id. Which reply it has asked for, turn_keys
-- says, whose key is the ticket's hash in hexadecimal digits; reply_id, and a message that may be null, stay for servers
-- of the version before, which prepare their statements with each connection that they make.
alter table tickets
    drop constraint tickets_pkey,
    add primary key (org_id, hash);
