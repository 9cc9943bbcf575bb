-- Ring the bell of a server.
-- takes:   channel, payload (at most 7999 bytes)
-- returns: nothing
-- repeat:  yes
select pg_notify(%(channel)s, %(payload)s) as rung
