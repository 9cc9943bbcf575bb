'use strict';

// ---- Elements. All text of users and models goes through textContent; no markup is made from strings.

const $ = (id) => document.getElementById(id);

function el(tag, props, ...children) {
    const element = Object.assign(document.createElement(tag), props);
    element.append(...children);
    return element;
}

/** Set a text; not again where it is there already, which a screen reader may read again. */
function write(element, text) {
    if (element.textContent !== text) element.textContent = text;
}

const scroller = $('scroller');
const messages = $('messages');
const input = $('message');
const side = $('side');
const drawer = $('drawer');

// ---- Settings

// Beside each other under paths of one host, two of these pages have settings of their own.
const STORAGE_KEY = `streaming-chat.settings${location.pathname.replace(/\/[^/]*$/, '')}`;
const UUID = /^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$/i;

const defaults = {
    server: 'http://localhost:3000',
    org: '00000000-0000-0000-0000-000000000001',
    user: '00000000-0000-0000-0000-000000000002',
    token: '',
};
let config = { ...defaults };

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

function storedSettings() {
    try {
        const stored = { ...defaults, ...JSON.parse(localStorage.getItem(STORAGE_KEY)) };
        return Object.keys(mistakes(stored)).length === 0 ? stored : null;
    } catch {
        return null; // No storage, or nothing of ours in it.
    }
}

function useSettings(values) {
    config = values;
    $('account').textContent = values.server.replace(/^https?:\/\//i, '');
}

const configured = servedByChatServer().then((served) => {
    // Where the page is, which may be under a path.
    if (served) defaults.server = new URL('.', location.href).href.replace(/\/$/, '');
    useSettings(storedSettings() ?? { ...defaults });
});

function fillSettings(values) {
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

$('open-settings').addEventListener('click', () => {
    drawer.close();
    fillSettings(config);
    $('settings').showModal();
});
$('cancel').addEventListener('click', () => $('settings').close());
$('defaults').addEventListener('click', () => fillSettings(defaults));
$('settings-form').addEventListener('submit', (event) => {
    event.preventDefault();
    const values = {};
    for (const name in defaults) values[name] = $(name).value.trim();
    values.server = values.server.replace(/\/+$/, '');
    const found = mistakes(values);
    showMistakes(found);
    if (Object.keys(found).length > 0) return;
    useSettings(values);
    try {
        localStorage.setItem(STORAGE_KEY, JSON.stringify(values));
    } catch {
        // Without storage they last as long as the page.
    }
    $('settings').close();
    $('chats').replaceChildren();
    loadChats();
    // A message that is not sent yet stays, to be tried again with the new settings.
    if (chat && !messages.querySelector('[data-status=unsent]')) openChat(chat);
});

// ---- Requests

/** What is shown of an error, in the server's own words where it has said something. */
class Failure extends Error {
    constructor(title, message, { requestId = null, status = 0 } = {}) {
        super(message);
        Object.assign(this, { title, requestId, status });
    }
}

async function request(path, options = {}) {
    await configured;
    const { org, user, token } = config;
    const who = token ? { authorization: `Bearer ${token}` } : { 'x-org-id': org, 'x-user-id': user };
    const headers = { ...who, ...options.headers };
    let response;
    try {
        response = await fetch(config.server + path, { cache: 'no-store', credentials: 'omit', ...options, headers });
    } catch (error) {
        if (error.name === 'AbortError') throw error;
        const { origin } = location;
        const foreign = new URL(config.server).origin !== origin;
        const hint = foreign ? `, and is ${origin === 'file://' ? 'null' : origin} in its CORS_ORIGINS?` : '?';
        throw new Failure('No connection', `${config.server} does not answer. Is the server running${hint}`);
    }
    if (response.ok) return response;
    const body = Object(await response.json().catch(() => null));
    throw new Failure(
        body.error ?? `HTTP ${response.status}`,
        body.message ?? `The server answered with status ${response.status} ${response.statusText}.`,
        { requestId: body.requestId ?? response.headers.get('x-request-id'), status: response.status },
    );
}

async function requestJson(path, options) {
    const response = await request(path, options);
    try {
        return await response.json();
    } catch (error) {
        if (error.name === 'AbortError') throw error;
        throw new Failure('Not JSON', `${config.server} answered with something else. Is it a chat server?`);
    }
}

/** Show a failure in `place`, with a button for each of `actions`; each makes the notice go away first. */
function showNotice(place, failure, actions = {}) {
    const notice = el('div', { className: 'notice' });
    notice.setAttribute('role', 'alert');
    notice.append(el('strong', {}, failure.title ?? 'Error'), el('p', {}, failure.message));
    if (failure.requestId) notice.append(el('p', { className: 'request' }, 'Request id ', el('code', {}, failure.requestId)));
    for (const [name, action] of Object.entries(actions)) {
        const button = el('button', { type: 'button', className: 'button' }, name);
        button.addEventListener('click', () => {
            place.replaceChildren();
            input.focus();
            action();
        });
        notice.append(button);
    }
    place.replaceChildren(notice);
}

/** The stream broke off before the reply was complete: the rest can be had. */
class Lost extends Failure {}

// ---- Scrolling: keep to the end of the messages unless the reader has scrolled up.

const AT_END_PX = 2; // Heights are rounded, and in a zoomed page positions are fractions.
const NEAR_END_PX = 64; // Who goes to the end, and glides, finds that it has gone on by some lines.
const TREMOR_PX = 4;

let following = true;
let lastTop = 0; // Where we have put the messages, or the reader has.

const belowPx = () => scroller.scrollHeight - scroller.clientHeight - scroller.scrollTop;

function follow(wanted) {
    following = wanted;
    $('jump').hidden = wanted;
    if (wanted) scrollToPx(scroller.scrollHeight);
}

/** Scroll as far as it goes; from there on, what is higher up is the reader's doing. */
function scrollToPx(top) {
    scroller.scrollTop = top;
    lastTop = scroller.scrollTop;
}

// The event comes a frame later. By then the text may have grown, or the meter or a keyboard taken room: the end is
// elsewhere, but nobody has moved. A browser that gets room back moves up by itself, but then it is at the end.
scroller.addEventListener('scroll', () => {
    const downPx = scroller.scrollTop - lastTop;
    if (following && downPx < -1 && belowPx() > AT_END_PX) follow(false);
    else if (!following && belowPx() < (downPx > TREMOR_PX ? NEAR_END_PX : AT_END_PX)) follow(true);
    if (!following) lastTop = scroller.scrollTop;
});
const growth = new ResizeObserver(() => {
    if (following || belowPx() < AT_END_PX) follow(true);
});
growth.observe(scroller);
growth.observe($('thread'));

$('jump').addEventListener('click', () => {
    follow(true);
    input.focus();
});

// ---- Messages

const STATUS_TEXT = {
    streaming: 'Still being written…',
    disconnected: 'Left before the end',
    failed: 'Failed before the end',
    interrupted: 'Interrupted: the server stopped before the end',
    stopped: 'Stopped',
    resuming: 'Connection lost; going on where it broke…',
    busy: 'One moment; the reply goes on by itself…',
    stopping: 'Stopping…',
    unread: 'Not read to the end',
    unsent: 'Not sent',
};

function messageItem({ message_id: id = '', role, content, status = 'complete' }) {
    const who = el('span', { className: 'unseen', textContent: role === 'user' ? 'You: ' : 'Reply: ' });
    const text = el('div', { className: 'text', dir: 'auto', textContent: content });
    const item = el('li', { id, className: role }, who, text, el('p', { className: 'status' }));
    mark(item, status);
    return item;
}

function mark(item, status, note = STATUS_TEXT[status] ?? '') {
    item.dataset.status = status;
    item.querySelector('.status').textContent = note;
}

/** A reply as it arrives. The page is touched once a frame, however fast the tokens come. */
class LiveReply {
    constructor(content = '') {
        this.item = messageItem({ role: 'assistant', content: '', status: 'streaming' });
        mark(this.item, 'live');
        this.text = content;
        this.node = document.createTextNode(content);
        this.item.querySelector('.text').append(this.node);
        this.unshown = this.unsaid = '';
        this.frame = 0;
    }

    add(token) {
        this.text += token;
        this.unshown += token;
        this.frame ||= requestAnimationFrame(() => this.show());
    }

    show() {
        cancelAnimationFrame(this.frame);
        this.frame = 0;
        if (this.unshown && this.item.dataset.status === 'resuming') mark(this.item, 'live');
        this.node.appendData(this.unshown);
        this.unsaid += this.unshown;
        this.unshown = '';
        const sentences = /^[^]*[.!?…。！？]["”’)]*\s/.exec(this.unsaid)?.[0];
        if (sentences) this.say(sentences);
        meter.draw();
    }

    say(text) {
        this.unsaid = this.unsaid.slice(text.length);
        if (this.item.isConnected) announce(text);
    }

    /** Tell that it is interrupted, aloud only once. */
    wait(note) {
        this.show();
        if (this.item.dataset.status !== 'resuming') announce(note);
        mark(this.item, 'resuming', note);
    }

    end(status, note) {
        this.show();
        mark(this.item, status, note);
        this.say(this.unsaid);
        announce(this.item.querySelector('.status').textContent);
    }
}

function announce(text) {
    if (text.trim()) $('live').append(el('p', { textContent: text }));
}

// ---- The meter: when the tokens of the current reply got here, by the reads from the network.

// So many tokens in one read, after such a silence: no model speaks like that, but a buffer does.
const BURST_TOKENS = 5;
const BURST_SILENCE_MS = 250;
const BAR_PX = 5;

const meter = {
    /** `joined`: the reply was asked for before, or by another window. */
    begin(joined) {
        this.joined = joined;
        this.sentAt = this.readAt = performance.now();
        this.firstAt = this.tokenAt = null;
        this.tokens = this.untimedTokens = this.burstTokens = 0;
        this.catchingUp = false;
        this.gaps = [];
        this.longest = 0;
        this.worst = null;
        $('meter').hidden = false;
        write($('joined'), joined ? ' in this window' : '');
        this.draw();
    },

    /** The silence while there was no connection is nobody's buffering, nor is what was said meanwhile. */
    resume() {
        this.readAt = performance.now();
        this.catchingUp = true;
    },

    read(at, tokens) {
        const silence = at - this.readAt;
        this.readAt = at;
        if (tokens === 0) return;
        this.tokens += tokens;
        const first = this.firstAt === null;
        if (first) this.firstAt = at;
        if (first || this.catchingUp) this.untimedTokens += tokens;
        if (!this.catchingUp) this.time(at, tokens, silence, first);
        this.catchingUp = false;
        this.tokenAt = at;
    },

    time(at, tokens, silence, first) {
        // A page in the background reads late by itself.
        const burst = tokens >= BURST_TOKENS && silence >= BURST_SILENCE_MS && !document.hidden;
        if (burst) {
            this.burstTokens += tokens;
            if (tokens > (this.worst?.tokens ?? 0)) this.worst = { tokens, silence };
        }
        // The wait for the first token has a figure of its own; in the plot it is of use only if it was a burst.
        if (burst || !first) {
            const ms = at - (this.tokenAt ?? this.sentAt);
            this.gaps.push({ ms, burst });
            this.longest = Math.max(this.longest, ms);
        }
        for (let i = 1; i < tokens; i += 1) this.gaps.push({ ms: 0, burst });
    },

    draw() {
        if ($('meter').hidden) return;
        const seconds = (this.tokenAt - this.firstAt) / 1000;
        write($('first'), this.firstAt === null || this.joined ? '–' : inMs(this.firstAt - this.sentAt));
        write($('count'), String(this.tokens));
        write($('rate'), seconds > 0 ? ((this.tokens - this.untimedTokens) / seconds).toFixed(1) : '–');
        write($('longest'), this.gaps.length > 0 ? inMs(this.longest) : '–');
        // One hiccup of a network is no buffering; most of the reply in bursts is.
        const { worst } = this;
        const buffered = worst !== null && this.burstTokens * 2 >= this.tokens;
        write($('burst'), buffered
            ? `${worst.tokens} words arrived at once after ${inMs(worst.silence)} of silence: ` +
              'something between you and the server, likely a proxy, is buffering.'
            : '');
        this.drawGaps();
    },

    drawGaps() {
        const plot = $('plot');
        const { clientWidth: width, clientHeight: height } = plot;
        const top = roundUp(Math.max(this.longest, 40));
        const paths = { gaps: '', bursts: '' };
        this.gaps.slice(-Math.floor(width / BAR_PX)).forEach(({ ms, burst }, i) => {
            const length = Math.max(1.5, (ms / top) * (height - 1));
            paths[burst ? 'bursts' : 'gaps'] += `M${(i + 0.5) * BAR_PX} ${height}v${-length.toFixed(1)}`;
        });
        plot.querySelector('.grid').setAttribute('d', `M0 .5H${width}M0 ${height / 2}H${width}M0 ${height - 0.5}H${width}`);
        for (const [name, path] of Object.entries(paths)) plot.querySelector(`.${name}`).setAttribute('d', path);
        plot.setAttribute('aria-label', `${this.gaps.length} gaps, the longest ${inMs(this.longest)}`);
        write($('scale'), inMs(top));
    },
};
new ResizeObserver(() => meter.draw()).observe($('plot'));

const inMs = (ms) => (ms < 9999.5 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);

/** Return the next of 10, 20, 50, 100, 200 … */
function roundUp(value) {
    const power = 10 ** Math.floor(Math.log10(value));
    return power * [1, 2, 5, 10].find((step) => step * power >= value);
}

// ---- A turn: one message sent, one reply streamed. A lost connection is made again, and goes on where it broke.

// After the last of them, a server that does not answer is given up; one that does is asked again and again.
const RESUME_DELAYS_MS = [300, 700, 1500, 3000, 5000, 5000, 5000];
const LONGEST_DELAY_MS = 10_000;
// Of a connection. The server pings every 15 s: one that was not heard of for two of them is dead, though it looks open.
const SILENCE_MS = 32_000;

let turn = null; // the running one

function setTurn(value) {
    const busy = value !== null;
    if (!busy && document.activeElement === $('stop')) input.focus();
    turn = value;
    $('send').hidden = busy;
    $('stop').hidden = !busy;
    write($('busy'), '');
}

/** Leave the turn; its reply is paused, and can be gone on with. */
function leave() {
    const { connection } = turn ?? {};
    setTurn(null);
    connection?.abort();
}

/** Stop the reply itself, in between of what its reader waits for. */
function stop() {
    if (!turn) return;
    turn.stopping = true;
    write(turn.reply.item.querySelector('.status'), STATUS_TEXT.stopping);
    // Before the id of the reply has come there is nothing to stop; it comes with the answer to the question.
    if (turn.replyId) turn.interrupt();
}

const newTurn = (reply, replyId = null) =>
    ({ reply, replyId, connection: new AbortController(), stopping: false, interrupt() {} });

function begin(mine, joined) {
    setTurn(mine);
    for (const place of [$('notice'), $('live')]) place.replaceChildren();
    follow(true);
    meter.begin(joined);
}

const newKey = () => Array.from(crypto.getRandomValues(new Uint32Array(4)), (part) => part.toString(36)).join('-');

/** Make a request of a turn, in place of the one before: browsers have no more than six connections to a host. */
function connect(mine, path, options) {
    const before = mine.connection;
    mine.connection = new AbortController();
    if (turn !== mine) mine.connection.abort();
    // By then this one is the next in line. Streams let all other requests go first, those of other windows too.
    setTimeout(() => before.abort(), 100);
    return heard(mine, request(path, { priority: 'low', ...options, signal: mine.connection.signal }));
}

/** Wait for what is to come on a turn's connection, but not for ever. */
function heard(mine, coming) {
    const { connection } = mine;
    return new Promise((resolve, reject) => {
        mine.interrupt = () => reject(new DOMException('Something else is first.', 'AbortError'));
        const alarm = setTimeout(() => {
            reject(new Lost('No answer', `Nothing has come from ${config.server} for ${SILENCE_MS / 1000} s.`));
            connection.abort();
        }, SILENCE_MS);
        coming.then(resolve, reject).finally(() => clearTimeout(alarm));
    });
}

async function send(message, key = newKey()) {
    if (turn) return;
    const question = messageItem({ role: 'user', content: message });
    const reply = new LiveReply();
    $('welcome').hidden = true;
    messages.append(question, reply.item);
    const mine = newTurn(reply);
    begin(mine, false);
    try {
        // Or else the history that is asked for could hold this turn too.
        await past.loaded;
        if (mine.stopping) throw new Failure('Stopped', 'The message was not sent yet.');
        const response = await connect(mine, '/chat/stream', {
            method: 'POST',
            headers: { 'content-type': 'application/json', 'idempotency-key': key },
            body: JSON.stringify({ message, ...(chat && { chat_id: chat }) }),
        });
        if (turn !== mine) return;
        adopt(response.headers.get('x-chat-id'));
        mine.replyId = response.headers.get('x-message-id');
        await readAll(mine, response, () => send(message));
    } catch (error) {
        // Another chat is open by now.
        if (turn !== mine) return;
        // If something is stored all the same, the next try with its key finds it.
        reply.item.remove();
        $('meter').hidden = true;
        mark(question, 'unsent');
        const again = (next, ...more) => () => {
            question.remove();
            next(message, ...more);
        };
        showNotice($('notice'), error, { Retry: again(send, key), Edit: again(compose) });
    } finally {
        if (turn === mine) setTurn(null);
    }
}

/** Read on a reply that has not ended; `content` is what is stored of it so far. */
async function goOn({ message_id: id, content }) {
    if (turn || !$(id)) return;
    const reply = new LiveReply(content);
    const mine = newTurn(reply, id);
    $(id).replaceWith(reply.item);
    begin(mine, true);
    await readAll(mine);
    if (turn !== mine) return;
    setTurn(null);
    $('meter').hidden = meter.tokens === 0;
}

/** Ask for what is not here yet; return null where there is no more, and never will be. */
async function rest(mine) {
    try {
        const offset = Array.from(mine.reply.text).length;
        const response = await connect(mine, `/chat/stream/${mine.replyId}?offset=${offset}`);
        return response.status === 204 ? null : response;
    } catch (error) {
        // 409: its server died, and what is stored is less than what is here.
        if (error.status === 409) return null;
        throw error;
    }
}

/** Read a reply to its end, over as many connections as it takes; or stop it. */
async function readAll(mine, response, retry = null) {
    const { reply } = mine;
    reply.item.id = mine.replyId ?? '';
    for (let tries = 0, unanswered = 0; ; tries += 1) {
        const had = reply.text.length;
        try {
            if (mine.stopping) {
                response = await connect(mine, `/chat/stream/${mine.replyId}`, { method: 'DELETE', priority: 'high' });
                // The words of the last moment come with the history, which may have to wait for a connection.
                reply.end('streaming', STATUS_TEXT[(await response.json()).status] ?? '');
                settle(past.visit.signal, 0);
                return;
            }
            if (response === undefined) {
                response = await rest(mine);
                meter.resume();
            }
            if (response === null) await lookUp(mine);
            else await read(mine, response);
            return;
        } catch (error) {
            if (turn !== mine) return;
            // Our own: to stop the reply.
            if (error.name !== 'AbortError') {
                if (reply.text.length > had) tries = 0;
                const busy = error.title === 'Cut short' || [429, 503].includes(error.status);
                unanswered = busy || response ? 0 : unanswered + 1;
                const away = error instanceof Lost || error.title === 'No connection' || [502, 504].includes(error.status);
                if (!(busy || away) || !mine.replyId || unanswered >= RESUME_DELAYS_MS.length) {
                    await giveUp(mine, error, retry);
                    return;
                }
                reply.wait(STATUS_TEXT[mine.stopping ? 'stopping' : busy ? 'busy' : 'resuming']);
                await pause(mine, RESUME_DELAYS_MS[tries] ?? LONGEST_DELAY_MS);
            }
            response = undefined;
        }
    }
}

/** Wait, but no longer than there is reason to. */
function pause(mine, delay) {
    return new Promise((resolve) => {
        mine.interrupt = resolve;
        setTimeout(resolve, delay);
        addEventListener('online', resolve, { once: true });
    });
}

/** End a reply that is not read to its end, and say why. */
async function giveUp(mine, error, retry) {
    if (error.title === 'Stopped') {
        mine.reply.end('stopped');
        return;
    }
    // What was taken back is in no history.
    if (mine.replyId && error.title !== 'Not stored') await lookUp(mine);
    else mine.reply.end('unread');
    // Less was stored than is here: no reason to ask again.
    if (turn === mine && error.title !== 'Bad offset') showNotice($('notice'), error, retry ? { Retry: retry } : {});
}

/** End a reply as the history says, now or later: its stream does not tell how it has ended, or will. */
async function lookUp({ reply, replyId }) {
    const { signal } = past.visit;
    reply.end('streaming', '');
    await look(signal).catch(() => {});
    if (signal.aborted) return;
    const item = $(replyId);
    if (item.dataset.status === 'streaming') mark(item, 'streaming', STATUS_TEXT.unread);
    announce(item.querySelector('.status').textContent);
    settle(signal, 500);
}

/** Read the event stream of a reply to its end; raise Failure where it does not end well. */
async function read(mine, response) {
    const { reply } = mine;
    const requestId = response.headers.get('x-request-id');
    const type = response.headers.get('content-type') ?? 'nothing';
    if (!type.startsWith('text/event-stream'))
        throw new Failure('Not a stream', `The server sent ${type}, expected text/event-stream.`, { requestId });
    const parser = new SseParser();
    const reader = response.body.getReader();
    for (;;) {
        const { done, value } = await heard(mine, reader.read()).catch((error) => {
            if (error.name === 'AbortError' || error instanceof Lost) throw error;
            throw new Lost('Connection lost', 'The connection broke before the reply was complete.', { requestId });
        });
        if (done) throw new Lost('Stream cut short', 'The stream ended before the reply was complete.', { requestId });
        const at = performance.now();
        let tokens = 0;
        for (const event of parser.push(value)) {
            const { error, message, token, done: last, fullText } = parseEvent(event, requestId);
            if (error) {
                meter.read(at, tokens);
                throw new (error === 'Cut short' ? Lost : Failure)(error, message, { requestId });
            }
            if (last) {
                meter.read(at, tokens);
                reader.read().catch(() => {}); // Past the end, so that the connection can be used again.
                await finish(reply, fullText, event.data);
                return;
            }
            if (typeof token !== 'string') continue;
            reply.add(token);
            // A token is a word; the white space before it has an event of its own.
            if (token.trim()) tokens += 1;
        }
        meter.read(at, tokens);
    }
}

function parseEvent({ data }, requestId) {
    try {
        return Object(JSON.parse(data));
    } catch {
        throw new Failure('Not JSON', 'The stream holds an event that is not JSON.', { requestId });
    }
}

/** Compare the tokens with what the server says they are together, and what it has stored. */
async function finish(reply, fullText, data) {
    const { text } = reply;
    if (text === fullText && (await matches(text, JSON.parse(data)))) {
        reply.end('complete', `Complete: ${Array.from(text).length} characters, equal to fullText`);
        return;
    }
    let same = 0;
    while (same < text.length && text[same] === fullText[same]) same += 1;
    reply.show();
    reply.node.data = fullText;
    reply.end('differs', `The tokens differ from fullText from character ${same + 1} on; fullText is shown`);
}

async function matches(text, { chars, sha256 }) {
    if (Array.from(text).length !== chars) return false;
    // Without TLS, a page from another machine has no such digest.
    if (!crypto.subtle) return true;
    const digest = await crypto.subtle.digest('SHA-256', new TextEncoder().encode(text));
    return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, '0')).join('') === sha256;
}

// ---- The chat that is open. Its id is the fragment of the address, so that reload, back and links work.

let chat = null;
const past = { loaded: null, next: null, visit: new AbortController() };

const chatInAddress = () => (UUID.test(location.hash.slice(1)) ? location.hash.slice(1).toLowerCase() : null);

function openChat(id) {
    leave();
    past.visit.abort();
    past.visit = new AbortController();
    chat = id;
    for (const place of [messages, $('notice'), $('earlier-notice'), $('live')]) place.replaceChildren();
    $('meter').hidden = true;
    $('earlier').hidden = true;
    $('welcome').hidden = id !== null;
    showCurrent();
    follow(true);
    past.loaded = id && loadMessages();
}

/** A new chat has got its id. What it is called, the list of chats knows. */
function adopt(id) {
    if (id === null || id === chat) return;
    chat = id;
    history.replaceState(null, '', `#${id}`);
    loadChats();
}

async function loadMessages(before = null) {
    const { signal } = past.visit;
    try {
        const query = before ? `&before=${before}` : '';
        const page = await requestJson(`/chats/${chat}/messages?limit=50${query}`, { signal });
        const fromEnd = scroller.scrollHeight - scroller.scrollTop;
        messages.prepend(...page.messages.map(messageItem));
        past.next = page.next;
        $('earlier').hidden = page.next === null;
        if (before) {
            // What was read stays where it was.
            follow(false);
            scrollToPx(scroller.scrollHeight - fromEnd);
            scroller.focus({ preventScroll: true });
        }
        if (!before) {
            const last = page.messages.at(-1);
            if (last?.status === 'streaming') goOn(last);
            settle(signal, 500);
        }
    } catch (error) {
        if (signal.aborted) return;
        if (error.status === 404 && !before) {
            // What is sent now starts a new one.
            chat = null;
            history.replaceState(null, '', '#');
            showCurrent();
            showNotice($('notice'), error);
        } else if (before) {
            showNotice($('earlier-notice'), error, { Retry: () => loadMessages(before) });
        } else {
            showNotice($('notice'), error, { Retry: () => (past.loaded = loadMessages()) });
        }
    }
}

/** Look how replies have ended that nobody reads here. */
async function look(signal) {
    const page = await requestJson(`/chats/${chat}/messages?limit=50`, { signal });
    for (const message of page.messages) {
        const item = $(message.message_id);
        if (item?.dataset.status !== 'streaming' || message.status === 'streaming') continue;
        // What was read is not taken away, even where less is stored.
        if (message.content.length <= item.querySelector('.text').textContent.length) mark(item, message.status);
        else item.replaceWith(messageItem(message));
    }
}

/** Look again and again, ever more seldom. */
async function settle(signal, delay) {
    if (!messages.querySelector('li[data-status=streaming]')) return;
    await new Promise((resolve) => setTimeout(resolve, delay));
    if (!signal.aborted) await look(signal).catch(() => {});
    if (!signal.aborted) settle(signal, Math.min(delay * 2 || 500, 8000));
}

$('earlier').addEventListener('click', () => {
    if (past.next) loadMessages(past.next);
    past.next = null; // One click, one page.
});

// ---- The list of chats

let nextChats = null;

function chatItem({ chat_id: id, title, created_at: createdAt }) {
    const made = new Date(createdAt);
    const today = made.toDateString() === new Date().toDateString();
    const when = made.toLocaleString(undefined, today ? { timeStyle: 'short' } : { dateStyle: 'medium' });
    const name = el('span', { dir: 'auto', textContent: title });
    const time = el('time', { dateTime: made.toISOString(), textContent: when });
    return el('li', {}, el('a', { href: `#${id}`, title }, name, time));
}

async function loadChats(before = null) {
    await configured;
    const from = config;
    try {
        const page = await requestJson(`/chats?limit=30${before ? `&before=${before}` : ''}`);
        if (from !== config) return;
        // One that was started meanwhile is there already.
        const items = page.chats.map(chatItem).filter((item) => !linkTo(item.firstChild.hash));
        if (!before && $('chats').hasChildNodes()) {
            $('chats').prepend(...items);
        } else {
            $('chats').append(...items);
            nextChats = page.next;
        }
        if (before) items[0]?.firstChild.focus();
        $('more-chats').hidden = nextChats === null;
        $('no-chats').hidden = $('chats').firstChild !== null;
        $('chats-notice').replaceChildren();
        showCurrent();
    } catch (error) {
        if (from !== config) return;
        $('more-chats').hidden = true;
        $('no-chats').hidden = true;
        showNotice($('chats-notice'), error, { Retry: () => loadChats(before) });
    }
}

const linkTo = (hash) => $('chats').querySelector(`a[href="${hash}"]`);

function showCurrent() {
    for (const link of $('chats').querySelectorAll('a'))
        link.setAttribute('aria-current', link.hash === `#${chat}` ? 'page' : 'false');
    $('title').textContent = chat === null ? 'New chat' : (linkTo(`#${chat}`)?.title ?? 'Chat');
    document.title = chat === null ? 'Streaming chat' : `${$('title').textContent} – Streaming chat`;
}

// Beside the messages on a wide screen, in a drawer on a narrow one.
const wide = matchMedia('(min-width: 56rem)');

function placeSide() {
    drawer.close();
    if (wide.matches) document.querySelector('main').before(side);
    else drawer.append(side);
}

function newChat() {
    drawer.close();
    if (location.hash) history.pushState(null, '', location.pathname + location.search);
    openChat(null);
    input.focus();
}

$('more-chats').addEventListener('click', () => {
    if (nextChats) loadChats(nextChats);
    nextChats = null;
});
$('new-chat').addEventListener('click', newChat);
$('new-chat-narrow').addEventListener('click', newChat);
$('chats').addEventListener('click', (event) => {
    if (event.target.closest('a')) drawer.close();
});
$('open-drawer').addEventListener('click', () => drawer.showModal());
drawer.addEventListener('click', (event) => {
    if (event.target === drawer) drawer.close(); // Beside it.
});
wide.addEventListener('change', placeSide);
placeSide();
addEventListener('hashchange', () => {
    if (chatInAddress() !== chat) openChat(chatInAddress());
});

// ---- Composer and keys

function fit() {
    const { scrollTop } = scroller;
    input.style.height = 'auto';
    input.style.height = `${input.scrollHeight}px`;
    // While the field was low the messages had more room, and may have moved.
    scroller.scrollTop = scrollTop;
}

function compose(text) {
    input.value = text;
    fit();
    input.focus();
}

function submit() {
    const message = input.value;
    if (!message.trim()) return;
    if (turn) {
        write($('busy'), 'One reply at a time: wait for its end, or stop it.');
        return;
    }
    compose('');
    send(message);
}

$('composer').addEventListener('submit', (event) => {
    event.preventDefault();
    submit();
});
input.addEventListener('input', fit);
input.addEventListener('keydown', (event) => {
    // An Enter that ends the composition of a character is not for us (229: Safari says so).
    if (event.key !== 'Enter' || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    submit();
});
addEventListener('keydown', (event) => {
    if (event.key === 'Escape' && !event.isComposing && !document.querySelector('dialog[open]')) stop();
});
$('stop').addEventListener('click', stop);
$('skip').addEventListener('click', () => input.focus());
for (const sample of document.querySelectorAll('.samples button'))
    sample.addEventListener('click', () => {
        input.focus();
        send(sample.textContent);
    });

// ---- Start

openChat(chatInAddress());
loadChats();
if (matchMedia('(pointer: fine)').matches) input.focus();
