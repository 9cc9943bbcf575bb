-- Ring the bells of servers.
-- takes:   channels, payloads (of each bell; a payload has at most 7999 bytes)
-- returns: a row (rung: how many bells)
-- repeat:  yes
select count(pg_notify(channel, payload)) as rung
from unnest(%(channels)s::text[], %(payloads)s::text[]) as bell (channel, payload)
