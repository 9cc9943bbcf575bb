'use strict';

/*
 * One reply as it is streamed: asked for, gone on with where its connection broke, stopped. No DOM.
 * Uses sse.js, settings.js, requests.js.
 *
 *     const stream = new ReplyStream(listener);                     // or (listener, { replyId, text }) of one that runs
 *     const end = await stream.ask({ message, chat_id }, key);      // or await stream.goOn()
 *
 * `ask` raises Failure where no reply has begun. From then on there is always an end:
 *
 *     { status, stop?, check?, error?, fullText?, behind? }
 *
 * `status` is how the reply has ended, as far as its stream tells: `complete`; `differs`: the words are not those of
 * `fullText`; `stopped` and others; `unread`: it is lost; null: the history knows, or will; `left`: nobody cares.
 * `stop` is how the model has: `end`, `length`, `refusal`. `check` says what the words were compared with. `behind`: more may
 * be stored than was read. `error` is to be told.
 */

/** The stream broke off before the reply was complete: the rest can be had. */
class Lost extends Failure {}

const ReplyStream = (() => {
    // After the last of them, a server that does not answer is given up; one that does is asked again and again.
    const RESUME_DELAYS_MS = [300, 700, 1500, 3000, 5000, 5000, 5000];
    const LONGEST_DELAY_MS = 10_000;

    function parse(data, requestId) {
        try {
            return Object(JSON.parse(data));
        } catch {
            throw new Failure('Not JSON', 'The stream holds an event that is not JSON.', { requestId });
        }
    }

    async function hashes(text, sha256) {
        // Without TLS, a page from another machine has no such digest.
        if (!crypto.subtle) return true;
        const digest = await crypto.subtle.digest('SHA-256', new TextEncoder().encode(text));
        return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, '0')).join('') === sha256;
    }

    return class ReplyStream {
        state = 'reading'; // stopping, left

        #listener;
        #connection = new AbortController();
        #interrupt = () => {}; // what is waited for, with the reason
        #pausing = false;
        #awayMs = 0;

        /**
         * The listener has the methods `opened(chatId, replyId)`, `token(text)`, `arrived(at, bytes, events)` for each read
         * from the network, `waiting(why)` (resuming, busy, stopping), `resumed(text)`, and, about all requests,
         * `asked(path, options)` and `answered(response)`, or `answered(null, error)`.
         */
        constructor(listener, { replyId = null, text = '' } = {}) {
            this.#listener = listener;
            this.replyId = replyId;
            this.text = text;
        }

        async ask(question, key) {
            if (this.state === 'stopping') throw new Failure('Stopped', 'The message was not sent yet.');
            const response = await this.#connect('/chat/stream', {
                method: 'POST',
                headers: { 'content-type': 'application/json', 'idempotency-key': key },
                body: JSON.stringify(question),
            });
            if (this.state === 'left') return { status: 'left' };
            this.replyId = response.headers.get('x-message-id');
            this.#listener.opened(response.headers.get('x-chat-id'), this.replyId);
            return this.#readAll(response);
        }

        goOn() {
            return this.#readAll();
        }

        /** Stop the reply itself, in between of what its reader waits for. */
        stop() {
            if (this.state === 'left') return;
            this.state = 'stopping';
            // Before the id of the reply has come there is nothing to stop; it comes with the answer to the question.
            if (this.replyId) this.#interrupt(new DOMException('Something else is first.', 'AbortError'));
        }

        /** Lose the connection, and come back no sooner than `awayMs` later; return whether there was one to lose. */
        cut(awayMs = 0) {
            if (this.state !== 'reading' || !this.replyId || this.#pausing) return false;
            this.#awayMs = awayMs;
            this.#interrupt(new Lost('Cut', 'The connection was cut here.'));
            this.#connection.abort();
            return true;
        }

        /** Leave the reply; it is paused, and can be gone on with. */
        leave() {
            this.state = 'left';
            this.#connection.abort();
        }

        /** Read to the end, over as many connections as it takes; or stop it. */
        async #readAll(response) {
            for (let tries = 0, unanswered = 0; ; tries += 1) {
                const had = this.text.length;
                try {
                    if (this.state === 'stopping') {
                        const path = `/chat/stream/${this.replyId}`;
                        response = await this.#connect(path, { method: 'DELETE', priority: 'high' });
                        return { status: (await response.json()).status, behind: true };
                    }
                    if (response === undefined) {
                        response = await this.#rest();
                        this.#listener.resumed(this.text);
                    }
                    return response === null ? { status: null } : await this.#read(response);
                } catch (error) {
                    if (this.state === 'left') return { status: 'left' };
                    // Our own: to stop the reply.
                    if (error.name !== 'AbortError') {
                        if (this.text.length > had) tries = 0;
                        const busy = error.title === 'Cut short' || [429, 503].includes(error.status);
                        unanswered = busy || response ? 0 : unanswered + 1;
                        const silent = error instanceof Lost || ['No answer', 'No connection'].includes(error.title);
                        const away = silent || [502, 504].includes(error.status);
                        if (!(busy || away) || !this.replyId || unanswered >= RESUME_DELAYS_MS.length) return this.#giveUp(error);
                        this.#listener.waiting(this.state === 'stopping' ? 'stopping' : busy ? 'busy' : 'resuming');
                        await this.#pause(Math.max(RESUME_DELAYS_MS[tries] ?? LONGEST_DELAY_MS, this.#awayMs));
                        this.#awayMs = 0;
                    }
                    response = undefined;
                }
            }
        }

        #giveUp(error) {
            if (error.title === 'Stopped') return { status: 'stopped' };
            // What was taken back is in no history.
            if (!this.replyId || error.title === 'Not stored') return { status: 'unread', error };
            // Less was stored than is here: no reason to ask again.
            return error.title === 'Bad offset' ? { status: null } : { status: null, error };
        }

        /** Ask for what is not here yet; return null where there is no more, and never will be. */
        async #rest() {
            try {
                const offset = Array.from(this.text).length;
                const response = await this.#connect(`/chat/stream/${this.replyId}?offset=${offset}`);
                return response.status === 204 ? null : response;
            } catch (error) {
                // 409: its server died, and what is stored is less than what is here.
                if (error.status === 409) return null;
                throw error;
            }
        }

        /** Make a request in place of the one before: browsers have no more than six connections to a host. */
        #connect(path, options) {
            const before = this.#connection;
            this.#connection = new AbortController();
            if (this.state === 'left') this.#connection.abort();
            // By then this one is the next in line. Streams let all other requests go first, those of other windows too.
            setTimeout(() => before.abort(), 100);
            this.#listener.asked(path, options);
            const answer = this.#heard(request(path, { priority: 'low', ...options, signal: this.#connection.signal }));
            answer.then((response) => this.#listener.answered(response), (error) => this.#listener.answered(null, error));
            return answer;
        }

        /** Wait for what is to come, unless something else is first. */
        #heard(coming) {
            return new Promise((resolve, reject) => {
                this.#interrupt = reject;
                coming.then(resolve, reject);
            });
        }

        /** Wait, but no longer than there is reason to. */
        async #pause(delay) {
            this.#pausing = true;
            let goOn;
            await new Promise((resolve) => {
                this.#interrupt = goOn = resolve;
                setTimeout(goOn, delay);
                addEventListener('online', goOn);
            });
            removeEventListener('online', goOn);
            this.#pausing = false;
        }

        /** Read one stream of events to its end; raise Failure where it does not end well. */
        async #read(response) {
            const requestId = response.headers.get('x-request-id');
            const type = response.headers.get('content-type') ?? 'nothing';
            if (!type.startsWith('text/event-stream'))
                throw new Failure('Not a stream', `The server sent ${type}, expected text/event-stream.`, { requestId });
            const parser = new SseParser();
            const reader = response.body.getReader();
            for (;;) {
                const { done, value } = await this.#heard(inTime(reader.read())).catch((error) => {
                    if (error.title === 'No answer') this.#connection.abort();
                    if (error.name === 'AbortError' || error instanceof Failure) throw error;
                    throw new Lost('Connection lost', 'The connection broke before the reply was complete.', { requestId });
                });
                if (done) throw new Lost('Stream cut short', 'The stream ended before the reply was complete.', { requestId });
                const last = this.#take(performance.now(), value.byteLength, parser.push(value), requestId);
                if (last === null) continue;
                reader.read().catch(() => {}); // Past the end, so that the connection can be used again.
                return this.#compare(last);
            }
        }

        /** Hand on what has arrived at once; return the last event if it is among it. */
        #take(at, bytes, events, requestId) {
            const heard = [];
            try {
                for (const { data, lastEventId: id } of events) {
                    heard.push({ id, data, words: 0 });
                    const said = parse(data, requestId);
                    const { error, message, token } = said;
                    if (error) throw new (error === 'Cut short' ? Lost : Failure)(error, message, { requestId });
                    if (said.done) return said;
                    if (typeof token !== 'string') continue;
                    this.text += token;
                    this.#listener.token(token);
                    // A token is a word; the white space before it has an event of its own.
                    if (token.trim()) heard.at(-1).words = 1;
                }
                return null;
            } finally {
                this.#listener.arrived(at, bytes, heard);
            }
        }

        /** Compare the tokens with what the server says they are together, and what it has stored. */
        async #compare({ fullText, chars, sha256, stop }) {
            const { text } = this;
            const same = text === fullText && Array.from(text).length === chars && (await hashes(text, sha256));
            const check = { chars, sha256: crypto.subtle ? sha256 : null, same };
            return same ? { status: 'complete', stop, check } : { status: 'differs', fullText, check };
        }
    };
})();
