-- Orgs, their users, the users' chats and the messages in them.
--
-- Every key starts with org_id, and so does every foreign key: a row cannot point into another org even if
-- the code is wrong, and the tables can be distributed by org_id as they are.

create table orgs (
    id          uuid primary key,
    name        text not null,
    created_at  timestamptz not null default now()
);

create table users (
    org_id      uuid not null references orgs (id),
    id          uuid not null,
    email       text not null,
    created_at  timestamptz not null default now(),
    primary key (org_id, id),
    unique (org_id, email)
);

create table chats (
    org_id         uuid not null,
    id             uuid not null,
    user_id        uuid not null,
    title          text not null,
    -- The number of messages, and so the position of the last one. Each turn adds two under the row's lock,
    -- which puts concurrent turns of one chat in a strict order.
    message_count  integer not null,
    created_at     timestamptz not null default now(),
    primary key (org_id, id),
    foreign key (org_id, user_id) references users (org_id, id)
);

-- chat_list: a user's chats, newest first. created_at never changes, so a turn's update of message_count
-- touches no index (a heap-only update).
create index chats_newest on chats (org_id, user_id, created_at desc, id desc);

create table messages (
    org_id       uuid not null,
    id           uuid not null,
    chat_id      uuid not null,
    -- Place within the chat from 1: odd for the user's messages, even for the replies.
    position     integer not null,
    role         text not null check (role in ('user', 'assistant')),
    content      text not null,
    -- A user's message is complete at once. A reply is streaming until its stream has ended:
    --   complete      all of it was generated (not: delivered)
    --   disconnected  the client left
    --   failed        the model or the server failed
    --   interrupted   the server stopped
    status       text not null
                 check (status in ('streaming', 'complete', 'disconnected', 'failed', 'interrupted')),
    -- The server that makes the reply: the number of an advisory lock that it holds while it lives. Null for a
    -- user's message.
    server_id    bigint,
    created_at   timestamptz not null default now(),
    -- When the status became final; null while streaming.
    finished_at  timestamptz,
    primary key (org_id, id),
    -- message_list and turn_open's history read a chat from its end.
    unique (org_id, chat_id, position),
    foreign key (org_id, chat_id) references chats (org_id, id),
    check ((status = 'streaming') = (finished_at is null)),
    check (role = 'assistant' or status = 'complete'),
    check ((role = 'assistant') = (server_id is not null))
);

-- turn_interrupt: the few replies that are open, found without a scan of all messages.
create index messages_streaming on messages (org_id, id) where status = 'streaming';
