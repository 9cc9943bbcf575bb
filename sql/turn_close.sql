-- Close a reply once its stream has ended, however it ended, and settle what it cost.
-- takes:   org_id, reply_id, server_id (that opened it), content (null: what it has),
--          status (complete|disconnected|failed|interrupted|stopped), reason (a word more, or null),
--          input_tokens, output_tokens, is_estimated,
--          input_price, output_price (of a token, in millionths of a budget's unit)
-- returns: a row or none (finished_at); none if this server has no such reply running: what has ended stays as it is
-- repeat:  yes
with closed as (
    update messages
    set
        content = coalesce(%(content)s, content),
        status = %(status)s,
        reason = %(reason)s::reply_reason,
        finished_at = clock_timestamp(),
        input_tokens = %(input_tokens)s::integer,
        output_tokens = %(output_tokens)s::integer,
        is_estimated = %(is_estimated)s::boolean,
        charged = case when budgets is not null then
            ceil(
                %(input_tokens)s::integer * %(input_price)s::numeric
                + %(output_tokens)s::integer * %(output_price)s::numeric
            )
        end
    where org_id = %(org_id)s
        and id = %(reply_id)s
        and server_id = %(server_id)s
        -- It is streaming. By its status, the planner might look for it among all that are.
        and finished_at is null
    returning user_id, created_at, budgets, reserved, charged, finished_at
)
select finished_at
from closed
-- It is settled in passing.
where budgets is null
    or budget_settle(%(org_id)s, user_id, budgets, created_at, reserved, charged)
