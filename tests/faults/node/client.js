// Reads a stream to its last event, as one of the libraries hands it to its user; each comes back by itself.
// usage: node client.js LIBRARY URL; gives the data of all messages as a JSON array on stdout.
const { fetchEventSource } = require('@microsoft/fetch-event-source');
const { EventSourcePolyfill } = require('event-source-polyfill');
const { default: ReconnectingEventSource } = require('reconnecting-eventsource');

// For libraries that are made for browsers alone.
globalThis.window = globalThis;
globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };

const [library, url] = process.argv.slice(2);
const messages = [];

function take({ data }) {
    messages.push(data);
    // What is no JSON ends here, as with users who parse what they get.
    if (!JSON.parse(data).done) return;
    console.log(JSON.stringify(messages));
    process.exit();
}

if (library === 'fetch-event-source') {
    fetchEventSource(url, { onmessage: take, onerror: () => 100 });
} else if (library === 'event-source-polyfill') {
    new EventSourcePolyfill(url).onmessage = take;
} else {
    new ReconnectingEventSource(url, { eventSourceClass: EventSourcePolyfill, max_retry_time: 100 }).onmessage = take;
}
