-- Users who are made at first sight of their token, and tickets that are worth an Idempotency-Key.

-- Null where a token said no more than an id (JWT_CREATE_USERS).
alter table orgs alter column name drop not null;
alter table users alter column email drop not null;

-- Those of before are not found any more: a ticket now begins with its org's id.
delete from tickets;
alter table tickets
    drop constraint tickets_pkey,
    add primary key (org_id, hash),
    -- Which reply it has asked for, turn_keys says: its key is the ticket's hash in hexadecimal digits.
    drop column reply_id,
    alter column message set not null;
