'use strict';

/*
 * What one does with a message: the row of buttons under it, and when it was written.
 * Uses elements.js, roving.js.
 *
 *     tools.row('user', new Date());       // an element, to be put into the message's <li>
 *     tools.on.copy = (item, button) => …  // and regenerate, edit, goOn
 */
const tools = (() => {
    const SAID_MS = 3000;
    const KINDS = {
        copy: 'Copy',
        edit: 'Edit',
        regenerate: 'Regenerate',
        goOn: 'Go on',
    };
    const OF = { user: ['copy', 'edit'], assistant: ['copy', 'regenerate', 'goOn'] };

    const list = $('messages');
    const refresh = rove(list, 'li', '.tools button');
    const on = {};

    function row(role, at) {
        const buttons = OF[role].map((kind) => el('button', {
            type: 'button', tabIndex: -1, className: kind, title: KINDS[kind], 'aria-label': KINDS[kind], 'data-kind': kind,
        }, kind === 'goOn' ? KINDS[kind] : icon(kind)));
        const time = el('time', {
            dateTime: at.toISOString(),
            title: at.toLocaleString(undefined, { dateStyle: 'full', timeStyle: 'medium' }),
            textContent: at.toLocaleTimeString(undefined, { timeStyle: 'short' }),
        });
        return el('div', { className: 'tools' }, ...buttons, time);
    }

    /** Say what became of it, on the button itself, for a while. */
    function say(button, text) {
        button.dataset.said = text;
        announce(text);
        setTimeout(() => delete button.dataset.said, SAID_MS);
    }

    /** Return whether the clipboard has it. */
    async function copy(text) {
        try {
            await navigator.clipboard.writeText(text);
            return true;
        } catch {
            // Without TLS, a page from another machine has no such clipboard.
            const field = el('textarea', { className: 'unseen', value: text });
            const focused = document.activeElement;
            document.body.append(field);
            field.select();
            const copied = document.execCommand('copy');
            field.remove();
            focused?.focus();
            return copied;
        }
    }

    list.addEventListener('click', ({ target, detail: clicks }) => {
        const button = target.closest('.tools button');
        // The second click of a double one is no answer to what the first has asked.
        if (button && clicks < 2) on[button.dataset.kind](button.closest('li'), button);
    });

    return { row, on, say, copy, refresh };
})();
