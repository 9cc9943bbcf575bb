'use strict';

/*
 * Which server the page talks to and as whom, and the dialog that changes it. Kept in this browser.
 * Uses elements.js.
 *
 *     await settings.ready;                // before the first use
 *     const { server, org, user, token, sim } = settings.current;
 *     settings.onchange = () => …          // others were saved
 */
const settings = (() => {
    // Beside each other under paths of one host, two of these pages have settings of their own.
    const STORAGE_KEY = `streaming-chat.settings${location.pathname.replace(/\/[^/]*$/, '')}`;
    const UUID = /^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$/i;

    const defaults = {
        server: 'http://localhost:3000',
        org: '00000000-0000-0000-0000-000000000001',
        user: '00000000-0000-0000-0000-000000000002',
        token: '',
        sim: '', // what the simulated model is told to do, where the server lets it be told
    };

    const room = { UUID, current: { ...defaults }, ready: findDefaults(), open, onchange() {} };

    async function findDefaults() {
        // Where the page is, which may be under a path.
        if (await servedByChatServer()) defaults.server = new URL('.', location.href).href.replace(/\/$/, '');
        use(stored() ?? { ...defaults });
    }

    /** Tell the chat server itself from another one that only serves these files: it names its requests. */
    async function servedByChatServer() {
        if (!location.protocol.startsWith('http')) return false;
        const response = await fetch(location.pathname, { method: 'HEAD', cache: 'no-store' }).catch(() => null);
        return response?.headers.has('x-request-id') ?? false;
    }

    function isServer(text) {
        try {
            const { protocol, search, hash } = new URL(text);
            return /^https?:$/.test(protocol) && !search && !hash;
        } catch {
            return false;
        }
    }

    /** Return what is wrong with each setting, {} if nothing. */
    function mistakes({ server, org, user, token }) {
        const found = {};
        if (!isServer(server)) found.server = `Expected an address like ${defaults.server}.`;
        // With a token the ids are not sent.
        if (!token && !UUID.test(org)) found.org = `Expected a UUID like ${defaults.org}.`;
        if (!token && !UUID.test(user)) found.user = `Expected a UUID like ${defaults.user}.`;
        if (!/^[!-~]*$/.test(token)) found.token = 'Expected only the token: ASCII, no blanks, no “Bearer” before it.';
        return found;
    }

    function stored() {
        try {
            const values = { ...defaults, ...JSON.parse(localStorage.getItem(STORAGE_KEY)) };
            return Object.keys(mistakes(values)).length === 0 ? values : null;
        } catch {
            return null; // No storage, or nothing of ours in it.
        }
    }

    function store(values) {
        try {
            localStorage.setItem(STORAGE_KEY, JSON.stringify(values));
        } catch {
            // Without storage they last as long as the page.
        }
    }

    function use(values) {
        room.current = values;
        $('account').textContent = values.server.replace(/^https?:\/\//i, '');
    }

    // ---- The dialog

    function open() {
        fill(room.current);
        $('settings').showModal();
    }

    function fill(values) {
        for (const name in defaults) $(name).value = values[name];
        showMistakes({});
    }

    function showMistakes(found) {
        for (const name in defaults) {
            $(name).setAttribute('aria-invalid', String(name in found));
            $(`${name}-error`).textContent = found[name] ?? '';
        }
        $(Object.keys(found)[0])?.focus();
    }

    $('cancel').addEventListener('click', () => $('settings').close());
    $('defaults').addEventListener('click', () => fill(defaults));
    $('settings-form').addEventListener('submit', (event) => {
        event.preventDefault();
        const values = {};
        for (const name in defaults) values[name] = $(name).value.trim();
        values.server = values.server.replace(/\/+$/, '');
        const found = mistakes(values);
        showMistakes(found);
        if (Object.keys(found).length > 0) return;
        use(values);
        store(values);
        $('settings').close();
        room.onchange();
    });

    return room;
})();
