'use strict';

/*
 * What was heard of one reply, and when: its requests, its events, and the figures of their arrival. Shows nothing.
 * Uses nothing.
 *
 *     const recording = new Recording();
 *     recording.asked(request); recording.answered(status, headers); recording.read(at, bytes, events); …
 *     recording.figures()                          // what is worth keeping
 */
const Recording = (() => {
    // What is kept of a reply; the oldest events go first.
    const MOST_EVENTS = 20_000;
    const MOST_CHARS = 16_000_000;
    const MOST_REQUESTS = 100;
    // So many words in one read, after such a silence: no model speaks like that, but a buffer does.
    const BURST_WORDS = 5;
    const BURST_SILENCE_MS = 250;

    /** Return how many bytes an event is, as this server writes it. */
    function size({ id, data }) {
        const text = `${id ? `id: ${id}\n` : ''}data: ${data}\n\n`;
        return /^[\x00-\x7f]*$/.test(text) ? text.length : new TextEncoder().encode(text).length;
    }

    return class Recording {
        requests = []; // { at, method, url, headers, body, status, answer, wentOn }
        /**
         * { number, at, gap, bytes, id, data, wordGap, burst, wentOn }: `gap` is since the event before, `wordGap` since the
         * word before, null where that says nothing of the stream. All times are in ms, `at` since the question.
         */
        events = [];
        bytes = 0; // that were read, heartbeats too
        words = 0;
        gaps = 0;
        longest = 0;
        resumes = 0;
        check = null; // whether the words are those of the last event: { chars, sha256, same }
        over = false;

        #chars = 0;
        #heard = 0;
        #eventAt;
        #untimed = 0;
        #burstWords = 0;
        #worst = null;
        #catchingUp = false;
        #lostAt = null;
        #wentOn = '';

        /** `joined`: the reply was asked for before, or by another window. */
        constructor(joined = false) {
            this.joined = joined;
            this.sentAt = this.readAt = this.#eventAt = performance.now();
            this.firstAt = this.wordAt = null;
        }

        get dropped() {
            return this.#heard - this.events.length;
        }

        asked(request) {
            this.requests.push({ at: performance.now() - this.sentAt, status: null, answer: [], wentOn: '', ...request });
            if (this.requests.length > MOST_REQUESTS) this.requests.splice(1, 1); // The first is the question.
        }

        /** `headers` are those that a page may see; `status` may be the name of what went wrong instead. */
        answered(status, headers = []) {
            Object.assign(this.requests.at(-1), { status, answer: headers });
        }

        lost() {
            this.#lostAt ??= performance.now();
        }

        /**
         * The connection is there again, and goes on after `text`. The silence in between is nobody's buffering, nor is
         * what was said meanwhile. Return what is to be told of it.
         */
        resumed(text) {
            const now = performance.now();
            const after = this.#lostAt === null ? '' : ` after ${((now - this.#lostAt) / 1000).toFixed(1)} s`;
            if (after) this.resumes += 1;
            this.#wentOn = `Went on at character ${Array.from(text).length}${after}`;
            this.requests.at(-1).wentOn = this.#wentOn;
            this.#lostAt = null;
            this.readAt = now;
            this.#catchingUp = true;
            return this.#wentOn;
        }

        /** `events` came at once: { id, data, words }. None: a heartbeat, or a part of one. */
        read(at, bytes, events) {
            const silence = at - this.readAt;
            this.readAt = at;
            this.bytes += bytes;
            const words = events.reduce((sum, event) => sum + event.words, 0);
            // A page in the background reads late by itself.
            const burst = words >= BURST_WORDS && silence >= BURST_SILENCE_MS && !this.#catchingUp && !document.hidden;
            const wordGaps = words > 0 ? this.#time(at, words, silence, burst) : [];
            for (const event of events) this.#keep(event, at, event.words > 0 ? wordGaps.shift() : null, burst);
        }

        /** Return the gap before each of these words, null where it is none. */
        #time(at, words, silence, burst) {
            const first = this.firstAt === null;
            const gaps = Array(words).fill(this.#catchingUp ? null : 0);
            if (first) this.firstAt = at;
            // The wait for the first word has a figure of its own; among the gaps it is of use only if it was a burst.
            if (!this.#catchingUp) gaps[0] = burst || !first ? at - (this.wordAt ?? this.sentAt) : null;
            if (burst) {
                this.#burstWords += words;
                if (words > (this.#worst?.words ?? 0)) this.#worst = { words, silenceMs: silence };
            }
            this.longest = Math.max(this.longest, gaps[0] ?? 0);
            this.gaps += gaps.filter((gap) => gap !== null).length;
            this.words += words;
            if (first || this.#catchingUp) this.#untimed += words;
            this.#catchingUp = false;
            this.wordAt = at;
            return gaps;
        }

        #keep({ id, data }, at, wordGap, burst) {
            this.#heard += 1;
            const event = { number: this.#heard, at: at - this.sentAt, gap: at - this.#eventAt, bytes: size({ id, data }), id, data };
            this.events.push({ ...event, wordGap, burst, wentOn: this.#wentOn });
            this.#wentOn = '';
            this.#eventAt = at;
            this.#chars += data.length;
            // The last event is always kept, however long it is.
            while (this.events.length > 1 && (this.events.length > MOST_EVENTS || this.#chars > MOST_CHARS))
                for (const old of this.events.splice(0, Math.floor(this.events.length / 20) || 1)) this.#chars -= old.data.length;
        }

        figures() {
            const seconds = (this.wordAt - this.firstAt) / 1000;
            // One hiccup of a network is no buffering; most of the reply in bursts is.
            const buffered = this.#worst !== null && this.#burstWords * 2 >= this.words;
            return {
                joined: this.joined,
                firstMs: this.firstAt === null || this.joined ? null : this.firstAt - this.sentAt,
                words: this.words,
                perSecond: seconds > 0 ? (this.words - this.#untimed) / seconds : null,
                longestMs: this.gaps > 0 ? this.longest : null,
                resumes: this.resumes,
                burst: buffered ? this.#worst : null,
            };
        }

        /** Return all that is kept, as lines of JSON, in the order in which it was. */
        jsonLines() {
            const requests = this.requests.map((request) => ({ type: 'request', ...request }));
            const events = this.events.map(({ wordGap, burst, wentOn, ...event }) => ({ type: 'event', ...event }));
            const lines = [...requests, ...events].sort((a, b) => a.at - b.at);
            if (this.dropped > 0) lines.unshift({ type: 'dropped', events: this.dropped });
            return lines.map((line) => `${JSON.stringify(line)}\n`);
        }

        /** Return the command that makes a request; a token is not in it, and is taken from the environment. */
        static curl({ method, url, headers, body }) {
            const quote = (text) => `'${text.replace(/'/g, `'\\''`)}'`;
            const header = ([name, value]) => {
                const bearer = name === 'authorization';
                return ` \\\n  -H ${bearer ? '"authorization: Bearer $TOKEN"' : quote(`${name}: ${value}`)}`;
            };
            const verb = method === 'GET' || (method === 'POST' && body) ? '' : ` -X ${method}`;
            // --data would read a file where the body began with @, --data-raw does not.
            return `curl -N${verb} ${quote(url)}${headers.map(header).join('')}${body ? ` \\\n  --data-raw ${quote(body)}` : ''}`;
        }
    };
})();
