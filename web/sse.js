'use strict';

/*
 * A parser of server-sent events (WHATWG HTML, 9.2.6 "Interpreting an event stream"), for use with fetch.
 *
 *     const parser = new SseParser();
 *     const reader = response.body.getReader();
 *     for (let read; !(read = await reader.read()).done; )
 *         for (const { type, data, lastEventId } of parser.push(read.value)) …
 *
 * `push` takes bytes (Uint8Array) or text, cut anywhere, and returns the events that this chunk completes.
 * There is nothing to call at the end: an event without its blank line is dropped, as the standard says.
 * For a reconnect: `parser.lastEventId`, and `parser.retry`, the time in ms the stream asked for (or null).
 */
globalThis.SseParser = class SseParser {
    retry = null;
    lastEventId = '';

    #decoder = new TextDecoder('utf-8', { ignoreBOM: true });
    #begun = false;
    #afterCr = false;
    #line = '';
    #data = [];
    #type = '';
    #id = '';

    push(chunk) {
        let text = typeof chunk === 'string' ? chunk : this.#decoder.decode(chunk, { stream: true });
        if (text === '') return [];
        if (!this.#begun && text[0] === '\uFEFF') text = text.slice(1);
        this.#begun = true;
        // The second half of a CR LF that was cut in two.
        if (this.#afterCr && text[0] === '\n') text = text.slice(1);
        this.#afterCr = text.endsWith('\r');

        const events = [];
        const lines = text.split(/\r\n|\r|\n/);
        lines[0] = this.#line + lines[0];
        this.#line = lines.pop();
        for (const line of lines) {
            if (line === '') this.#dispatch(events);
            else this.#field(line);
        }
        return events;
    }

    #field(line) {
        const colon = line.indexOf(':');
        if (colon === 0) return; // a comment
        const name = colon < 0 ? line : line.slice(0, colon);
        const value = colon < 0 ? '' : line.slice(colon + (line[colon + 1] === ' ' ? 2 : 1));
        if (name === 'data') this.#data.push(value);
        else if (name === 'event') this.#type = value;
        else if (name === 'id' && !value.includes('\0')) this.#id = value;
        else if (name === 'retry' && /^[0-9]+$/.test(value)) this.retry = Number(value);
    }

    #dispatch(events) {
        const lastEventId = (this.lastEventId = this.#id);
        if (this.#data.length > 0) {
            events.push({ type: this.#type || 'message', data: this.#data.join('\n'), lastEventId });
        }
        this.#data = [];
        this.#type = '';
    }
};
