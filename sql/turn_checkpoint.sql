-- Store what running replies have so far, and ring bells.
-- takes:   server_id (that opened them),
--          org_ids, reply_ids, contents, inputs, outputs (of each reply, in the same order; the last two in tokens),
--          channels, payloads (of each bell; a payload has at most 7999 bytes)
-- returns: a row (saved: the ids of those that still ran, rung: how many bells)
-- repeat:  yes
with said as (
    select org_id, id, content, input_tokens, output_tokens
    from unnest(
        %(org_ids)s::text[]::uuid[], %(reply_ids)s::text[]::uuid[], %(contents)s::text[],
        %(inputs)s::integer[], %(outputs)s::integer[]
    ) as said (org_id, id, content, input_tokens, output_tokens)
),
-- In one order, as turn_interrupt: two statements that lock the same rows must not wait for each other.
running as (
    select messages.org_id, messages.id, said.content, said.input_tokens, said.output_tokens
    from said
    join messages
        on messages.org_id = said.org_id and messages.id = said.id
    where messages.server_id = %(server_id)s::bigint
        -- It is streaming. By its status, the planner might look for it among all that are.
        and messages.finished_at is null
        -- Not an earlier one that is carried out late, by a PostgreSQL that was frozen: a reply only grows.
        and octet_length(messages.content) <= octet_length(said.content)
    order by messages.org_id, messages.id
    for update of messages
),
saved as (
    update messages
    set
        content = running.content,
        input_tokens = running.input_tokens,
        output_tokens = running.output_tokens,
        is_estimated = true
    from running
    where messages.org_id = running.org_id and messages.id = running.id
    returning messages.id::text
)
select
    array(select id from saved) as saved,
    (
        select count(pg_notify(channel, payload))
        from unnest(%(channels)s::text[], %(payloads)s::text[]) as bell (channel, payload)
    ) as rung
