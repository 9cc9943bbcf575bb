'use strict';

/*
 * The list of chats, beside the messages on a wide screen, in a drawer on a narrow one. Its links are fragments of the
 * page's address: to follow one opens the chat.
 * Uses elements.js, settings.js, requests.js, roving.js, menu.js, row.js.
 *
 *     sidebar.show(chatId)                 // it is open; null: a new one is
 *     sidebar.touch(chatId)                // something was said there
 *     sidebar.ondelete = (chatId) => …
 */
const sidebar = (() => {
    const PAGE_SIZE = 30;
    const TYPING_MS = 150; // A search waits for the next letter so long.

    const list = $('chats');
    const refresh = rove(list, 'li', 'a, .icon');
    const search = $('search');
    const drawer = $('drawer');
    const wide = matchMedia('(min-width: 56rem)');

    const rows = new Map(); // by the id of their chat
    let next = null; // what to ask for the next page with
    let searched = ''; // what the rows were found by
    let visit = new AbortController(); // of one search, as one caller
    let current = null; // the id of the open chat

    const room = { load, reload, show, touch, remove, close, ondelete() {} };

    const heard = {
        renamed: () => show(current),
        deleted(row) {
            const focused = row.item.contains(document.activeElement);
            const neighbour = near(row, 1) ?? near(row, -1);
            remove(row.id);
            if (focused) (neighbour?.link ?? $('new-chat')).focus();
            announce('Deleted');
            room.ondelete(row.id);
        },
        failed: (error, again) => showNotice($('chats-notice'), error, { Retry: again }),
    };

    /** Load the chats that were active last, or the page that follows. */
    async function load(before = null) {
        await settings.ready;
        const { signal } = visit;
        const words = search.value.trim();
        const query = new URLSearchParams({ limit: PAGE_SIZE, ...(before && { before }), ...(words && { q: words }) });
        try {
            const page = await requestJson(`/chats?${query}`, { signal });
            // Where nothing is known already there may be more in between.
            const joins = words === searched && page.chats.some((chat) => rows.has(chat.chat_id));
            if (!before && !joins) rows.clear();
            if (before || !joins) next = page.next;
            searched = words;
            const found = page.chats.filter((chat) => !rows.has(chat.chat_id));
            for (const chat of page.chats) rows.get(chat.chat_id)?.update(chat);
            for (const chat of found) rows.set(chat.chat_id, new ChatRow(chat, heard));
            arrange();
            if (before && found.length > 0) rows.get(found[0].chat_id).link.focus();
            $('chats-notice').replaceChildren();
        } catch (error) {
            if (signal.aborted) {
                next ??= before; // The page that follows is still to come.
                return;
            }
            $('more-chats').hidden = true;
            write($('no-chats'), '');
            showNotice($('chats-notice'), error, { Retry: () => load(before) });
        }
    }

    /** Load anew: for another search, or as another caller. */
    async function renew() {
        visit.abort();
        visit = new AbortController();
        const { signal } = visit;
        await load();
        // That nothing was found is read where it is shown.
        if (!signal.aborted && searched && rows.size > 0)
            announce(`${rows.size}${next ? ' or more' : ''} ${rows.size === 1 ? 'chat' : 'chats'} found`);
    }

    function reload() {
        rows.clear();
        arrange();
        write($('no-chats'), '');
        renew();
    }

    function remove(id) {
        rows.delete(id);
        arrange();
    }

    /** Put the rows in their order and under their days. Only what is elsewhere is moved: to move is to lose the focus. */
    function arrange() {
        const focused = document.activeElement;
        const sorted = [...rows.values()].sort((one, other) => other.updatedAt - one.updatedAt);
        const midnight = new Date().setHours(0, 0, 0, 0);
        const dayBefore = new Date(midnight - 1).setHours(0, 0, 0, 0);
        const groups = [[], [], []];
        for (const row of sorted) groups[row.updatedAt >= midnight ? 0 : row.updatedAt >= dayBefore ? 1 : 2].push(row.item);
        [...list.children].forEach((section, i) => {
            const ul = section.lastElementChild;
            for (const [at, item] of groups[i].entries())
                if (ul.children[at] !== item) ul.insertBefore(item, ul.children[at] ?? null);
            while (ul.children.length > groups[i].length) ul.lastChild.remove();
            section.hidden = groups[i].length === 0;
        });
        if (list.contains(focused) && document.activeElement !== focused) focused.focus();
        $('more-chats').hidden = next === null;
        const nothing = searched ? `No title has “${searched}” in it.` : 'Your chats will be listed here.';
        write($('no-chats'), rows.size === 0 ? nothing : '');
        show(current);
    }

    /** Show which chat is open. Its title stays when it is not among those that are found. */
    function show(id) {
        const row = rows.get(id);
        for (const [other, { link }] of rows) link.setAttribute('aria-current', other === id ? 'page' : 'false');
        if (id === null) write($('title'), 'New chat');
        else if (row || id !== current) write($('title'), row?.title ?? 'Chat');
        document.title = id === null ? 'Streaming chat' : `${$('title').textContent} – Streaming chat`;
        current = id;
        refresh(row?.link);
    }

    /** Something was said in a chat: it goes to the top. A new one, the server tells about. */
    function touch(id) {
        const row = rows.get(id);
        if (id !== current) search.value = ''; // A new one is listed, whatever was searched for.
        current = id;
        if (!row) {
            renew();
            return;
        }
        // The clock here may be behind the server's.
        const last = Math.max(...Array.from(rows.values(), (other) => other.updatedAt));
        row.updatedAt = new Date(Math.max(Date.now(), last + 1));
        arrange();
    }

    const rowOf = (element) => rows.get(element?.querySelector('a')?.hash.slice(1));

    /** Return the row so many further down, undefined if there is none. */
    function near(row, step) {
        const items = [...list.querySelectorAll('li')];
        return rowOf(items[items.indexOf(row.item) + step]);
    }

    list.addEventListener('keydown', (event) => {
        const row = rowOf(event.target.closest('li'));
        if (!row) return;
        if (event.key === 'F2') row.rename();
        else if (event.key === 'Delete') row.confirm();
        else return;
        event.preventDefault();
    });

    // ---- Search

    let typing = 0;
    search.addEventListener('input', () => {
        clearTimeout(typing);
        typing = setTimeout(renew, search.value.trim() ? TYPING_MS : 0);
    });
    search.addEventListener('keydown', (event) => {
        if (event.key === 'ArrowDown') list.querySelector('a')?.focus();
        else if (event.key !== 'Escape' || !search.value) return;
        else {
            search.value = '';
            search.dispatchEvent(new Event('input'));
        }
        // Escape also closes drawers, and stops replies.
        event.preventDefault();
        event.stopPropagation();
    });
    addEventListener('keydown', (event) => {
        // A choice among an input's examples is a keydown without a key.
        if (event.key?.toLowerCase() !== 'k' || !(event.ctrlKey || event.metaKey) || event.altKey || event.shiftKey) return;
        if ($('settings').open) return;
        event.preventDefault();
        if (!wide.matches && !drawer.open) drawer.showModal();
        search.select();
        search.focus();
    });

    // ---- The drawer

    function close() {
        drawer.close();
    }

    function place() {
        close();
        if (wide.matches) document.querySelector('main').before($('side'));
        else drawer.append($('side'));
    }

    $('more-chats').addEventListener('click', () => {
        if (next) load(next);
        next = null; // One click, one page.
    });
    list.addEventListener('click', (event) => {
        if (event.target.closest('a')) close();
    });
    $('open-settings').addEventListener('click', () => {
        close();
        settings.open();
    });
    $('open-drawer').addEventListener('click', () => drawer.showModal());
    drawer.addEventListener('click', (event) => {
        if (event.target === drawer) close(); // Beside it.
    });
    wide.addEventListener('change', place);
    place();
    // The days go on while nobody looks, and other windows have their chats.
    document.addEventListener('visibilitychange', () => {
        arrange();
        if (!document.hidden) load();
    });

    return room;
})();
