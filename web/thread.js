'use strict';

/*
 * The messages of the open chat: how they look, how they are read aloud, and what is in view.
 * Uses elements.js, composer.js, tools.js, markdown.js, meter.js.
 */
const thread = (() => {
    const scroller = $('scroller');
    const messages = $('messages');

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
        if (following || belowPx() < AT_END_PX) follow(!isSelecting());
    });
    growth.observe(scroller);
    growth.observe($('thread'));

    // Who selects text has the reader's eye on it, and the pointer: it is not to move away under that.
    let pressed = false;
    const isSelecting = () => pressed && !getSelection().isCollapsed;
    messages.addEventListener('pointerdown', () => (pressed = true));
    for (const end of ['pointerup', 'pointercancel']) addEventListener(end, () => (pressed = false));

    $('jump').addEventListener('click', () => {
        follow(true);
        composer.focus();
    });

    // ---- Messages

    const THINKING_S = 0.3; // What is sooner is no wait.

    const STATUS_TEXT = {
        streaming: 'Still being written…',
        disconnected: 'Left before the end',
        failed: 'Failed before the end',
        interrupted: 'Interrupted: the server stopped before the end',
        stopped: 'Stopped',
        resuming: 'Connection lost; going on where it broke…',
        busy: 'One moment; the reply goes on by itself…',
        stopping: 'Stopping…',
        unread: 'Not read to the end',
        unsent: 'Not sent',
    };

    // What is read aloud at a time ends with a sentence or with what a blank line ends. Not all languages have a space there.
    const SPOKEN = /^[^]*(?:[.!?…؟۔।]["”’)]*\s|[。！？]["”’」』）]*|\n[ \t]*\n)/;

    const sources = new WeakMap(); // what the messages say, by their <li>

    // A long question is folded. How many lines it has depends on the width.
    const folds = new ResizeObserver((entries) => {
        for (const { target: text } of entries) {
            const button = text.nextElementSibling;
            if (button.getAttribute('aria-expanded') === 'false') button.hidden = text.scrollHeight <= text.clientHeight + 1;
        }
    });

    function foldable(text) {
        const button = el('button', { type: 'button', className: 'button quiet', hidden: true, 'aria-expanded': 'false' }, 'Show all');
        button.addEventListener('click', () => {
            const open = button.getAttribute('aria-expanded') === 'false';
            button.setAttribute('aria-expanded', String(open));
            button.textContent = open ? 'Show less' : 'Show all';
            text.classList.toggle('whole', open);
        });
        folds.observe(text);
        return button;
    }

    function messageItem({ message_id: id = '', role, content, status = 'complete', created_at: at = Date.now() }) {
        const who = el('span', { className: 'unseen', textContent: role === 'user' ? 'You: ' : 'Reply: ' });
        const text = el('div', { className: 'text' });
        if (role === 'user') Object.assign(text, { dir: 'auto', textContent: content });
        else markdown.whole(text, content);
        const item = el('li', { id, className: role }, who, text, el('p', { className: 'status' }), tools.row(role, new Date(at)));
        if (role === 'user') text.after(foldable(text));
        else meter.attach(item, text);
        sources.set(item, content);
        mark(item, status);
        return item;
    }

    function mark(item, status, note = STATUS_TEXT[status] ?? '') {
        item.dataset.status = status;
        item.querySelector('.status').textContent = note;
    }

    /** Show how a reply has ended that nobody reads here. */
    function update(message) {
        const item = $(message.message_id);
        if (item?.dataset.status !== 'streaming' || message.status === 'streaming') return;
        // What was read is not taken away, even where less is stored.
        if (message.content.length <= sources.get(item).length) mark(item, message.status);
        else item.replaceWith(messageItem(message));
        tools.refresh();
    }

    /** Show messages above those that are there. What was read stays where it was. */
    function prepend(older) {
        const fromEnd = scroller.scrollHeight - scroller.scrollTop;
        messages.prepend(...older.map(messageItem));
        tools.refresh(messages.lastElementChild?.querySelector('.tools button'));
        if (!following) scrollToPx(scroller.scrollHeight - fromEnd);
    }

    /** A reply that was taken back is not there any more. What was asked just now has no id here, but its reply has. */
    const isStored = ({ id, dataset }) => id && dataset.status !== 'unread';
    const lastStored = () => [...messages.children].reverse().find(isStored);
    const wasAsked = ({ id, nextElementSibling: reply }) => Boolean(id || reply?.id);

    /**
     * Show the last messages as they are stored: those that are new, and none that is not there any more. What is not asked
     * yet comes after them. Return whether they join what was there, else all of that is gone.
     */
    function renew(newest) {
        const known = newest.filter(({ message_id: id }) => $(id)).at(-1);
        const items = [...messages.children];
        const kept = known ? items.indexOf($(known.message_id)) + 1 : 0;
        const focused = document.activeElement;
        for (const item of items.slice(kept).filter(wasAsked)) item.remove();
        const fresh = newest.slice(newest.indexOf(known) + 1).map(messageItem);
        if (known) items[kept - 1].after(...fresh);
        else messages.prepend(...fresh);
        tools.refresh(messages.lastElementChild?.querySelector('.tools button'));
        if (!focused.isConnected) composer.focus();
        return known !== undefined;
    }

    /** Take a message and all after it away; return a function that puts them back. */
    function cut(item) {
        const items = [...messages.children];
        const taken = items.slice(items.indexOf(item));
        for (const one of taken) one.remove();
        return () => messages.append(...taken);
    }

    /** A reply as it arrives. The page is touched once a frame, however fast the tokens come. */
    class LiveReply {
        constructor(content = '', createdAt = Date.now()) {
            this.item = messageItem({ role: 'assistant', content: '', status: 'live', created_at: createdAt });
            this.place = this.item.querySelector('.text');
            this.writer = markdown.into(this.place);
            this.writer.append(content);
            sources.set(this.item, content);
            this.unshown = this.unsaid = '';
            this.frame = 0;
            this.begunAt = performance.now();
            this.thinking = content ? 0 : setInterval(() => this.think(), 100);
        }

        /** Show for how long there has been no word, where the first will be; say it once. */
        think() {
            const seconds = (performance.now() - this.begunAt) / 1000;
            if (!this.item.isConnected) this.thought(); // Another chat is open.
            else if (seconds >= THINKING_S) this.showThinking(seconds);
        }

        showThinking(seconds) {
            if (!this.place.dataset.thinking) announce('Thinking…');
            this.place.dataset.thinking = `Thinking… ${seconds.toFixed(1)} s`;
        }

        thought() {
            clearInterval(this.thinking);
            delete this.place.dataset.thinking;
        }

        add(token) {
            sources.set(this.item, sources.get(this.item) + token);
            this.unshown += token;
            this.frame ||= requestAnimationFrame(() => this.show());
        }

        show() {
            cancelAnimationFrame(this.frame);
            this.frame = 0;
            if (this.unshown) this.thought();
            if (this.unshown && this.item.dataset.status === 'resuming') mark(this.item, 'live');
            this.writer.append(this.unshown);
            this.unsaid += this.unshown;
            this.unshown = '';
            const sentences = SPOKEN.exec(this.unsaid)?.[0];
            if (sentences) this.say(sentences);
            meter.draw(this.item);
        }

        say(text) {
            this.unsaid = this.unsaid.slice(text.length);
            if (this.item.isConnected) announce(markdown.plain(text));
        }

        /** Tell that it is interrupted, aloud only once. */
        wait(why) {
            this.show();
            const note = STATUS_TEXT[why];
            if (this.item.dataset.status !== 'resuming') announce(note);
            mark(this.item, 'resuming', note);
        }

        end(status, note) {
            this.show();
            this.writer.end();
            this.thought();
            mark(this.item, status, note);
            meter.keep(this.item);
            tools.refresh();
            this.say(this.unsaid);
            announce(this.item.querySelector('.status').textContent);
        }

        complete(stop) {
            this.item.dataset.stop = stop ?? 'end';
            if (stop === 'length') {
                this.end('complete', 'Complete, as far as the model may go on');
                return;
            }
            this.end('complete', '');
            announce('Complete');
        }

        /** End with another text than was read. */
        differ(fullText) {
            this.show();
            const text = sources.get(this.item);
            let same = 0;
            while (same < text.length && text[same] === fullText[same]) same += 1;
            sources.set(this.item, fullText);
            this.place.replaceChildren();
            markdown.whole(this.place, fullText);
            this.end('differs', `The tokens differ from fullText from character ${same + 1} on; fullText is shown`);
        }
    }

    return {
        messages, scroller, sources, STATUS_TEXT, follow, messageItem, mark, update, prepend, isStored, lastStored, renew, cut, LiveReply,
    };
})();
