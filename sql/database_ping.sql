-- Answer, if the database can.
-- takes:   nothing
-- returns: one row (ok)
select true as ok
