-- When there was last something new in a chat.

-- As 0008: servers go on meanwhile.
set local lock_timeout = '500ms';

-- When its last turn was opened. Null where that was before there was this column; the chat is then listed by its
-- created_at, as before: to look up the last turn of all would hold up their questions.
alter table chats add column if not exists updated_at timestamptz;

-- For chats that servers of the version before begin from now on. (Not with the column: those of before would have it.)
alter table chats alter column updated_at set default clock_timestamp();
