-- A question that takes the place of others.

-- As 0008: servers go on meanwhile.
set local lock_timeout = '500ms';

-- The question, or the reply, that it replaces, and what its asker takes for the chat's last message: see turn_open.
alter table tickets
    add column replaces uuid,
    add column last     uuid;

-- The number of messages before the turn that is replaced; null if that is not in the chat, or if there is more after it
-- than its asker knows of. Stable: it sees what turn_open sees.
create function chat_kept(
    of_org uuid, of_chat uuid, replaced uuid, known_last uuid, last_id uuid, message_count integer
) returns integer language plpgsql stable as $$
begin
    return (
        select (position - 1) / 2 * 2
        from messages
        where org_id = of_org
            and id = replaced
            and chat_id = of_chat
            and case when known_last is null then position + 1 >= message_count else last_id = known_last end
    );
end
$$;

-- What budget_quote counts of the messages that are replaced.
create function chat_bytes(of_org uuid, of_chat uuid, after_position integer) returns integer language plpgsql stable as $$
begin
    return (
        select coalesce(sum(octet_length(content) + 2), 0)
        from messages
        where org_id = of_org and chat_id = of_chat and position > after_position
    );
end
$$;

-- Delete them. turn_open has locked the chat, and seen that none of them is a reply that runs.
create function chat_shorten(of_org uuid, of_chat uuid, after_position integer) returns boolean language plpgsql as $$
begin
    delete from messages where org_id = of_org and chat_id = of_chat and position > after_position;
    return true;
end
$$;
