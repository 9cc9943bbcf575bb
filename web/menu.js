'use strict';

/*
 * A menu that a button opens, by mouse, touch and keyboard (WAI-ARIA's menu button pattern).
 * Uses elements.js.
 *
 *     menu.open(button, { Rename: () => …, Delete: () => … });      // once more: it is closed
 */
const menu = (() => {
    let opened = null; // its box, and the button

    function open(button, actions) {
        const again = opened?.button === button;
        close();
        if (again) return;
        const items = Object.entries(actions).map(([name, action]) => {
            const item = el('button', { type: 'button', role: 'menuitem', tabIndex: -1, textContent: name });
            item.addEventListener('click', () => {
                button.focus();
                close();
                action();
            });
            return item;
        });
        const box = el('div', { className: 'menu', role: 'menu', 'aria-label': button.getAttribute('aria-label') }, ...items);
        box.addEventListener('keydown', onKey);
        box.addEventListener('focusout', ({ relatedTarget }) => {
            if (!box.contains(relatedTarget)) close();
        });
        // A press takes the focus, from the menu too, which then would be gone before the click.
        for (const pressed of [box, button]) pressed.onmousedown = (event) => event.preventDefault();
        // Beside the list, which scrolls and would cut it off; in the drawer where the list is there.
        const host = button.closest('nav');
        host.append(box);
        place(box, button, host);
        button.setAttribute('aria-expanded', 'true');
        opened = { box, button };
        items[0].focus();
    }

    function close() {
        if (!opened) return;
        const { box, button } = opened;
        opened = null;
        button.setAttribute('aria-expanded', 'false');
        box.remove();
    }

    /** Below the button, or above it where there is no room. */
    function place(box, button, host) {
        const at = button.getBoundingClientRect();
        const { top, bottom, right } = host.getBoundingClientRect();
        const below = at.bottom + box.offsetHeight < bottom;
        box.style.top = `${(below ? at.bottom : at.top - box.offsetHeight) - top + host.scrollTop}px`;
        box.style.right = `${right - at.right}px`;
    }

    function onKey(event) {
        const items = [...opened.box.children];
        const at = items.indexOf(document.activeElement);
        const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: -1 }[event.key];
        if (to !== undefined) items.at(to % items.length).focus();
        else if (event.key === 'Escape' || event.key === 'Tab') opened.button.focus();
        if (to === undefined && event.key !== 'Escape') return;
        // Escape also closes drawers, and stops replies.
        event.preventDefault();
        event.stopPropagation();
    }

    return { open, close };
})();
