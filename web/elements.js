'use strict';

/*
 * What all rooms of the page need to show something. All text of users and models goes through textContent; no markup
 * is made from strings.
 */

const $ = (id) => document.getElementById(id);

/** Make an element; `props` are its properties, or else attributes. */
function el(tag, props, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(props)) {
        if (name in element) element[name] = value;
        else element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
}

/** Set a text; not again where it is there already, which a screen reader may read again. */
function write(element, text) {
    if (element.textContent !== text) element.textContent = text;
}

/** Have a text read aloud. */
function announce(text) {
    if (text.trim()) $('live').append(el('p', { textContent: text }));
}

/** Show a failure in `place`, with a button for each of `actions`; each makes the notice go away first. */
function showNotice(place, failure, actions = {}) {
    const notice = el('div', { className: 'notice' });
    notice.setAttribute('role', 'alert');
    notice.append(el('strong', {}, failure.title ?? 'Error'), el('p', {}, failure.message));
    if (failure.requestId) notice.append(el('p', { className: 'request' }, 'Request id ', el('code', {}, failure.requestId)));
    for (const [name, action] of Object.entries(actions)) {
        const button = el('button', { type: 'button', className: 'button' }, name);
        button.addEventListener('click', () => {
            place.replaceChildren();
            $('message').focus();
            action();
        });
        notice.append(button);
    }
    place.replaceChildren(notice);
}
