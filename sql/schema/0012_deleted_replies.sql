-- What a reply has cost outlives it: whoever deletes it, its tokens were used.

-- As 0008: servers go on meanwhile.
set local lock_timeout = '500ms';

-- Of replies that had ended, and nothing of what they said. As with budgets there are no foreign keys: what a deleted user
-- or org has cost is still to be billed. By created_at usage_read adds up a month; rows of earlier ones may be deleted.
create table deleted_replies (
    org_id         uuid not null,
    id             uuid not null,
    -- All as in messages.
    user_id        uuid not null,
    created_at     timestamptz not null,
    input_tokens   integer,
    output_tokens  integer,
    budgets        smallint,
    charged        bigint,
    primary key (org_id, id)
);
create index deleted_replies_usage on deleted_replies (org_id, user_id, created_at);

create function messages_leave_cost() returns trigger language plpgsql as $$
begin
    insert into deleted_replies (org_id, id, user_id, created_at, input_tokens, output_tokens, budgets, charged)
    select org_id, id, user_id, created_at, input_tokens, output_tokens, budgets, charged
    from gone
    -- One that still runs costs nothing: see messages_give_back.
    where user_id is not null and finished_at is not null
    -- One that was put back from a backup, and is deleted again, has cost no more.
    on conflict do nothing;
    return null;
end
$$;
-- Once for a chat, however many messages it has.
create trigger messages_leave_cost after delete on messages
    referencing old table as gone
    for each statement execute function messages_leave_cost();
