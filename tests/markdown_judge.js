/*
 * For test_markdown.py: what a specification expects and what the renderer made, in one form that leaves out what the page
 * does otherwise on purpose: images are links, links that lead nowhere are not elements of their own, items hold paragraphs,
 * code and tables have a box around them.
 */
const BLOCKS = 'P H1 H2 H3 H4 H5 H6 HR UL OL LI BLOCKQUOTE PRE TABLE THEAD TBODY TR'.split(' ');
const HOLDERS = 'BODY DIV UL OL BLOCKQUOTE TABLE THEAD TBODY TR'.split(' ');
const encoded = (url) => encodeURI(url).replace(/%25(?=[0-9a-f]{2})/gi, '%').replace(/%5B/g, '[').replace(/%5D/g, ']');
function address(url) {
    try {
        const { href } = new URL(encoded(url));
        return /^(https?|mailto):/.test(href) ? href : encoded(url);
    } catch {
        return encoded(url);
    }
}
const text = (value) => JSON.stringify(value.replace(/[ \t]+$/gm, ''));
function inside(node, linked) {
    const parts = [];
    let words = '';
    const flush = () => { if (words) parts.push(text(words)); words = ''; };
    for (const child of node.childNodes) {
        if (child.nodeType === Node.TEXT_NODE) {
            if (HOLDERS.includes(node.nodeName) && !child.data.trim()) continue;
            words += child.previousSibling?.nodeName === 'BR' ? child.data.replace(/^\n/, '') : child.data;
            continue;
        }
        if (child.nodeName === 'COLGROUP') continue;
        const made = canonical(child, linked);
        if (child.nodeName === 'IMG' && linked) words += child.alt;
        else { flush(); parts.push(made); }
    }
    flush();
    return parts;
}
const element = (name, parts, ...attributes) => `${name}${attributes.filter(Boolean).map((a) => `[${a}]`).join('')}(${parts.join(' ')})`;
const link = (url, title, parts) => element('link', parts.length > 0 ? parts : [text(encoded(url))], address(url), title);
function canonical(node, linked = false) {
    const { nodeName: name } = node;
    const title = node.getAttribute?.('title');
    if (name === 'A') return link(node.getAttribute('href'), title, inside(node, true));
    if (name === 'IMG') return link(node.getAttribute('src'), title, [text(node.alt || node.getAttribute('src'))]);
    if (name === 'SPAN') {
        const shown = [...node.childNodes];
        const url = shown.at(-1)?.nodeName === 'CODE' ? shown.pop().textContent : '';
        const copy = node.cloneNode();
        copy.append(...shown.map((child) => child.cloneNode(true)));
        if (url && shown.length > 0) copy.lastChild.data = copy.lastChild.data.slice(0, -1);
        return link(url, title, inside(copy, true));
    }
    if (/^(code|table)\b/.test(node.className)) return canonical(node.querySelector('pre, table'));
    if (name === 'PRE') return element('PRE', [JSON.stringify(node.textContent)], node.firstChild.className);
    if (name === 'OL') return element('OL', inside(node), node.start !== 1 && `start=${node.start}`);
    if (name === 'TD' || name === 'TH') return element(name, inside(node), node.align);
    return element(name, inside(node, linked));
}
/** A list is loose if an item or a block in an item stands apart, or, as expected, has a paragraph. */
function expected(html) {
    const body = new DOMParser().parseFromString(html, 'text/html').body;
    for (const list of body.querySelectorAll('ul, ol'))
        list.dataset.loose = String(Array.from(list.children).some((item) => item.querySelector(':scope > p')));
    for (const item of body.querySelectorAll('li')) {
        let run = null;
        for (const child of [...item.childNodes]) {
            const block = BLOCKS.includes(child.nodeName);
            if (block) run = null;
            else if (child.nodeType === Node.TEXT_NODE && !child.data.trim()) child.remove();
            else {
                if (!run) item.insertBefore((run = document.createElement('p')), child);
                if (child.nodeType === Node.TEXT_NODE && !run.hasChildNodes()) child.data = child.data.replace(/^\n/, '');
                if (child.nodeType === Node.TEXT_NODE) child.data = child.data.replace(child.nextSibling && !BLOCKS.includes(child.nextSibling.nodeName) ? '' : /\n$/, '');
                run.append(child);
            }
        }
    }
    return body;
}
function looseness(root) {
    return Array.from(root.querySelectorAll('ul, ol'), (list) => list.dataset.loose ?? String(
        list.querySelector(':scope > .apart, :scope > li > .apart') !== null || false));
}
function rendered(source, pieces) {
    const place = document.createElement('div');
    const writer = markdown.into(place);
    for (const piece of pieces) writer.append(piece);
    writer.end();
    return place;
}
function judge({ source, html }) {
    const wanted = expected(html);
    const whole = rendered(source, [source]);
    const cut = rendered(source, Array.from(source));
    const form = (root) => `${inside(root).join(' ')} ${looseness(root)}`;
    return { wanted: form(wanted), whole: form(whole), cut: cut.innerHTML === whole.innerHTML ? '' : cut.innerHTML + ' / ' + whole.innerHTML };
}
function begun(text) {
    const place = document.createElement('div');
    markdown.into(place).append(text);
    return place;
}
/** Render a text, whole or in pieces of one to three characters; return how deep its elements are in each other. */
function depthOf(text, inPieces) {
    const pieces = [];
    for (let i = 0; i < text.length; i += pieces.at(-1).length) pieces.push(text.slice(i, i + 1 + (i % 3)));
    let level = [rendered(text, inPieces ? pieces : [text])];
    let depth = 0;
    for (; level.length > 0; depth += 1) level = level.flatMap((element) => Array.from(element.children));
    return depth;
}
