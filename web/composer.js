'use strict';

/*
 * The field where a message is written.
 * Uses elements.js.
 *
 *     composer.onsubmit = (message) => …   // the field keeps it until another text is written there
 */
const composer = (() => {
    const input = $('message');
    const scroller = $('scroller');

    const room = { write: compose, focus: () => input.focus(), onsubmit() {} };

    function fit() {
        const { scrollTop } = scroller;
        input.style.height = 'auto';
        input.style.height = `${input.scrollHeight}px`;
        // While the field was low the messages had more room, and may have moved.
        scroller.scrollTop = scrollTop;
    }

    function compose(text) {
        input.value = text;
        fit();
        input.focus();
    }

    function submit() {
        if (input.value.trim()) room.onsubmit(input.value);
    }

    $('composer').addEventListener('submit', (event) => {
        event.preventDefault();
        submit();
    });
    input.addEventListener('input', fit);
    input.addEventListener('keydown', (event) => {
        // An Enter that ends the composition of a character is not for us (229: Safari says so).
        if (event.key !== 'Enter' || event.shiftKey || event.isComposing || event.keyCode === 229) return;
        event.preventDefault();
        submit();
    });
    $('skip').addEventListener('click', () => input.focus());

    return room;
})();
