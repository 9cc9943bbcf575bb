-- Rows can be deleted by hand: what is below a row goes with it.

-- Servers go on meanwhile. Whoever waits for a lock keeps all behind it waiting, so this gives up soon, and before one of
-- their statements could count as deadlocked (after 1 s): then the start has failed, and may be tried again.
set local lock_timeout = '500ms';
lock table messages, chats, users, orgs, turn_keys, tickets in access exclusive mode;

-- Not looked through under this lock: see the next migration.
alter table users
    drop constraint users_org_id_fkey,
    add constraint users_org_id_fkey
        foreign key (org_id) references orgs (id) on delete cascade not valid;
alter table chats
    drop constraint chats_org_id_user_id_fkey,
    add constraint chats_org_id_user_id_fkey
        foreign key (org_id, user_id) references users (org_id, id) on delete cascade not valid;
alter table messages
    drop constraint messages_org_id_chat_id_fkey,
    add constraint messages_org_id_chat_id_fkey
        foreign key (org_id, chat_id) references chats (org_id, id) on delete cascade not valid;
alter table turn_keys
    drop constraint turn_keys_org_id_user_id_fkey,
    add constraint turn_keys_org_id_user_id_fkey
        foreign key (org_id, user_id) references users (org_id, id) on delete cascade not valid,
    -- A key whose reply is gone would stand in the way of its question for a day.
    add constraint turn_keys_org_id_reply_id_fkey
        foreign key (org_id, reply_id) references messages (org_id, id) on delete cascade not valid;
alter table tickets
    drop constraint tickets_org_id_user_id_fkey,
    add constraint tickets_org_id_user_id_fkey
        foreign key (org_id, user_id) references users (org_id, id) on delete cascade not valid;
