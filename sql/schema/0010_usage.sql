-- What replies cost, and how much that may be.

-- As 0008: servers go on meanwhile.
set local lock_timeout = '500ms';

-- A word more about how a reply ended. Of a complete one, how the provider ended it, if not by its own end:
--   length      at the limit of tokens
--   refusal     it would not go on
-- Of a failed one, why, if not because the model broke:
--   busy        the provider was
--   too_long    the conversation is, for the model
--   refused     the provider refused the question
--   budget      a budget had no more
create type reply_reason as enum ('length', 'refusal', 'busy', 'too_long', 'refused', 'budget');

alter table messages
    -- Whose reply it is: usage_read adds up a user's. Null for a question, and for what is older than this column.
    add column user_id        uuid,
    -- What the provider counted, in tokens, or an estimate. Null until the first checkpoint.
    add column input_tokens   integer,
    add column output_tokens  integer,
    add column is_estimated   boolean,
    add column reason         reply_reason,
    -- The budgets that it is charged to, in the windows of its created_at: the sum of their bits. Null where none applied.
    -- (These columns are narrow: of wider rows, PostgreSQL, until it has analyzed them, expects so few that it would as
    -- soon look through all messages of an org as for one.)
    add column budgets        smallint,
    -- In millionths of a budget's unit: what was set aside for it in each of them, and what it cost in the end.
    add column reserved       bigint,
    add column charged        bigint,
    -- Not looked through under this lock: see the next migration.
    add constraint messages_reason_check check (
        reason is null
        or status = 'complete' and reason in ('length', 'refusal')
        or status = 'failed' and reason in ('busy', 'too_long', 'refused', 'budget')
    ) not valid;

-- How much an org, or one user, may use in a day or a month. Rows are inserted and changed by hand. No foreign keys: a
-- budget may be there before its user's first token, and is no fresh one if a user is deleted and comes back.
create table budgets (
    org_id        uuid not null,
    -- Null: all of the org together.
    user_id       uuid check (user_id <> '00000000-0000-0000-0000-000000000000'),
    -- The user, or the nil UUID: by this an index finds both, and the org's sorts first.
    owner_id      uuid not null generated always as (coalesce(user_id, '00000000-0000-0000-0000-000000000000')) stored,
    -- Both begin at midnight UTC.
    period        text not null check (period in ('day', 'month')),
    -- Of tokens, or of what MODEL_PRICE makes of them. (Bounded, so that no NaN and no infinity is among them.)
    units         numeric(18, 6) not null check (units between 0 and 1000000000000),
    -- By these two a reply knows its budgets again. Not now(): of one that takes the place of another, it is to be later
    -- than all replies that have locked that.
    bit           smallint not null generated always as (
        case period when 'day' then 1 else 2 end * case when user_id is null then 1 else 4 end
    ) stored,
    created_at    timestamptz not null default clock_timestamp(),
    -- The day or month that the next two are of. The statement that opens a turn begins it.
    window_start  timestamptz not null default '-infinity',
    -- What replies that were opened in it were charged: the sum over their rows, and as there in millionths of a unit.
    used          bigint not null default 0,
    -- What is set aside for those that run.
    reserved      bigint not null default 0,
    primary key (org_id, owner_id, period)
);

-- What statements do with budgets are functions, called only where there are any: as parts of the statements these would
-- cost every turn 0.2 ms. All lock a user's budgets in one order, the org's first, and after chats and messages.

create type budget_quote as (
    -- When the turn is opened, and so in which windows.
    at timestamptz,
    -- As in the row of its reply.
    budgets smallint,
    reserved bigint,
    -- As turn_open returns them; what each has left, if the turn is opened.
    granted integer,
    short text,
    state json
);

-- What the budgets of a user leave for a turn; all is null where there are none.
create function budget_quote(
    of_org uuid, of_user uuid, of_chat uuid, after_position integer, bytes integer, max_tokens integer, min_tokens integer,
    input_price numeric, output_price numeric
) returns budget_quote language plpgsql as $$
declare
    -- Of bytes, two are taken for a token; and two for what parts one message from the next.
    input_tokens bigint := (
        select (bytes + coalesce(sum(octet_length(content) + 2), 0) + 1)::bigint / 2
        from messages
        where org_id = of_org and chat_id = of_chat and position > after_position
    );
    input_cost numeric := input_tokens * input_price;
    least_cost numeric := input_cost + least(min_tokens, max_tokens) * output_price;
    quoted budget_quote;
begin
    with budget as (
        select b.user_id, b.owner_id, b.period, b.bit, b.created_at, b.window_start, b.units * 1000000 as units,
            b.used, b.reserved
        from budgets as b
        where b.org_id = of_org
            and b.owner_id = any(array['00000000-0000-0000-0000-000000000000', of_user]::uuid[])
        order by b.owner_id, b.period
        for update
    ),
    -- Who waited for them may find that others have begun the next day meanwhile, or that one is new.
    moment as (
        select greatest(clock_timestamp(), max(budget.window_start), max(budget.created_at)) as at
        from budget
    ),
    account as (
        select budget.*, moment.at, starts,
            units - case when budget.window_start = starts then budget.used else 0 end as unused,
            case when budget.window_start = starts then budget.reserved else 0 end as running
        from budget
        cross join moment
        cross join lateral date_trunc(budget.period, moment.at, 'UTC') as starts
    ),
    quote as (
        select
            max(account.at) as at,
            sum(account.bit)::smallint as budgets,
            -- What is left is a whole number. So is this: rounded down it would grant less than it costs.
            least(ceil(input_cost + max_tokens * output_price), min(unused - running))::bigint as reserved,
            case
                when bool_or(unused < least_cost) then 'used'
                when bool_or(unused - running < least_cost) then 'reserved'
            end as short
        from account
        having count(*) > 0
    )
    select
        quote.at,
        quote.budgets,
        quote.reserved,
        least(
            max_tokens, case when output_price > 0 then floor((quote.reserved - input_cost) / output_price) end
        )::integer,
        quote.short,
        (
            select json_agg(json_build_object(
                'scope', case when account.user_id is null then 'org' else 'user' end,
                'period', account.period,
                'units', account.units / 1000000,
                'left', (unused - running - case when quote.short is null then quote.reserved else 0 end) / 1000000,
                'resets_s', ceil(extract(epoch from
                    (starts at time zone 'UTC' + ('1 ' || account.period)::interval) at time zone 'UTC' - now()
                ))
            ) order by account.owner_id, account.period)
            from account
        )
    into quoted
    from quote;
    return quoted;
end
$$;

-- Set aside what was quoted; returns that.
create function budget_reserve(of_org uuid, of_user uuid, quote budget_quote) returns bigint language plpgsql as $$
begin
    update budgets
    set
        window_start = date_trunc(period, quote.at, 'UTC'),
        used = case when window_start = date_trunc(period, quote.at, 'UTC') then used else 0 end,
        reserved = case when window_start = date_trunc(period, quote.at, 'UTC') then reserved else 0 end + quote.reserved
    where org_id = of_org
        and owner_id = any(array['00000000-0000-0000-0000-000000000000', of_user]::uuid[])
        and bit & quote.budgets <> 0;
    return quote.reserved;
end
$$;

-- Give back what was set aside for a reply, and charge what it cost, in the windows in which it was opened. Of one that is
-- over, nobody looks any more at what it has used.
create function budget_settle(
    of_org uuid, of_user uuid, bits smallint, opened_at timestamptz, amount bigint, cost bigint
) returns boolean language plpgsql as $$
begin
    perform from budgets
    where org_id = of_org and owner_id = any(array['00000000-0000-0000-0000-000000000000', of_user]::uuid[])
    order by owner_id, period
    for update;
    update budgets
    set used = used + cost, reserved = reserved - amount
    where org_id = of_org
        and owner_id = any(array['00000000-0000-0000-0000-000000000000', of_user]::uuid[])
        and bit & bits <> 0
        and created_at <= opened_at
        and window_start = date_trunc(period, opened_at, 'UTC');
    return true;
end
$$;

-- What was set aside for a reply is given back with its row, whoever deletes that: turn_undo, or someone by hand.
create function messages_give_back() returns trigger language plpgsql as $$
begin
    perform budget_settle(old.org_id, old.user_id, old.budgets, old.created_at, old.reserved, 0);
    return null;
end
$$;
create trigger messages_give_back after delete on messages
    for each row when (old.finished_at is null and old.budgets is not null)
    execute function messages_give_back();
