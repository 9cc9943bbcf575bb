-- What must hold after any fault: each count is 0.
select
    (
        select count(*)
        from messages as question
        where role = 'user'
            and (
                select count(*)
                from messages as reply
                where reply.org_id = question.org_id
                    and reply.chat_id = question.chat_id
                    and reply.position = question.position + 1
                    and reply.role = 'assistant'
            ) <> 1
    ) as questions_without_their_reply,
    (select count(*) from messages where role = 'assistant' and position %% 2 <> 0) as replies_without_a_question,
    (select count(*) from messages where status = 'streaming') as replies_without_an_end,
    (
        select count(*)
        from messages
        left join chats
            on chats.org_id = messages.org_id and chats.id = messages.chat_id
        left join users
            on users.org_id = chats.org_id and users.id = chats.user_id
        where users.id is null
    ) as rows_of_no_tenant,
    (
        -- In these tests no two questions of an org are the same.
        select count(*) - count(distinct (org_id, content))
        from messages
        where role = 'user'
    ) as questions_asked_twice,
    (select count(*) from messages where status = 'complete' and content = '') as complete_but_empty,
    (
        select count(*)
        from messages as later
        join messages as earlier
            on earlier.org_id = later.org_id
            and earlier.chat_id = later.chat_id
            and earlier.position = later.position - 1
        where later.created_at < earlier.created_at
    )
    + (select count(*) from messages where finished_at < created_at) as times_that_run_backwards,
    (
        select count(*)
        from chats
        where message_count <> (
            select count(*)
            from messages
            where messages.org_id = chats.org_id and messages.chat_id = chats.id
        )
    ) as chats_that_count_wrong,
    (
        select count(*)
        from budgets
        cross join lateral (
            select
                coalesce(sum(charged), 0) as used,
                coalesce(sum(reserved) filter (where finished_at is null), 0) as reserved
            from (
                select org_id, user_id, created_at, finished_at, budgets, reserved, charged
                from messages
                union all
                -- They had ended.
                select org_id, user_id, created_at, created_at, budgets, 0, charged
                from deleted_replies
            ) as reply
            where reply.org_id = budgets.org_id
                and (budgets.user_id is null or reply.user_id = budgets.user_id)
                and reply.budgets & budgets.bit <> 0
                and reply.created_at >= budgets.created_at
                and date_trunc(budgets.period, reply.created_at, 'UTC') = budgets.window_start
        ) as replies
        where (budgets.used, budgets.reserved) <> (replies.used, replies.reserved)
    ) as budgets_that_do_not_add_up
