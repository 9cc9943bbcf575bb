-- Close the replies of servers that are no more, and tell which servers seem to be: nobody holds their lock, or its
-- holder has said nothing for a while.
-- takes:   given_up (numbers of the servers whose replies are to be closed if they still seem to be gone),
--          silence_s (seconds; a server takes its lock again each second),
--          input_price, output_price (of a token, in millionths of a budget's unit)
-- returns: rows, one for each server with running replies that seems to be gone (server_id, closed: how many were)
-- repeat:  yes
--
-- A server that lives takes its lock again within a moment of losing its connection, or of a restart of PostgreSQL. One
-- that is frozen keeps both. The silence is measured by PostgreSQL's clock alone; a step of it is over by the next look.
with missing as (
    select org_id, id, server_id
    from messages
    where status = 'streaming'
        and server_id not in (select living_servers(%(silence_s)s))
),
-- In one order, as turn_checkpoint and turn_prove.
given_up as (
    select messages.org_id, messages.id, messages.server_id
    from missing
    join messages
        on messages.org_id = missing.org_id and messages.id = missing.id
    where missing.server_id = any(%(given_up)s::bigint[]) and messages.finished_at is null
    order by messages.org_id, messages.id
    for update of messages
),
-- Once all are locked: a server that has its lock again by now may have seen by turn_prove that they run.
gone as (
    select server_id
    from given_up
    group by server_id
    having server_id not in (select living_servers(%(silence_s)s))
),
-- What it cost is what its last checkpoint says.
closed as (
    update messages
    set
        status = 'interrupted',
        finished_at = clock_timestamp(),
        charged = case when budgets is not null then
            ceil(
                coalesce(input_tokens, 0) * %(input_price)s::numeric
                + coalesce(output_tokens, 0) * %(output_price)s::numeric
            )
        end
    from given_up
    join gone
        on gone.server_id = given_up.server_id
    where messages.org_id = given_up.org_id and messages.id = given_up.id
    returning
        messages.server_id,
        messages.org_id,
        messages.user_id,
        messages.created_at,
        messages.budgets,
        messages.reserved,
        messages.charged
),
-- In one order, too.
settled as materialized (
    select
        server_id,
        case when budgets is not null then
            budget_settle(org_id, user_id, budgets, created_at, reserved, charged)
        end as is_settled
    from (
        select server_id, org_id, user_id, created_at, budgets, reserved, charged
        from closed
        order by org_id, user_id
    ) as ordered
)
select missing.server_id, (select count(*) from settled where settled.server_id = missing.server_id) as closed
from missing
group by missing.server_id
