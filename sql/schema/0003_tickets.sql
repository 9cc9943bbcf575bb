-- Tickets: a question that is asked by a GET whose URL holds neither it nor who asks it.

create table tickets (
    -- SHA-256: who reads this table cannot use what is in it.
    hash        bytea primary key,
    org_id      uuid not null,
    user_id     uuid not null,
    -- The question; null once it is asked.
    message     text,
    chat_id     uuid,
    -- The reply, once it is asked: a reader who comes back shows the same ticket.
    reply_id    uuid,
    created_at  timestamptz not null default now(),
    foreign key (org_id, user_id) references users (org_id, id)
);

-- ticket_sweep: the old ones.
create index tickets_oldest on tickets (created_at);
