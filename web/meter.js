'use strict';

/*
 * The meter: when the words of the current reply got here, by the reads from the network.
 * Uses elements.js.
 */
const meter = (() => {
    // So many tokens in one read, after such a silence: no model speaks like that, but a buffer does.
    const BURST_TOKENS = 5;
    const BURST_SILENCE_MS = 250;
    const BAR_PX = 5;

    const inMs = (ms) => (ms < 9999.5 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);

    /** Return the next of 10, 20, 50, 100, 200 … */
    function roundUp(value) {
        const power = 10 ** Math.floor(Math.log10(value));
        return power * [1, 2, 5, 10].find((step) => step * power >= value);
    }

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
    return meter;
})();
