'use strict';

/*
 * Requests to the chat server, in the name of the caller of the settings. No DOM.
 * Uses settings.js.
 */

/** What is told of an error, in the server's own words where it has said something. */
class Failure extends Error {
    constructor(title, message, { requestId = null, status = 0 } = {}) {
        super(message);
        Object.assign(this, { title, requestId, status });
    }
}

// The server pings every 15 s, and answers sooner: one that was not heard of for so long is dead, though it looks open.
const SILENCE_MS = 32_000;

/** Wait for what is to come from the server, but not for ever. */
function inTime(coming) {
    let alarm = 0;
    const late = new Promise((resolve, reject) => {
        const message = `Nothing has come from ${settings.current.server} for ${SILENCE_MS / 1000} s.`;
        alarm = setTimeout(() => reject(new Failure('No answer', message)), SILENCE_MS);
    });
    return Promise.race([coming, late]).finally(() => clearTimeout(alarm));
}

/** Return the headers that say who asks. */
function identity({ org, user, token }) {
    return token ? { authorization: `Bearer ${token}` } : { 'x-org-id': org, 'x-user-id': user };
}

/** Return a request as it can be shown: without a token. */
function described(path, { method = 'GET', headers, body } = {}) {
    const { server, org, user, token } = settings.current;
    const all = { ...identity({ org, user, token: token && '$TOKEN' }), ...headers };
    return { method, url: server + path, headers: Object.entries(all), body };
}

/** Return the response if it is a good one; raise Failure, or AbortError where the caller has aborted it. */
async function request(path, options = {}) {
    await settings.ready;
    const { server } = settings.current;
    const headers = { ...identity(settings.current), ...options.headers };
    let response;
    try {
        response = await inTime(fetch(server + path, { cache: 'no-store', credentials: 'omit', ...options, headers }));
    } catch (error) {
        if (error.name === 'AbortError' || error instanceof Failure) throw error;
        const { origin } = location;
        const foreign = new URL(server).origin !== origin;
        const hint = foreign ? `, and is ${origin === 'file://' ? 'null' : origin} in its CORS_ORIGINS?` : '?';
        throw new Failure('No connection', `${server} does not answer. Is the server running${hint}`);
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
        return await inTime(response.json());
    } catch (error) {
        if (error.name === 'AbortError' || error instanceof Failure) throw error;
        const broken = 'The connection broke before the answer was complete.';
        if (error.name !== 'SyntaxError') throw new Failure('Connection lost', broken);
        throw new Failure('Not JSON', `${settings.current.server} answered with something else. Is it a chat server?`);
    }
}
