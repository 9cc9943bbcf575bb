'use strict';

/*
 * The inspector: what was heard of a reply, event by event, and levers to break its connection. Beside the thread, or a
 * sheet over it.
 * Uses elements.js, tools.js, meter.js, plot.js, rows.js.
 *
 *     inspector.open(item);                // of a reply's <li>
 *     inspector.touch(recording);          // more was heard
 *     inspector.oncut = (recording, awayMs) => …   // return whether there was a connection
 */
const inspector = (() => {
    const ROW_PX = 1.5 * parseFloat(getComputedStyle(document.documentElement).fontSize); // as in inspector.css
    const REDRAW_MS = 200;
    const REDRAW_SHARE = 20; // It takes at most one part in so many of the time.
    const SHOWN_CHARS = 300;
    const DEAF_MS = 5000;

    const panel = $('inspector');
    const rows = new Rows($('events'), ROW_PX, () => recording?.events.length ?? 0, cells);
    const room = { open, close, touch, tell, oncut: () => false };

    let item = null;
    let recording = null;
    let timer = 0;
    let gapAt = () => '';
    let drawMs = 0; // how long it took

    function open(wanted) {
        item = wanted;
        recording = meter.recordingOf(item);
        panel.hidden = false;
        document.body.classList.add('inspecting');
        write($('went-on'), '');
        write($('gap-at'), '');
        draw();
        rows.begin(recording !== null && !recording.over);
        $('inspector-title').focus();
    }

    function close() {
        if (panel.hidden) return;
        const focused = panel.contains(document.activeElement);
        panel.hidden = true;
        document.body.classList.remove('inspecting');
        clearTimeout(timer);
        timer = 0;
        // By now its message may be another element.
        const line = ($(item.id) ?? item).querySelector('.figures');
        item = recording = null;
        if (!focused) return;
        if (line?.isConnected) line.focus();
        else $('message').focus();
    }

    /** Draw it anew, but not all the time. */
    function touch(changed) {
        if (changed === recording && recording) timer ||= setTimeout(draw, Math.max(REDRAW_MS, REDRAW_SHARE * drawMs));
    }

    function tell(changed, text) {
        if (changed !== recording || !recording) return;
        write($('went-on'), text);
        touch(changed);
    }

    // ---- What it shows

    function draw() {
        const begunAt = performance.now();
        timer = 0;
        const events = recording?.events ?? [];
        const collected = plot.collect(events);
        const quantiles = plot.percentiles(collected.gaps);
        drawFigures(meter.figuresOf(item), quantiles);
        gapAt = plot.drawGaps($('gaps'), collected, quantiles);
        plot.drawHistogram($('histogram'), collected.gaps);
        drawRequests(recording?.requests ?? []);
        rows.show();
        write($('check'), checked());
        $('check').classList.toggle('error', recording?.check?.same === false);
        for (const id of ['cut', 'deafen']) $(id).disabled = !recording || recording.over;
        for (const id of ['copy-curl', 'export-lines']) $(id).disabled = !recording;
        write($('unkept'), unkept());
        drawMs = performance.now() - begunAt;
    }

    function drawFigures(figures, quantiles) {
        const ms = (value) => (value === null || value === undefined ? '–' : meter.inMs(value));
        const { firstMs, words, perSecond, longestMs } = figures ?? {};
        const facts = {
            'First word': ms(firstMs),
            'Words': String(words ?? '–'),
            'Per second': perSecond?.toFixed(1) ?? '–',
            'Longest gap': ms(longestMs),
            'p50': ms(quantiles[0]),
            'p95': ms(quantiles[1]),
            'p99': ms(quantiles[2]),
            'Bytes': recording ? recording.bytes.toLocaleString('en') : '–',
        };
        const list = $('figures');
        if (list.children.length === 0)
            list.append(...Object.keys(facts).map((name) => el('div', {}, el('dt', {}, name), el('dd', {}))));
        Object.values(facts).forEach((fact, i) => write(list.children[i].lastElementChild, fact));
    }

    function checked() {
        if (!recording) return '';
        const { check, over } = recording;
        if (!check) return over ? 'It has no last event to compare the words with.' : '';
        const digest = check.sha256 ? `SHA-256 ${check.sha256.slice(0, 12)}…` : 'SHA-256 not compared, which takes TLS';
        if (check.same) return `Equal to fullText: ${check.chars} characters, ${digest}`;
        return `Not equal to fullText: expected ${check.chars} characters, ${digest}`;
    }

    function unkept() {
        if (!recording) return 'Its events are not here any more: they last as long as the page.';
        return recording.dropped > 0 ? `The first ${recording.dropped.toLocaleString('en')} events are not kept any more.` : '';
    }

    function cells(number) {
        const { at, gap, bytes, id, data, wentOn } = recording.events[number];
        const text = data.length > SHOWN_CHARS ? `${data.slice(0, SHOWN_CHARS)}…` : data;
        return [(at / 1000).toFixed(3), wentOn ? '↻' : gap.toFixed(1), String(bytes), id.split(':').slice(1).join(':'), text];
    }

    function drawRequests(requests) {
        const list = $('requests');
        const texts = requests.map(describeRequest);
        while (list.children.length > texts.length) list.lastElementChild.remove();
        while (list.children.length < texts.length) list.append(el('li', {}, el('p', {}), el('pre', { tabIndex: 0 })));
        texts.forEach(([title, headers], i) => {
            write(list.children[i].firstElementChild, title);
            write(list.children[i].lastElementChild, headers);
        });
    }

    function describeRequest({ at, method, url, headers, status, answer, wentOn }) {
        const lines = (all) => all.map(([name, value]) => `${name}: ${value}`).join('\n');
        const title = `${(at / 1000).toFixed(3)} s: ${method} ${new URL(url).pathname}, ${status ?? 'no answer yet'}${wentOn && `. ${wentOn}`}`;
        return [title, `${lines(headers)}\n\n${lines(answer)}`];
    }

    // ---- What one does

    async function copyCurl() {
        const curl = Recording.curl(recording.requests[0]);
        tools.say($('copy-curl'), (await tools.copy(curl)) ? 'Copied' : 'Not copied');
    }

    function exportLines() {
        download(new Blob(recording.jsonLines(), { type: 'application/jsonl' }), `reply-${item.id || 'unknown'}.jsonl`);
    }

    function cut(awayMs) {
        write($('went-on'), room.oncut(recording, awayMs) ? 'Cut; going on by itself…' : 'There is no connection to cut now.');
    }

    $('cut').addEventListener('click', () => cut(0));
    $('deafen').addEventListener('click', () => cut(DEAF_MS));
    $('copy-curl').addEventListener('click', copyCurl);
    $('export-lines').addEventListener('click', exportLines);
    $('inspector-close').addEventListener('click', close);
    $('gaps').addEventListener('pointermove', ({ offsetX }) => write($('gap-at'), gapAt(offsetX)));
    $('gaps').addEventListener('pointerleave', () => write($('gap-at'), ''));
    $('messages').addEventListener('click', ({ target }) => {
        const line = target.closest('.figures');
        if (line) open(line.closest('li'));
    });
    // Elsewhere Escape stops the reply.
    panel.addEventListener('keydown', (event) => {
        if (event.key !== 'Escape' || event.isComposing) return;
        event.stopPropagation();
        close();
    });
    new ResizeObserver(() => requestAnimationFrame(() => panel.hidden || draw())).observe($('gaps'));

    return room;
})();
