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

/** Make one of the drawings that index.html has as symbols. */
function icon(name) {
    const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
    const use = document.createElementNS(svg.namespaceURI, 'use');
    use.setAttribute('href', `#icon-${name}`);
    svg.setAttribute('aria-hidden', 'true');
    svg.append(use);
    return svg;
}

/** Set a text; not again where it is there already, which a screen reader may read again. */
function write(element, text) {
    if (element.textContent !== text) element.textContent = text;
}

/** Save a file. */
function download(blob, name) {
    const link = el('a', { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // Some browsers begin to read it late.
}

/** Have a text read aloud. */
function announce(text) {
    if (text.trim()) $('live').append(el('p', { textContent: text }));
}
