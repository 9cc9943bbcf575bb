-- Resume, stop, and questions that are sent twice.

alter table messages
    -- A reply whose client left is disconnected at once, its text saved. Until this moment its server still has the
    -- model's stream, and a reader who comes back makes it streaming again. Null where nobody can.
    add column resumable_until timestamptz,
    add constraint messages_resumable_check check (resumable_until is null or status = 'disconnected'),
    drop constraint messages_status_check,
    -- As before, and:
    --   stopped       a client asked for it to stop
    add constraint messages_status_check
        check (status in ('streaming', 'complete', 'disconnected', 'failed', 'interrupted', 'stopped'));

-- Earlier versions allowed several in one chat.
update messages
set status = 'interrupted', finished_at = now()
where status = 'streaming'
    and exists (
        select
        from messages as later
        where later.org_id = messages.org_id
            and later.chat_id = messages.chat_id
            and later.position > messages.position
    );

-- turn_open: a chat has one running reply at a time. turn_interrupt: the few that run, without a scan of all messages.
create unique index messages_running on messages (org_id, chat_id) where status = 'streaming';
drop index messages_streaming;

-- The turns that were opened with an Idempotency-Key.
create table turn_keys (
    org_id      uuid not null,
    user_id     uuid not null,
    key         text not null,
    -- SHA-256 of what was asked: the same key with another question is a mistake.
    asked       bytea not null,
    reply_id    uuid not null,
    created_at  timestamptz not null default now(),
    primary key (org_id, user_id, key),
    foreign key (org_id, user_id) references users (org_id, id)
);
