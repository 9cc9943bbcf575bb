-- turn_key_sweep: the old ones.
create index turn_keys_oldest on turn_keys (created_at);
