'use strict';

/*
 * The list of chats, beside the messages on a wide screen, in a drawer on a narrow one. Its links are fragments of the
 * page's address: to follow one opens the chat.
 * Uses elements.js, settings.js, requests.js.
 */
const sidebar = (() => {
    const list = $('chats');
    const drawer = $('drawer');
    const wide = matchMedia('(min-width: 56rem)');

    let current = null; // the id of the open chat
    let next = null;

    function chatItem({ chat_id: id, title, updated_at: updatedAt }) {
        const active = new Date(updatedAt);
        const today = active.toDateString() === new Date().toDateString();
        const when = active.toLocaleString(undefined, today ? { timeStyle: 'short' } : { dateStyle: 'medium' });
        const name = el('span', { dir: 'auto', textContent: title });
        const time = el('time', { dateTime: active.toISOString(), textContent: when });
        return el('li', {}, el('a', { href: `#${id}`, title }, name, time));
    }

    const linkTo = (id) => list.querySelector(`a[href="#${id}"]`);

    /** Load the newest chats, or those before `before`. */
    async function load(before = null) {
        await settings.ready;
        const from = settings.current;
        try {
            const page = await requestJson(`/chats?limit=30${before ? `&before=${before}` : ''}`);
            if (from !== settings.current) return;
            // One that was started meanwhile is there already.
            const items = page.chats.filter((chat) => !linkTo(chat.chat_id)).map(chatItem);
            if (!before && list.hasChildNodes()) {
                list.prepend(...items);
            } else {
                list.append(...items);
                next = page.next;
            }
            if (before) items[0]?.firstChild.focus();
            $('more-chats').hidden = next === null;
            $('no-chats').hidden = list.firstChild !== null;
            $('chats-notice').replaceChildren();
            show(current);
        } catch (error) {
            if (from !== settings.current) return;
            $('more-chats').hidden = true;
            $('no-chats').hidden = true;
            showNotice($('chats-notice'), error, { Retry: () => load(before) });
        }
    }

    /** The chat that is open has begun: the list gets it. */
    function add(id) {
        current = id;
        load();
    }

    function reload() {
        list.replaceChildren();
        load();
    }

    /** Show which chat is open; null for a new one. */
    function show(id) {
        current = id;
        for (const link of list.querySelectorAll('a'))
            link.setAttribute('aria-current', link.hash === `#${id}` ? 'page' : 'false');
        $('title').textContent = id === null ? 'New chat' : (linkTo(id)?.title ?? 'Chat');
        document.title = id === null ? 'Streaming chat' : `${$('title').textContent} – Streaming chat`;
    }

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
        next = null;
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

    return { load, reload, add, show, close };
})();
