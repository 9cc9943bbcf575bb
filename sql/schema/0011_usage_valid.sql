-- What 0010 left to be looked through, under a lock that lets servers read and write.
alter table messages validate constraint messages_reason_check;

-- usage_read: a user's replies of a month. It holds up questions while PostgreSQL looks through all messages, none of which
-- is in it yet: about a second for a million (500 MB), on two cores that had other work.
set local lock_timeout = '500ms';
create index messages_usage on messages (org_id, user_id, created_at) where user_id is not null;
