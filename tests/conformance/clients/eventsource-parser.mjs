// fetch, with eventsource-parser (npm).
import { setTimeout as sleep } from 'node:timers/promises';
import { EventSourceParserStream } from 'eventsource-parser/stream';

const { CHAT_URL: base, CHAT_MESSAGE: message, CHAT_SIM: sim, CHAT_STOP_AFTER: stopAfter = Infinity } = process.env;
const { CHAT_ORG: org, CHAT_USER: user, CHAT_KEY: key, CHAT_SILENCE_S: silence = 30 } = process.env;
const headers = { 'x-org-id': org, 'x-user-id': user, 'idempotency-key': key, 'content-type': 'application/json' };
const url = `${base}/chat/stream`;
let [id, text, last, stopping] = [null, '', null, null];
const stopNow = () => (stopping ??= fetch(`${url}/${id}`, { method: 'DELETE', headers }));
const stop = () => id && text.length >= stopAfter && stopNow();

for (let tries = 0; !last && tries < 8; tries += 1) {
    const connection = new AbortController();
    let [wait, alarm] = [0.1 * 2 ** tries, setTimeout(() => connection.abort(), silence * 1000)];
    // Comments count, too: that the server still pings.
    const heard = new TransformStream({ transform: (chunk, to) => to.enqueue(chunk, alarm.refresh()) });
    try {
        const path = id ? `${url}/${id}?offset=${[...text].length}` : url;
        const question = !id && { method: 'POST', body: JSON.stringify({ message, sim }) };
        const response = await fetch(path, { headers, signal: connection.signal, ...question });
        if ([429, 502, 503, 504].includes(response.status)) wait = Number(response.headers.get('retry-after'));
        else if (response.status !== 200) last = { error: response.status };
        else id = response.headers.get('x-message-id');
        stop();
        const events = response.body?.pipeThrough(heard).pipeThrough(new TextDecoderStream());
        for await (const { data } of id && !last ? events.pipeThrough(new EventSourceParserStream()) : []) {
            const event = JSON.parse(data);
            if (event.done || (event.error && event.error !== 'Cut short')) last = event;
            if (event.token) [text, tries] = [text + event.token, 0];
            stop();
        }
    } catch (error) {
        console.error(error.message); // the connection broke: come back
    }
    clearTimeout(alarm);
    if (!last) await sleep(wait * 1000);
}
process.stdout.write(text);
process.exitCode = last?.chars === [...text].length ? 0 : 3;
