-- See what replies have more than who looks; that they are theirs to look at, reply_find has said.
-- takes:   org_ids, reply_ids, lengths (of each reply: the code points that are known of it)
-- returns: rows, one for each reply that there is (id, status, more: the text after those, reason,
--          input_tokens, output_tokens, is_estimated)
-- repeat:  yes
select
    messages.id,
    messages.status,
    substr(messages.content, known.length + 1) as more,
    messages.reason,
    messages.input_tokens,
    messages.output_tokens,
    messages.is_estimated
from unnest(%(org_ids)s::text[]::uuid[], %(reply_ids)s::text[]::uuid[], %(lengths)s::integer[])
    as known (org_id, id, length)
join messages
    on messages.org_id = known.org_id and messages.id = known.id
