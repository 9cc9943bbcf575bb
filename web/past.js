'use strict';

/*
 * What the server has stored of the chat that is open.
 * Uses elements.js, requests.js, composer.js, notice.js, thread.js.
 *
 *     past.open(chatId)                    // null: a new chat, which gets its id later: past.chat = …
 *     await past.ready();                  // what is stored is shown, or Failure is raised
 *     past.onrunning = (message) => …      // its last reply still runs
 *     past.onmissing = (failure) => …      // there is no such chat
 */
const past = (() => {
    const LONGEST_DELAY_MS = 8000;

    let visit = new AbortController();
    let next = null;
    let loaded = null; // a promise while there is something to wait for
    let missed = null; // why it could not be loaded

    const room = {
        chat: null,

        /** What begins with a chat ends with it. */
        get signal() {
            return visit.signal;
        },

        open(chat) {
            visit.abort();
            visit = new AbortController();
            room.chat = chat;
            $('earlier-notice').replaceChildren();
            $('earlier').hidden = true;
            missed = null;
            loaded = chat && load();
        },

        ready,
        look,
        settle,
        onrunning() {},
        onmissing() {},
    };

    async function load() {
        const { signal } = visit;
        missed = null;
        try {
            const page = await fetchPage(signal);
            thread.prepend(page.messages);
            const last = page.messages.at(-1);
            composer.forget(page.messages.filter(({ role }) => role === 'user').at(-1)?.content);
            if (last?.status === 'streaming') room.onrunning(last);
            settle(signal, 500);
        } catch (error) {
            if (signal.aborted) return;
            if (error.status === 404) {
                room.onmissing(error);
            } else {
                missed = error;
                showNotice($('notice'), error, { Retry: () => (loaded = load()) });
            }
        }
    }

    /** Where it could not be loaded, try once more: who asks a question does not see that there is more. */
    async function ready() {
        if (missed) loaded = load();
        await loaded;
        if (missed) throw missed;
    }

    async function loadEarlier(before) {
        const { signal } = visit;
        $('earlier-notice').replaceChildren();
        try {
            const page = await fetchPage(signal, `&before=${before}`);
            thread.follow(false);
            thread.prepend(page.messages);
            thread.scroller.focus({ preventScroll: true });
        } catch (error) {
            if (signal.aborted) return;
            next = before;
            showNotice($('earlier-notice'), error, { Retry: () => $('earlier').click() });
        }
    }

    async function fetchPage(signal, query = '') {
        const page = await requestJson(`/chats/${room.chat}/messages?limit=50${query}`, { signal });
        next = page.next;
        $('earlier').hidden = next === null;
        return page;
    }

    /** Look how replies have ended that nobody reads here. */
    async function look(signal) {
        const page = await requestJson(`/chats/${room.chat}/messages?limit=50`, { signal });
        page.messages.forEach(thread.update);
    }

    /** Look again and again, ever more seldom. */
    async function settle(signal, delay) {
        if (!thread.messages.querySelector('li[data-status=streaming]')) return;
        await new Promise((resolve) => setTimeout(resolve, delay));
        if (!signal.aborted) await look(signal).catch(() => {});
        if (!signal.aborted) settle(signal, Math.min(delay * 2 || 500, LONGEST_DELAY_MS));
    }

    $('earlier').addEventListener('click', () => {
        if (next) loadEarlier(next);
        next = null; // One click, one page.
    });

    return room;
})();
