-- Put the demo org and its user in place, once.
-- takes:   org_id, user_id
-- returns: nothing
-- repeat:  yes
with org as (
    insert into orgs (id, name)
    values (%(org_id)s, 'Demo')
    on conflict do nothing
)
insert into users (org_id, id, email)
values (%(org_id)s, %(user_id)s, 'demo@example.com')
on conflict do nothing
