'use strict';

/*
 * The field where a message is written. What is in it is kept for each chat, in this browser.
 * Uses elements.js.
 *
 *     composer.open(chatId);               // with what was written there; null: a new chat
 *     composer.onsubmit = (message) => …   // the field keeps it until …
 *     composer.send();                     // it is being asked: the field is empty, and the text kept with the draft until …
 *     composer.adopt(chatId);              // it is asked, in this chat; or …
 *     composer.takeBack(message);          // it is not, and is to be written anew; or …
 *     composer.forget(message);            // it was, before the page was left
 *     composer.isSending()                 // something is, or waits for what becomes of it
 *     composer.edit(text, note, (message) => …);     // another text first; what was in the field comes back after it
 *                                          // note() says what sending it does, also as messages come and go
 */
const composer = (() => {
    const STORAGE_KEY = `streaming-chat.drafts${location.pathname.replace(/\/[^/]*$/, '')}`;
    const DRAFTS = 20; // Of so many chats, and so long.
    const DRAFT_CHARS = 50_000;
    const TYPING_MS = 300;

    const input = $('message');
    const scroller = $('scroller');
    const byTouch = matchMedia('(pointer: coarse)');

    let place = 'new'; // whose draft is in the field
    let edited = null; // what was in the field before, what is said of what is in it now, and who gets it
    let sent = ''; // what is being asked: lost if the page is left before it is, but for its draft
    let restored = ''; // the draft that was found, until anything is written

    const room = { open, send, adopt, takeBack, forget, isSending: () => sent !== '', edit, focus, onsubmit() {} };

    function fit() {
        const { scrollTop } = scroller;
        input.style.height = 'auto';
        input.style.height = `${input.scrollHeight}px`;
        // While the field was low the messages had more room, and may have moved.
        scroller.scrollTop = scrollTop;
    }

    /** Focus the field, but let no keyboard jump up by itself. */
    function focus() {
        if (!byTouch.matches) input.focus();
    }

    function compose(text) {
        restored = '';
        input.value = text;
        fit();
        save();
        focus();
    }

    function submit() {
        if (input.value.trim()) (edited ?? room).onsubmit(input.value);
    }

    // ---- Another text first

    function edit(text, note, onsubmit) {
        if (text === sent) sent = ''; // It is in the field again.
        edited = { before: edited?.before ?? input.value, note, onsubmit };
        write($('editing').firstElementChild, '');
        $('editing').hidden = false;
        tell();
        compose(text);
        input.focus();
    }

    /** Say what sending it does; again only where that is something else by now. */
    function tell() {
        if (!edited) return;
        const line = $('editing').firstElementChild;
        const note = edited.note();
        if (line.textContent === note) return;
        line.textContent = note;
        announce(note);
    }

    new MutationObserver(tell).observe($('messages'), { childList: true });

    function endEdit() {
        if (!edited) return;
        const { before } = edited;
        edited = null;
        $('editing').hidden = true;
        compose(before);
    }

    // ---- Drafts

    const both = (...texts) => texts.filter((text) => text.trim()).join('\n\n');

    function drafts() {
        try {
            return Object.entries(JSON.parse(localStorage.getItem(STORAGE_KEY)) ?? {});
        } catch {
            return []; // No storage, or nothing of ours in it.
        }
    }

    /** Keep what is to be in the field when the chat is opened again. The last ones are kept. */
    function keep(text) {
        const others = drafts().filter(([chat]) => chat !== place);
        const all = text.trim() ? [...others, [place, text.slice(0, DRAFT_CHARS)]] : others;
        try {
            localStorage.setItem(STORAGE_KEY, JSON.stringify(Object.fromEntries(all.slice(-DRAFTS))));
        } catch {
            // Without storage they last as long as the page shows the chat.
        }
    }

    let typing = 0;

    function save() {
        clearTimeout(typing);
        typing = 0;
        keep(both(sent, edited ? edited.before : input.value));
    }

    function open(chat) {
        if (typing) save();
        edited = null;
        sent = '';
        $('editing').hidden = true;
        place = chat ?? 'new';
        restored = input.value = Object.fromEntries(drafts())[place] ?? '';
        fit();
    }

    function send() {
        sent = input.value;
        if (edited) endEdit();
        else compose('');
    }

    /** What was sent is asked, in this chat, which may have got its id by that. */
    function adopt(chat) {
        sent = '';
        keep('');
        place = chat;
        save();
    }

    /** A message that was not asked goes before what has been written since. */
    function takeBack(message) {
        endEdit();
        sent = '';
        compose(both(message, input.value));
    }

    function forget(message) {
        if (edited || restored !== message) return;
        input.value = '';
        fit();
        save();
    }

    // ---- Keys

    $('composer').addEventListener('submit', (event) => {
        event.preventDefault();
        submit();
    });
    input.addEventListener('input', () => {
        restored = '';
        fit();
        clearTimeout(typing);
        typing = setTimeout(save, TYPING_MS);
    });
    addEventListener('pagehide', () => {
        if (typing) save();
    });
    $('cancel-edit').addEventListener('click', endEdit);
    input.addEventListener('keydown', (event) => {
        // What ends the composition of a character is not for us (229: Safari says so).
        if (event.isComposing || event.keyCode === 229) return;
        if (event.key === 'Escape' && edited) {
            event.stopPropagation(); // Not for the reply that runs.
            endEdit();
            return;
        }
        if (event.key !== 'Enter' || event.shiftKey) return;
        // Who writes by touch has a button beside the field, and no Shift.
        if (byTouch.matches && !event.ctrlKey && !event.metaKey) return;
        event.preventDefault();
        submit();
    });
    if (byTouch.matches) {
        input.enterKeyHint = 'enter';
        input.removeAttribute('aria-describedby'); // Those are other keys.
    }
    $('skip').addEventListener('click', () => input.focus());

    return room;
})();
