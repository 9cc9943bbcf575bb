'use strict';

/*
 * The gaps between words as they are drawn: one after another, and how many are how long.
 * Uses elements.js, meter.js.
 */
const plot = (() => {
    const BAR_PX = 5;
    const THINNEST_PX = 2;
    const BINS_MS = [0, 5, 10, 20, 50, 100, 200, 500, 1000]; // where they begin

    /** Return the next of 10, 20, 50, 100, 200 … */
    function roundUp(value) {
        const power = 10 ** Math.floor(Math.log10(value));
        return power * [1, 2, 5, 10].find((step) => step * power >= value);
    }

    /** Return { gaps, resumes } of events: the gaps, and before which of them the reply was gone on with. */
    function collect(events) {
        const gaps = [];
        const resumes = [];
        for (const { wordGap, burst, wentOn } of events) {
            if (wentOn) resumes.push({ before: gaps.length, wentOn });
            if (wordGap !== null) gaps.push({ ms: wordGap, burst });
        }
        return { gaps, resumes };
    }

    /** Return the gaps of which 50, 95 and 99 of 100 are no longer. */
    function percentiles(gaps) {
        const sorted = Float64Array.from(gaps, ({ ms }) => ms).sort();
        return [0.5, 0.95, 0.99].map((part) => sorted[Math.ceil(part * sorted.length) - 1] ?? null);
    }

    /** Put the gaps into as many columns as there is room for: of each, its longest gap. */
    function columns(gaps, width) {
        const perColumn = Math.max(1, Math.ceil((gaps.length * THINNEST_PX) / width));
        const found = [];
        for (let from = 0; from < gaps.length; from += perColumn) {
            const some = gaps.slice(from, from + perColumn);
            const ms = Math.max(...some.map((gap) => gap.ms));
            found.push({ from, to: from + some.length, ms, burst: some.some((gap) => gap.burst) });
        }
        return { found, perColumn, stepPx: Math.min(BAR_PX, width / found.length) };
    }

    /** Draw them, and return what is at a place: (x) => text. A silence without a connection is a mark, and no gap. */
    function drawGaps(svg, { gaps, resumes }, [median]) {
        const { clientWidth: width, clientHeight: height } = svg;
        const { found, perColumn, stepPx } = columns(gaps, width);
        const longest = found.reduce((most, { ms }) => Math.max(most, ms), 0);
        const top = roundUp(Math.max(longest, 40));
        const y = (ms) => (height - Math.max(1.5, (ms / top) * (height - 1))).toFixed(1);
        const paths = { gaps: '', bursts: '', resumes: '' };
        found.forEach(({ ms, burst }, i) => {
            paths[burst ? 'bursts' : 'gaps'] += `M${((i + 0.5) * stepPx).toFixed(1)} ${height}V${y(ms)}`;
        });
        for (const { before } of resumes) paths.resumes += `M${((before / perColumn) * stepPx).toFixed(1)} 0V${height}`;
        paths.grid = `M0 .5H${width}M0 ${height / 2}H${width}M0 ${height - 0.5}H${width}`;
        paths.middle = median === null ? '' : `M0 ${y(median)}H${width}`;
        for (const [name, path] of Object.entries(paths)) svg.querySelector(`.${name}`).setAttribute('d', path);
        svg.style.setProperty('--bar', `${Math.max(1, stepPx - 2)}px`);
        svg.setAttribute('aria-label', `${gaps.length} gaps, the longest ${meter.inMs(longest)}`);
        write($('gap-scale'), meter.inMs(top));
        return (x) => describe(found[Math.floor(x / stepPx)], resumes.find(({ before }) => Math.abs((before / perColumn) * stepPx - x) < 4));
    }

    function describe(column, resume) {
        if (resume) return resume.wentOn;
        if (!column) return '';
        const { from, to, ms } = column;
        return to - from === 1 ? `Gap ${to}: ${meter.inMs(ms)}` : `Gaps ${from + 1} to ${to}: at most ${meter.inMs(ms)}`;
    }

    function drawHistogram(list, gaps) {
        const counts = BINS_MS.map(() => 0);
        for (const { ms } of gaps) {
            let bin = BINS_MS.length - 1;
            while (BINS_MS[bin] > ms) bin -= 1;
            counts[bin] += 1;
        }
        const most = Math.max(1, ...counts);
        if (list.children.length === 0) list.append(...BINS_MS.map(() => el('li', {}, el('i', {}), el('span', {}))));
        counts.forEach((count, i) => {
            const [bar, label] = list.children[i].children;
            const to = BINS_MS[i + 1];
            bar.style.height = `${(count / most) * 100}%`;
            list.children[i].title = `${count} ${to ? `from ${BINS_MS[i]} to ${to} ms` : `of ${BINS_MS[i]} ms and more`}`;
            write(label, `${BINS_MS[i]}${to ? '' : '+'}`);
            list.children[i].setAttribute('aria-label', list.children[i].title);
        });
    }

    return { collect, percentiles, drawGaps, drawHistogram };
})();
