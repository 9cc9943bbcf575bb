'use strict';

/*
 * The line under each reply: when its words got here. The figures are kept in this browser, by the id of the reply; what
 * was heard of it, as long as the page.
 * Uses elements.js, recording.js.
 *
 *     meter.attach(item, text);            // give a reply's <li> its line, below its text
 *     meter.begin(item, joined);           // a Recording of what comes now; meter.draw(item) as often as is of use
 *     meter.keep(item);                    // it is over
 */
const meter = (() => {
    // As those of the settings: of a page and its path.
    const STORAGE_KEY = `streaming-chat.figures${location.pathname.replace(/\/[^/]*$/, '')}`;
    const KEPT_FIGURES = 500;
    const KEPT_RECORDINGS = 20;

    const recordings = new Map(); // by the ids of the replies
    const running = new WeakMap(); // by their <li>, whose ids come later
    let read = { text: null, figures: new Map() };

    const inMs = (ms) => (ms < 9999.5 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);

    function describe({ joined, firstMs, words, perSecond, longestMs, resumes }) {
        const many = (count, what) => `${count} ${what}${count === 1 ? '' : 's'}`;
        return [
            ...(firstMs === null ? [] : [`${inMs(firstMs)} first`]),
            many(words, 'word') + (joined ? ' in this window' : ''),
            ...(perSecond === null ? [] : [`${perSecond < 9.95 ? perSecond.toFixed(1) : Math.round(perSecond)}/s`]),
            ...(longestMs === null ? [] : [`longest gap ${inMs(longestMs)}`]),
            ...(resumes ? [many(resumes, 'resume')] : []),
        ].join(' · ');
    }

    function attach(item, text) {
        const line = el('button', { type: 'button', className: 'figures', title: 'Show each event' });
        const body = el('div', { className: 'body' });
        text.replaceWith(body);
        body.append(text, el('div', { className: 'below' }, line));
        body.after(el('p', { className: 'burst' }));
        show(item, figuresOf(item));
    }

    function show(item, figures) {
        const line = item.querySelector('.figures');
        line.hidden = !figures?.words;
        item.querySelector('.body').classList.toggle('measured', running.has(item) || !line.hidden);
        if (line.hidden) return;
        write(line, describe(figures));
        // Once it is over: what is to come may belie it, and would push it on.
        const burst = recordingOf(item)?.over !== false && figures.burst;
        write(item.querySelector('.burst'), burst
            ? `${burst.words} words arrived at once after ${inMs(burst.silenceMs)} of silence: ` +
              'something between you and the server, likely a proxy, is buffering.'
            : '');
    }

    function begin(item, joined) {
        const recording = new Recording(joined);
        running.set(item, recording);
        draw(item);
        return recording;
    }

    const figuresOf = (item) => recordingOf(item)?.figures() ?? kept().get(item.id);
    const recordingOf = (item) => running.get(item) ?? recordings.get(item.id) ?? null;

    function draw(item) {
        const recording = running.get(item);
        if (recording) show(item, recording.figures());
    }

    function keep(item) {
        const recording = running.get(item);
        if (!recording || recording.over) return;
        recording.over = true;
        draw(item);
        const { burst } = recording.figures();
        if (burst) announce(item.querySelector('.burst').textContent);
        if (!item.id || recording.words === 0) return;
        recordings.set(item.id, recording);
        trim(recordings, KEPT_RECORDINGS);
        // Of two windows, the one that has asked knows more.
        if (!recording.joined || !kept().has(item.id)) store(new Map(kept()).set(item.id, recording.figures()));
    }

    function trim(map, most) {
        for (const key of map.keys()) {
            if (map.size <= most) return;
            map.delete(key);
        }
    }

    /** Return the figures by the ids of their replies, those that other windows have kept, too. */
    function kept() {
        try {
            const text = localStorage.getItem(STORAGE_KEY) ?? '[]';
            if (text !== read.text) read = { text, figures: new Map(JSON.parse(text)) };
        } catch {
            // No storage, or nothing of ours in it: they last as long as the page.
        }
        return read.figures;
    }

    function store(figures) {
        trim(figures, KEPT_FIGURES);
        try {
            localStorage.setItem(STORAGE_KEY, JSON.stringify([...figures]));
        } catch {
            read = { ...read, figures };
        }
    }

    return { attach, begin, draw, keep, recordingOf, figuresOf, inMs };
})();
