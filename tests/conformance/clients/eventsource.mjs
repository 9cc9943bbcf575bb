// eventsource (npm), which comes back by itself, with its last id; what it does not come back from is up to its user.
import { EventSource } from 'eventsource';

const { CHAT_URL: base, CHAT_MESSAGE: message, CHAT_SIM: sim, CHAT_STOP_AFTER: stopAfter = Infinity } = process.env;
const headers = { 'x-org-id': process.env.CHAT_ORG, 'x-user-id': process.env.CHAT_USER };
const query = new URLSearchParams({ message, sim, orgId: process.env.CHAT_ORG, userId: process.env.CHAT_USER });
setInterval(() => {}, 60_000); // its timer keeps no process alive
let [text, retryAfter, tries, stopping] = ['', 0, 0, null];

async function ask(url, init) {
    const key = { 'idempotency-key': process.env.CHAT_KEY };
    const response = await fetch(url, { ...init, headers: { ...init.headers, ...headers, ...key } });
    retryAfter = Number(response.headers.get('retry-after'));
    if (stopAfter <= text.length) stop(response.headers.get('x-message-id'));
    return response;
}

function stop(id) {
    stopping ??= fetch(`${base}/chat/stream/${id}`, { method: 'DELETE', headers });
}

function end(last) {
    process.stdout.write(text, () => process.exit(last?.chars === [...text].length ? 0 : 3));
}

(function listen() {
    const source = new EventSource(`${base}/chat/stream?${query}`, { fetch: ask });
    source.onmessage = ({ data, lastEventId }) => {
        const event = JSON.parse(data);
        if (event.done || (event.error && event.error !== 'Cut short')) end(event, source.close());
        text += event.token ?? '';
        if (stopAfter <= text.length) stop(lastEventId.split(':')[0]);
    };
    source.onerror = ({ code }) => {
        if (source.readyState !== EventSource.CLOSED) return; // it comes back
        if (![429, 502, 503, 504].includes(code) || (tries += 1) > 8) end(null);
        else setTimeout(listen, retryAfter * 1000);
    };
})();
