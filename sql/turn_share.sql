-- Save what a running reply has so far, and ring the bell of the server whose client reads it.
-- takes:   org_id, reply_id, server_id (that opened it), content, channel, payload
-- returns: nothing; the reply may run no more
-- repeat:  yes
with saved as (
    update messages
    set content = %(content)s
    where org_id = %(org_id)s and id = %(reply_id)s and server_id = %(server_id)s and status = 'streaming'
    returning id
)
select pg_notify(%(channel)s, %(payload)s) as rung
from saved
