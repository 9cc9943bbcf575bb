'use strict';

/*
 * What the server has stored of the chat that is open.
 * Uses elements.js, requests.js, composer.js, notice.js, thread.js.
 *
 *     past.open(chatId)                    // null: a new chat, which gets its id later: past.chat = …
 *     await past.ready();                  // what is stored is shown, or Failure is raised
 *     past.catchUp();                      // show what was said elsewhere since; past.ready() waits for it
 *     past.onrunning = (message) => …      // its last reply still runs
 *     past.onmissing = (failure) => …      // there is no such chat, or not any more
 *     past.onnews = () => …                // something was said elsewhere, and is shown
 */
const past = (() => {
    const PAGE_SIZE = 50;
    const LONGEST_DELAY_MS = 8000;
    const CATCH_UP_MS = 5000; // What was said elsewhere is looked for no more often.

    let visit = new AbortController();
    let next = null;
    let loaded = null; // a promise while there is something to wait for
    let missed = null; // why it could not be loaded
    let catchUpAt = Infinity; // not sooner; Infinity: not before something is loaded, or not at all

    const room = {
        chat: null,

        /** What begins with a chat ends with it. */
        get signal() {
            return visit.signal;
        },

        open(chat) {
            begin();
            room.chat = chat;
            $('earlier').hidden = true;
            missed = null;
            catchUpAt = chat ? Infinity : 0;
            loaded = chat && load();
        },

        ready,
        catchUp,
        look,
        settle,
        onrunning() {},
        onmissing() {},
        onnews() {},
    };

    /** What was asked for is not wanted any more. */
    function begin() {
        visit.abort();
        visit = new AbortController();
        setLoading(false);
        $('earlier-notice').replaceChildren();
    }

    const setLoading = (wanted) => thread.messages.setAttribute('aria-busy', String(wanted));

    async function load() {
        const { signal } = visit;
        missed = null;
        setLoading(true);
        try {
            const page = await fetchPage(signal);
            turnTo(page);
            thread.prepend(page.messages);
            catchUpAt = performance.now() + CATCH_UP_MS;
            const last = page.messages.at(-1);
            composer.forget(page.messages.filter(({ role }) => role === 'user').at(-1)?.content);
            if (last?.status === 'streaming') room.onrunning(last);
            settle(signal, 500);
        } catch (error) {
            if (signal.aborted) return;
            if (error.status === 404) {
                lose(error);
            } else {
                missed = error;
                showNotice($('notice'), error, { Retry: () => (loaded = load()) });
            }
        } finally {
            if (!signal.aborted) setLoading(false);
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
            const page = await fetchPage(signal, { before });
            turnTo(page);
            thread.follow(false);
            thread.prepend(page.messages);
            thread.scroller.focus({ preventScroll: true });
        } catch (error) {
            if (signal.aborted) return;
            next = before;
            showNotice($('earlier-notice'), error, { Retry: () => $('earlier').click() });
        }
    }

    const fetchPage = (signal, query = {}) =>
        requestJson(`/chats/${room.chat}/messages?${new URLSearchParams({ limit: PAGE_SIZE, ...query })}`, { signal });

    /** What is before this page can be had. */
    function turnTo(page) {
        next = page.next;
        $('earlier').hidden = next === null;
    }

    /** The chat is not there, or not any more: nothing more is to be had of it. */
    function lose(error) {
        catchUpAt = Infinity;
        for (const item of unsettled()) thread.mark(item, 'unread');
        room.onmissing(error);
    }

    // ---- What goes on elsewhere

    function catchUp() {
        if (!room.chat || performance.now() < catchUpAt) return;
        catchUpAt = Infinity; // Not twice at a time.
        loaded = compare(visit.signal);
    }

    /** Show the chat as it is, if its last message is not the one that is shown. */
    async function compare(signal) {
        const known = thread.lastStored()?.id;
        let page = null;
        try {
            const [last] = (await fetchPage(signal, { limit: 1 })).messages;
            if (last?.message_id !== known) page = await fetchPage(signal);
        } catch (error) {
            if (signal.aborted) return;
            if (error.status === 404) {
                lose(error);
                return;
            }
            // What one does next tells why.
        }
        catchUpAt = performance.now() + CATCH_UP_MS;
        if (page) show(page, known);
    }

    function show(page, known) {
        // Something was asked here meanwhile, in the place of something else.
        if (thread.lastStored()?.id !== known) return;
        if (!thread.renew(page.messages)) {
            begin(); // An earlier page that is still to come was before what is gone.
            turnTo(page);
        }
        const last = page.messages.at(-1);
        if (last?.status === 'streaming') room.onrunning(last);
        room.onnews(); // Not before that, which clears what is to be read aloud.
        settle(visit.signal, 500);
    }

    const unsettled = () => thread.messages.querySelectorAll('li[data-status=streaming]');

    /** Look how replies have ended that nobody reads here. */
    async function look(signal) {
        const awaited = new Set(unsettled()); // One that came since may be in no answer yet.
        const { messages } = await fetchPage(signal);
        messages.forEach(thread.update);
        // What another window has replaced has no end.
        for (const item of unsettled())
            if (awaited.has(item) && !messages.some(({ message_id: id }) => id === item.id)) thread.mark(item, 'unread');
    }

    /** Look again and again, ever more seldom. */
    async function settle(signal, delay) {
        if (unsettled().length === 0) return;
        await new Promise((resolve) => setTimeout(resolve, delay));
        try {
            if (!signal.aborted) await look(signal);
        } catch (error) {
            if (!signal.aborted && error.status === 404) lose(error);
        }
        if (!signal.aborted) settle(signal, Math.min(delay * 2 || 500, LONGEST_DELAY_MS));
    }

    $('earlier').addEventListener('click', () => {
        if (next) loadEarlier(next);
        next = null; // One click, one page.
    });

    return room;
})();
