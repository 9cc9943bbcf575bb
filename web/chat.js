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
    begin() {
        this.sentAt = this.readAt = performance.now();
        this.firstAt = this.tokenAt = null;
        this.tokens = this.firstTokens = this.burstTokens = 0;
        this.gaps = [];
        this.longest = 0;
        this.worst = null;
        $('meter').hidden = false;
        this.draw();
    },

    /** The silence while there was no connection is nobody's buffering. */
    resume() {
        this.readAt = performance.now();
    },

    read(at, tokens) {
        const silence = at - this.readAt;
        this.readAt = at;
        if (tokens === 0) return;
        // A page in the background reads late by itself.
        const burst = tokens >= BURST_TOKENS && silence >= BURST_SILENCE_MS && !document.hidden;
        if (burst) {
            this.burstTokens += tokens;
            if (tokens > (this.worst?.tokens ?? 0)) this.worst = { tokens, silence };
        }
        // The wait for the first token has a figure of its own; in the plot it is of use only if it was a burst.
        if (burst || this.firstAt !== null) {
            const ms = at - (this.tokenAt ?? this.sentAt);
            this.gaps.push({ ms, burst });
            this.longest = Math.max(this.longest, ms);
        }
        for (let i = 1; i < tokens; i += 1) this.gaps.push({ ms: 0, burst });
        if (this.firstAt === null) {
            this.firstAt = at;
            this.firstTokens = tokens;
        }
        this.tokenAt = at;
        this.tokens += tokens;
    },

    draw() {
        if ($('meter').hidden) return;
        const seconds = (this.tokenAt - this.firstAt) / 1000;
        write($('first'), this.firstAt === null ? '–' : inMs(this.firstAt - this.sentAt));
        write($('count'), String(this.tokens));
        write($('rate'), seconds > 0 ? ((this.tokens - this.firstTokens) / seconds).toFixed(1) : '–');
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

// After the last of them, a server that is out of reach is given up; one that says itself that the reply may go on is
// asked again and again.
const RESUME_DELAYS_MS = [300, 700, 1500, 3000, 5000, 5000, 5000];
const LONGEST_DELAY_MS = 10_000;

let turn = null; // of the running one: its AbortController, the id of its reply, and that reply

function setTurn(value) {
    const busy = value !== null;
    if (!busy && document.activeElement === $('stop')) input.focus();
    turn = value;
    $('send').hidden = busy;
    $('stop').hidden = !busy;
    write($('busy'), '');
}

/** Leave the turn; its reply is paused, and can be gone on with. */
const leave = () => turn?.abort();

/** Stop the reply itself; the stream's last event then says so. */
async function stop() {
    const mine = turn;
    if (!mine) return;
    if (!mine.replyId) {
        mine.stopped = true;
        mine.abort();
        return;
    }
    write(mine.reply.item.querySelector('.status'), 'Stopping…');
    try {
        await request(`/chat/stream/${mine.replyId}`, { method: 'DELETE' });
        mine.hurry?.();
    } catch {
        // The server is out of reach, so all that we can do is not to listen.
        mine.stopped = true;
        mine.abort();
    }
}

const newTurn = (reply, replyId = null) => Object.assign(new AbortController(), { reply, replyId, stopped: false });

function begin(mine) {
    setTurn(mine);
    for (const place of [$('notice'), $('live')]) place.replaceChildren();
    follow(true);
    meter.begin();
}

const newKey = () => Array.from(crypto.getRandomValues(new Uint32Array(4)), (part) => part.toString(36)).join('-');

async function send(message, key = newKey()) {
    if (turn) return;
    const question = messageItem({ role: 'user', content: message });
    const reply = new LiveReply();
    $('welcome').hidden = true;
    messages.append(question, reply.item);
    const mine = newTurn(reply);
    begin(mine);
    try {
        // Or else the history that is asked for could hold this turn too.
        await past.loaded;
        mine.signal.throwIfAborted();
        const response = await request('/chat/stream', {
            method: 'POST',
            headers: { 'content-type': 'application/json', 'idempotency-key': key },
            body: JSON.stringify({ message, ...(chat && { chat_id: chat }) }),
            signal: mine.signal,
        });
        if (turn !== mine) return;
        adopt(response.headers.get('x-chat-id'), message);
        mine.replyId = response.headers.get('x-message-id');
        await readAll(mine, response, () => send(message));
    } catch (error) {
        // Another chat is open by now.
        if (turn !== mine) return;
        if (error.name === 'AbortError') {
            reply.end('disconnected');
        } else {
            // If something is stored all the same, the next try with its key finds it.
            reply.item.remove();
            $('meter').hidden = true;
            mark(question, 'unsent');
            const again = (next, ...more) => () => {
                question.remove();
                next(message, ...more);
            };
            showNotice($('notice'), error, { Retry: again(send, key), Edit: again(compose) });
        }
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
    begin(mine);
    await readAll(mine);
    if (turn !== mine) return;
    setTurn(null);
    $('meter').hidden = meter.tokens === 0;
}

/** Ask for what is not here yet; return null where there is no more, and never will be. */
async function rest({ reply, replyId, signal }) {
    try {
        const response = await request(`/chat/stream/${replyId}?offset=${Array.from(reply.text).length}`, { signal });
        return response.status === 204 ? null : response;
    } catch (error) {
        // 409: its server died, and what is stored is less than what is here.
        if (error.status === 409) return null;
        throw error;
    }
}

/** Read a reply to its end, over as many connections as it takes. */
async function readAll(mine, response, retry = null) {
    const { reply } = mine;
    reply.item.id = mine.replyId ?? '';
    for (let tries = 0, unanswered = 0; ; tries += 1) {
        const had = reply.text.length;
        try {
            if (response === undefined) {
                response = await rest(mine);
                meter.resume();
            }
            if (response === null) lookUp(reply);
            else await read(response, reply);
            return;
        } catch (error) {
            if (turn !== mine) return;
            if (error.title === 'Stopped' || error.name === 'AbortError') {
                reply.end(error.title === 'Stopped' || mine.stopped ? 'stopped' : 'disconnected');
                return;
            }
            if (error.title === 'Bad offset') {
                // Less was stored than is here.
                lookUp(reply);
                return;
            }
            if (reply.text.length > had) tries = unanswered = 0;
            const busy = error.title === 'Cut short' || error.status === 503;
            unanswered = busy ? 0 : unanswered + 1;
            const away = error instanceof Lost || error.title === 'No connection' || [502, 504].includes(error.status);
            if (!(busy || away) || !mine.replyId || unanswered > RESUME_DELAYS_MS.length) {
                reply.end('failed');
                showNotice($('notice'), error, retry ? { Retry: retry } : {});
                return;
            }
            reply.wait(busy ? 'One moment; the reply goes on by itself…' : STATUS_TEXT.resuming);
            await pause(mine, RESUME_DELAYS_MS[tries] ?? LONGEST_DELAY_MS);
            response = undefined;
        }
    }
}

/** Wait, but no longer than there is reason to. */
function pause(mine, delay) {
    return new Promise((resolve) => {
        mine.hurry = resolve;
        setTimeout(resolve, delay);
        addEventListener('online', resolve, { once: true });
        mine.signal.addEventListener('abort', resolve);
    });
}

/** The stream does not tell how a reply has ended, or will: the history does. */
function lookUp(reply) {
    reply.end('streaming');
    settle(past.visit.signal, 0);
}

/** Read the event stream of a reply to its end; raise Failure where it does not end well. */
async function read(response, reply) {
    const requestId = response.headers.get('x-request-id');
    const type = response.headers.get('content-type') ?? 'nothing';
    if (!type.startsWith('text/event-stream'))
        throw new Failure('Not a stream', `The server sent ${type}, expected text/event-stream.`, { requestId });
    const parser = new SseParser();
    const reader = response.body.getReader();
    for (;;) {
        const { done, value } = await reader.read().catch((error) => {
            if (error.name === 'AbortError') throw error;
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
    setTurn(null);
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

/** A new chat has got its id. */
function adopt(id, message) {
    if (id === null || id === chat) return;
    chat = id;
    history.replaceState(null, '', `#${id}`);
    const title = message.trim().split(/\s+/, 8).join(' ');
    $('chats').prepend(chatItem({ chat_id: id, title, created_at: Date.now() }));
    $('no-chats').hidden = true;
    showCurrent();
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

/** Look again for how replies have ended that nobody reads here. */
async function settle(signal, delay) {
    if (!messages.querySelector('li[data-status=streaming]')) return;
    await new Promise((resolve) => setTimeout(resolve, delay));
    if (signal.aborted) return;
    try {
        const page = await requestJson(`/chats/${chat}/messages?limit=50`, { signal });
        for (const message of page.messages) {
            const item = $(message.message_id);
            if (item?.dataset.status !== 'streaming' || message.status === 'streaming') continue;
            // What was read is not taken away, even where less is stored.
            if (message.content.length < item.querySelector('.text').textContent.length) mark(item, message.status);
            else item.replaceWith(messageItem(message));
        }
    } catch {
        if (signal.aborted) return;
    }
    settle(signal, Math.min(delay * 2 || 500, 8000));
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
        $('chats').append(...items);
        if (before) items[0]?.firstChild.focus();
        nextChats = page.next;
        $('more-chats').hidden = page.next === null;
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
