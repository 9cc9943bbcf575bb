// The client of the README, to the letter, but for how long it takes a silence for a pause.
import { readFileSync } from 'node:fs';

const { CHAT_URL: url, CHAT_MESSAGE: message, CHAT_SIM: sim, CHAT_STOP_AFTER: stopAfter = Infinity } = process.env;
const { CHAT_ORG, CHAT_USER, CHAT_KEY, CHAT_SILENCE_S = 30 } = process.env;

const readme = readFileSync(new URL('../../../README.md', import.meta.url), 'utf8');
const [code] = /^function ask\(.*?^\/\/ '': /ms.exec(readme);
const ask = new Function(`${code.replace('40_000', CHAT_SILENCE_S * 1000)}\nreturn ask;`)();

const ids = { 'x-org-id': CHAT_ORG, 'x-user-id': CHAT_USER, 'idempotency-key': CHAT_KEY };
const reply = ask(url, { ...ids, 'content-type': 'application/json' }, { message, sim });
let text = '';
const stopThere = () => text.length >= stopAfter && reply.stop();
stopThere();
try {
    for await (const token of reply.tokens()) {
        text += token;
        stopThere();
    }
} catch (error) {
    console.error(error);
}
process.stdout.write(text);
process.exitCode = reply.last?.done ? 0 : 3;
