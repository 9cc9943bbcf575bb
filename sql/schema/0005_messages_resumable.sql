-- turn_interrupt: the few replies that can be resumed, as those that run, without a scan of all messages.
create index messages_resumable on messages (resumable_until) where resumable_until is not null;
