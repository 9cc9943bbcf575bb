-- Read what a user has used of this day and month (UTC), deleted replies and all, and the budgets that apply to them.
-- takes:   org_id, user_id
-- returns: a row (caller_known, day_turns, day_input, day_output, month_turns, month_input, month_output, budgets);
--          caller_known is false if the user is not in the org; budgets is a JSON array of
--          {scope (org|user), period, units, used, reserved, resets_s (seconds until its window ends)}
-- repeat:  yes
select
    exists (select from users where org_id = %(org_id)s and id = %(user_id)s) as caller_known,
    usage.day_turns,
    usage.day_input,
    usage.day_output,
    usage.month_turns,
    usage.month_input,
    usage.month_output,
    budget.rows as budgets
from (
    select
        count(*) filter (where created_at >= date_trunc('day', now(), 'UTC')) as day_turns,
        coalesce(sum(input_tokens) filter (where created_at >= date_trunc('day', now(), 'UTC')), 0) as day_input,
        coalesce(sum(output_tokens) filter (where created_at >= date_trunc('day', now(), 'UTC')), 0) as day_output,
        count(*) as month_turns,
        coalesce(sum(input_tokens), 0) as month_input,
        coalesce(sum(output_tokens), 0) as month_output
    from (
        select created_at, input_tokens, output_tokens
        from messages
        where org_id = %(org_id)s
            and user_id = %(user_id)s
            and created_at >= date_trunc('month', now(), 'UTC')
        union all
        select created_at, input_tokens, output_tokens
        from deleted_replies
        where org_id = %(org_id)s
            and user_id = %(user_id)s
            and created_at >= date_trunc('month', now(), 'UTC')
    ) as replies
) as usage
cross join (
    select
        coalesce(json_agg(json_build_object(
            'scope', case when budgets.user_id is null then 'org' else 'user' end,
            'period', period,
            -- Without zeros after the point: whole numbers are whole in JSON, too.
            'units', trim_scale(units),
            'used', case when window_start < date_trunc(period, now(), 'UTC') then 0 else trim_scale(used / 1000000.0) end,
            'reserved', case
                when window_start < date_trunc(period, now(), 'UTC') then 0
                else trim_scale(reserved / 1000000.0)
            end,
            'resets_s', ceil(extract(epoch from
                (date_trunc(period, now() at time zone 'UTC') + ('1 ' || period)::interval) at time zone 'UTC' - now()
            ))
        ) order by budgets.owner_id, period), '[]') as rows
    from budgets
    where org_id = %(org_id)s
        and budgets.owner_id = any(array['00000000-0000-0000-0000-000000000000', %(user_id)s]::uuid[])
) as budget
