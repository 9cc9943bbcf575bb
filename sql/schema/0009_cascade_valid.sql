-- Look through the rows that are older than 0008's foreign keys, while servers read and write them.

-- Keys of replies that were deleted by hand.
delete from turn_keys
where not exists (
    select
    from messages
    where messages.org_id = turn_keys.org_id and messages.id = turn_keys.reply_id
);

alter table users validate constraint users_org_id_fkey;
alter table chats validate constraint chats_org_id_user_id_fkey;
alter table messages validate constraint messages_org_id_chat_id_fkey;
alter table turn_keys validate constraint turn_keys_org_id_user_id_fkey;
alter table turn_keys validate constraint turn_keys_org_id_reply_id_fkey;
alter table tickets validate constraint tickets_org_id_user_id_fkey;

-- A deleted message's key. Last, because questions with a key wait while it is made: a second for a million of a day.
-- And as in 0008, no lock is waited for for long.
set local lock_timeout = '500ms';
create index turn_keys_reply on turn_keys (org_id, reply_id);
