-- chat_list: a user's chats, the last one that was active first. A turn's update of its chat is no heap-only one any more,
-- but goes into this index.

-- As 0008; but it holds up questions for two seconds for each million chats, unless the index is there (sql/README.md).
set local lock_timeout = '500ms';
create index if not exists chats_active
    on chats (org_id, user_id, (coalesce(updated_at, created_at)) desc, id desc);
