-- Answer, if the database can.
-- takes:   nothing
-- returns: a row (ok)
-- repeat:  yes
select true as ok
