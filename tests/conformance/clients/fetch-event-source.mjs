// @microsoft/fetch-event-source (npm): made for browsers, and comes back by itself, as onerror says.
Object.assign(globalThis, { window: globalThis, document: { addEventListener() {}, removeEventListener() {} } });
const { fetchEventSource } = await import('@microsoft/fetch-event-source');

const { CHAT_URL: base, CHAT_MESSAGE: message, CHAT_SIM: sim, CHAT_STOP_AFTER: stopAfter = Infinity } = process.env;
const { CHAT_ORG: orgId, CHAT_USER: userId, CHAT_KEY: key } = process.env;
const headers = { 'x-org-id': orgId, 'x-user-id': userId, 'idempotency-key': key };
const query = new URLSearchParams({ message, sim, orgId, userId });
let [id, text, last, stopping, tries] = [null, '', null, null, 0];

class Fatal extends Error {}
const stopNow = () => (stopping ??= fetch(`${base}/chat/stream/${id}`, { method: 'DELETE', headers }));
const stop = () => id && text.length >= stopAfter && stopNow();

await fetchEventSource(`${base}/chat/stream?${query}`, {
    headers,
    openWhenHidden: true,
    async onopen(response) {
        const wait = Number(response.headers.get('retry-after'));
        if ([429, 502, 503, 504].includes(response.status)) throw Object.assign(new Error('busy'), { wait });
        if (response.status !== 200) throw new Fatal(`status ${response.status}`);
        id = response.headers.get('x-message-id');
        stop();
    },
    onmessage({ data }) {
        const event = JSON.parse(data);
        if (event.done || (event.error && event.error !== 'Cut short')) last = event;
        if (event.token) [text, tries] = [text + event.token, 0];
        stop();
    },
    onclose() {
        if (!last) throw new Error('closed'); // come back
    },
    onerror(error) {
        if (last || error instanceof Fatal || (tries += 1) > 5) throw error;
        return error.wait * 1000 || 100 * 2 ** tries;
    },
}).catch((error) => console.error(error.message));
process.stdout.write(text);
process.exitCode = last?.chars === [...text].length ? 0 : 3;
