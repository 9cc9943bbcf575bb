// event-source-polyfill (npm): made for browsers, comes back by itself with its last id in the URL.
Object.assign(globalThis, { window: globalThis, document: { readyState: 'complete' } });
const { EventSourcePolyfill } = (await import('event-source-polyfill')).default;

const { CHAT_URL: base, CHAT_MESSAGE: message, CHAT_SIM: sim, CHAT_STOP_AFTER: stopAfter = Infinity } = process.env;
const { CHAT_ORG: orgId, CHAT_USER: userId, CHAT_KEY: key, CHAT_SILENCE_S: silence = 30 } = process.env;
const headers = { 'x-org-id': orgId, 'x-user-id': userId, 'idempotency-key': key };
const query = new URLSearchParams({ message, sim, orgId, userId });
let [text, stopping, tries] = ['', null, 0];

function stop(id) {
    if (text.length >= stopAfter) stopping ??= fetch(`${base}/chat/stream/${id}`, { method: 'DELETE', headers });
}

function end(last) {
    process.stdout.write(text, () => process.exit(last?.chars === [...text].length ? 0 : 3));
}

(function listen() {
    const options = { headers, heartbeatTimeout: silence * 1000 };
    const source = new EventSourcePolyfill(`${base}/chat/stream?${query}`, options);
    source.onopen = (opened) => stop(opened.headers.get('x-message-id'));
    source.onmessage = ({ data, lastEventId }) => {
        const event = JSON.parse(data);
        if (event.done || (event.error && event.error !== 'Cut short')) end(event, source.close());
        if (event.token) [text, tries] = [text + event.token, 0];
        stop(lastEventId.split(':')[0]);
    };
    source.onerror = ({ status, headers: answered }) => {
        if (source.readyState !== EventSourcePolyfill.CLOSED) return; // it comes back
        if (![429, 502, 503, 504].includes(status) || (tries += 1) > 8) end(null);
        else setTimeout(listen, Number(answered.get('retry-after')) * 1000);
    };
})();
