'use strict';

/*
 * Markdown as it is being written: CommonMark 0.31.2 (https://spec.commonmark.org/0.31.2/), and of GitHub's tables,
 * strikethrough and bare URLs.
 *
 *     const writer = markdown.into(element);
 *     writer.append('A *re'); writer.append('ply*'); writer.end();
 *
 * The pieces may be cut anywhere: the nodes are the same at the end. A line is taken as soon as it can be told what it
 * begins, and only the paragraph that is still being written is looked at again, so the cost is linear, and what is
 * finished is never touched. For the same reason a definition, `[label]: url`, holds for what comes after it.
 *
 * It makes nodes and never markup. Raw HTML is text, images are links: nothing is fetched from a host that a model names.
 */
const markdown = (() => {

// ---- Limits. Models repeat themselves, and some texts are written to make a renderer slow.

const MAX_CONTAINERS = 24; // quotes, lists and items in each other; deeper marks are text
const MAX_INLINES = 24; // emphasis in emphasis, images in images
const MAX_COLUMNS = 64;
const MAX_PARENTHESES = 32; // in each other, in a link's destination
const NODE_CHARS = 4096; // of a text node that grows: browsers copy it each time
// What is longer is looked at again only when it has grown by this part; until then what comes is shown as it is.
const OFTEN_CHARS = 2048;
const SELDOM = 1 / 32;

// ---- Characters

const ESCAPED = /\\([!-/:-@[-`{-~])|&(?:#(\d{1,7})|#[xX]([\da-fA-F]{1,6})|([A-Za-z]+));/y;
const LATIN_1 =
    'nbsp iexcl cent pound curren yen brvbar sect uml copy ordf laquo not shy reg macr deg plusmn sup2 sup3 acute micro para ' +
    'middot cedil sup1 ordm raquo frac14 frac12 frac34 iquest Agrave Aacute Acirc Atilde Auml Aring AElig Ccedil Egrave Eacute ' +
    'Ecirc Euml Igrave Iacute Icirc Iuml ETH Ntilde Ograve Oacute Ocirc Otilde Ouml times Oslash Ugrave Uacute Ucirc Uuml Yacute ' +
    'THORN szlig agrave aacute acirc atilde auml aring aelig ccedil egrave eacute ecirc euml igrave iacute icirc iuml eth ntilde ' +
    'ograve oacute ocirc otilde ouml divide oslash ugrave uacute ucirc uuml yacute thorn yuml';
// Of the 2,125 names of HTML those that are written in texts (6.2). Without markup there is no way to ask the browser.
const ENTITIES = new Map([
    ...LATIN_1.split(' ').map((name, i) => [name, String.fromCharCode(160 + i)]),
    ...Object.entries({
        amp: '&', lt: '<', gt: '>', quot: '"', apos: "'", ndash: '–', mdash: '—', lsquo: '‘', rsquo: '’', ldquo: '“', rdquo: '”',
        bull: '•', hellip: '…', euro: '€', trade: '™', larr: '←', uarr: '↑', rarr: '→', darr: '↓', harr: '↔', minus: '−',
        infin: '∞', ne: '≠', le: '≤', ge: '≥', asymp: '≈', ensp: '\u2002', emsp: '\u2003', thinsp: '\u2009',
    }),
]);

function character([whole, escaped, decimal, hex, name]) {
    if (escaped) return escaped;
    if (name) return ENTITIES.get(name) ?? whole;
    const code = decimal ? Number(decimal) : parseInt(hex, 16);
    return code === 0 || code > 0x10ffff || (code >= 0xd800 && code < 0xe000) ? '\ufffd' : String.fromCodePoint(code);
}

const unescape = (text) => text.replace(new RegExp(ESCAPED, 'g'), (...match) => character(match));

/** Without so many of a character at the end; `/ +$/` would take quadratic time for a long line of blanks. */
function trimmed(text, chars) {
    let end = text.length;
    while (end > 0 && chars.includes(text[end - 1])) end -= 1;
    return text.slice(0, end);
}

/** Match at a place, and only there. */
function at(pattern, text, place) {
    pattern.lastIndex = place;
    return pattern.exec(text);
}

/**
 * The direction of a text: that of its first letter; '' without one. The browser's own `dir=auto` would look at all of
 * an element's nodes again with each that comes.
 */
function direction(text) {
    const letter = /\p{L}/u.exec(text)?.[0];
    if (!letter) return '';
    return /[\p{sc=Hebr}\p{sc=Arab}\p{sc=Syrc}\p{sc=Thaa}\p{sc=Nkoo}\p{sc=Adlm}\p{sc=Rohg}]/u.test(letter) ? 'rtl' : 'ltr';
}

/** Show the controls that turn the order of letters around, where it matters what is written (Unicode TR 36, TR 55). */
const visible = (text) =>
    text.replace(/[\u202a-\u202e\u2066-\u2069]/g, (control) => `[U+${control.charCodeAt(0).toString(16).toUpperCase()}]`);

// ---- Links (6.3). Of what is parsed, a node is a string or { tag, children, … }.

const SPACE = /[ \t]*\n?[ \t]*/y;
const ANGLED = /<((?:[^<>\n\\]|\\.)*)>/y;
const TITLE = /"((?:[^"\\]|\\[^])*)"|'((?:[^'\\]|\\[^])*)'|\(((?:[^()\\]|\\[^])*)\)/y;
const HOST = '[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?';
const LABEL = /\[((?:[^\\[\]]|\\[^]){0,999})\]/y;

const MAIL = new RegExp(`<([\\w.!#$%&'*+/=?^\`{|}~-]+@${HOST}(?:\\.${HOST})*)>`, 'y');
const MAYBE_DEFINITION = /^\[(?:[^\\[\]]|\\[^]){1,999}\]:\s*\S*(?:\s+(?:["'(][^]*)?)?$/;

const normal = (label) => label.trim().replace(/\s+/g, ' ').toLowerCase().toUpperCase();

/** Return where a destination ends, and what it is; null if there is none. */
function destination(text, place) {
    const angled = at(ANGLED, text, place);
    if (angled) return { end: place + angled[0].length, url: unescape(angled[1]) };
    if (text[place] === '<') return null;
    let [end, open] = [place, 0];
    for (; end < text.length && text[end] > ' ' && text[end] !== '\x7f'; end += 1) {
        if (text[end] === '\\' && text[end + 1] > ' ') end += 1;
        else if (text[end] === '(' && (open += 1) > MAX_PARENTHESES) return null;
        else if (text[end] === ')' && (open -= 1) < 0) break;
    }
    return open > 0 ? null : { end, url: unescape(text.slice(place, end)) };
}

/** The same of a title, with the space that must be before it. */
function title(text, place) {
    const space = at(SPACE, text, place)[0].length;
    const found = space > 0 && at(TITLE, text, place + space);
    return found ? { end: place + space + found[0].length, title: unescape(found[1] ?? found[2] ?? found[3]) } : null;
}

/** `(destination "title")` after a link's text. */
function resource(text, place) {
    if (text[place] !== '(') return null;
    const found = destination(text, place + 1 + at(SPACE, text, place + 1)[0].length);
    if (!found) return null;
    const named = title(text, found.end);
    const end = named?.end ?? found.end;
    const close = end + at(SPACE, text, end)[0].length;
    return text[close] === ')' ? { url: found.url, title: named?.title, end: close + 1 } : null;
}

/** A link reference definition (4.7): `[label]: destination "title"`. */
function definition(text, place) {
    const label = at(LABEL, text, place);
    const colon = place + (label?.[0].length ?? 0);
    if (!label || !label[1].trim() || text[colon] !== ':') return null;
    const start = colon + 1 + at(SPACE, text, colon + 1)[0].length;
    const found = destination(text, start);
    if (!found || found.end === start) return null;
    const named = title(text, found.end);
    for (const { end, title } of named ? [named, found] : [found]) {
        const rest = at(/[ \t]*(?:\n|$)/y, text, end);
        if (rest) return { label: normal(label[1]), url: found.url, title, end: end + rest[0].length };
    }
    return null;
}

/**
 * A link, where it leads to the web or to a mailbox. Anything else, like `javascript:`, is shown and leads nowhere: so
 * are relative ones, as there is nothing of the model's that they could be relative to.
 */
function link({ url, title }, children, className = '') {
    const label = children.length > 0 ? children : [url];
    const { href } = parsed(url.replaceAll('\\', '%5C')) ?? {};
    if (/^(?:https?|mailto):/.test(href)) return { tag: 'a', href, title, className, children: label, label };
    const source = { tag: 'code', children: [visible(url)] };
    const shown = children.length === 0 ? [source] : [...children, ' ', source];
    return { tag: 'span', title, className: 'unlinked', children: url ? shown : children, label };
}

function parsed(url) {
    try {
        return new URL(url);
    } catch {
        return null;
    }
}

/** The text of an image (6.4), and of a link in a link. */
const plainText = (nodes) =>
    nodes.map((node) => (node.tag === 'br' ? '\n' : node.tag ? plainText(node.label ?? node.children) : node)).join('');

// ---- Emphasis and strong emphasis (6.2, and the algorithm in the appendix)

const isSpace = (char) => char === undefined || /\s/u.test(char);
const isPunctuation = (char) => char !== undefined && /[\p{P}\p{S}]/u.test(char);

/** Whether a run of `*`, `_` or `~` may open and may close emphasis. */
function flanks(text, start, end) {
    const low = /[\udc00-\udfff]/.test(text[start - 1] ?? '');
    const before = start > 0 ? text.slice(start - (low ? 2 : 1), start) : undefined;
    const after = end < text.length ? String.fromCodePoint(text.codePointAt(end)) : undefined;
    const left = !isSpace(after) && (!isPunctuation(after) || isSpace(before) || isPunctuation(before));
    const right = !isSpace(before) && (!isPunctuation(before) || isSpace(after) || isPunctuation(after));
    if (text[start] !== '_') return { opens: left, closes: right };
    return { opens: left && (!right || isPunctuation(before)), closes: right && (!left || isPunctuation(after)) };
}

function pairs(opener, closer) {
    if (opener.char !== closer.char) return false;
    if (opener.char === '~') return opener.count === closer.count;
    const either = opener.closes || closer.opens;
    return !either || (opener.length + closer.length) % 3 !== 0 || (opener.length % 3 === 0 && closer.length % 3 === 0);
}

const depthOver = (nodes) => nodes.reduce((deepest, { depth = 0 }) => Math.max(deepest, depth), 0) + 1;

// ---- Inlines (6)

/** The inlines of a text, once. `open`: more of it may come. */
class Inlines {
    constructor(text, links, open) {
        // A mark at the very end is not shown before it is known what it does.
        Object.assign(this, { text: trimmed(text, open ? '*_~`[\\' : ' \t'), links, open, place: 0 });
        this.first = this.last = { value: '' }; // a list of what was found: emphasis takes parts of it together
        this.runs = []; // of `*`, `_` and `~`
        this.brackets = [];
        this.linkedTo = 0; // so many brackets are before a link, and can be none
        this.ticks = new Map(); // length of a run of backticks -> where there are such, the first last
        for (const { 0: { length }, index } of [...this.text.matchAll(/`+/g)].reverse())
            this.ticks.set(length, this.ticks.get(length) ?? []).get(length).push(index);
        this.lastLine = this.text.lastIndexOf('\n') + 1;
    }

    parse() {
        const special = /[\\`*_~[\]!<&\n:]/g;
        while (this.place < this.text.length) {
            special.lastIndex = this.place;
            const next = special.exec(this.text)?.index ?? this.text.length;
            if (next > this.place) this.add(this.text.slice(this.place, next));
            this.place = next;
            if (next < this.text.length && !this.mark(this.text[next])) {
                this.add(this.text[next]);
                this.place += 1;
            }
        }
        const openers = this.emphasise(0);
        // What is still being written is emphasised before the end of its emphasis has come.
        let wraps = this.open;
        for (let i = openers.length - 1; wraps && openers[i]?.place >= this.lastLine; i -= 1)
            while (wraps && openers[i].count > 0) wraps = this.wrap(openers[i]);
        return this.after(this.first);
    }

    /** Take what a mark begins; return whether it begins anything. */
    mark(char) {
        if (char === '\\' && this.text[this.place + 1] === '\n') return this.lineEnd(true);
        if (char === '\\' || char === '&') return this.take(at(ESCAPED, this.text, this.place), character);
        if (char === '\n') return this.lineEnd(false);
        if (char === '`') return this.code();
        if (char === '<') return this.autolink();
        if (char === ':') return this.bareUrl();
        if (char === '[' || char === '!') return this.openBracket(char);
        if (char === ']') return this.closeBracket();
        return this.run(char);
    }

    take(match, make) {
        if (!match) return false;
        this.place += match[0].length;
        return this.add(make(match));
    }

    add(value) {
        const item = { value, before: this.last };
        this.last = this.last.after = item;
        return true;
    }

    /** What was found after an item, until another one. */
    after(item, until) {
        const found = [];
        for (let next = item.after; next !== until; next = next.after)
            found.push(next.value ?? next.char.repeat(next.count));
        return found;
    }

    /** Hard and soft line breaks (6.7, 6.8). */
    lineEnd(hard) {
        const { last } = this;
        this.place += hard ? 2 : 1;
        this.place += at(/[ \t]*/y, this.text, this.place)[0].length;
        if (hard || typeof last.value !== 'string') return this.add(hard ? { tag: 'br' } : '\n');
        const { length } = last.value;
        last.value = trimmed(last.value, ' ');
        return this.add(length - last.value.length > 1 ? { tag: 'br' } : '\n');
    }

    /** A code span (6.1). */
    code() {
        const { text, place } = this;
        const { length } = at(/`+/y, text, place)[0];
        const closers = this.ticks.get(length) ?? [];
        while (closers.at(-1) < place + length) closers.pop();
        let end = closers.at(-1);
        if (end === undefined && this.open && length < 3 && place >= this.lastLine) end = text.length;
        if (end === undefined) {
            this.place += length;
            return this.add('`'.repeat(length));
        }
        const content = text.slice(place + length, end).replaceAll('\n', ' ');
        this.place = Math.min(end + length, text.length);
        const padded = content.startsWith(' ') && content.endsWith(' ') && /[^ ]/.test(content);
        return this.add({ tag: 'code', children: [visible(padded ? content.slice(1, -1) : content)] });
    }

    /** `<https://…>` and `<mail@host>` (6.5). */
    autolink() {
        const { text, place } = this;
        const url = at(/<([A-Za-z][A-Za-z0-9.+-]{1,31}:[^\s<>]*)>/y, text, place);
        const mail = at(MAIL, text, place);
        return this.take(url ?? mail, ([, shown]) => link({ url: url ? shown : `mailto:${shown}` }, url ? [] : [shown]));
    }

    /** A URL that nothing is around (GitHub's 6.9); it ends before what ends a sentence. */
    bareUrl() {
        const { text, place, last } = this;
        const scheme = typeof last.value === 'string' && /(?:^|[^\p{L}\p{N}])(https?)$/u.exec(last.value.slice(-7))?.[1];
        const rest = scheme && at(/:\/\/[^\s<]+/y, text, place)?.[0];
        if (!rest) return false;
        let end = rest.length;
        let open = rest.split('(').length - rest.split(')').length;
        for (; end > 3 && /[?!.,:*_~'")\]}`|]/.test(rest[end - 1]); end -= 1)
            if (rest[end - 1] === ')' && (open += 1) > 0) break;
        if (end === 3) return false;
        const url = scheme + rest.slice(0, end);
        const found = link({ url }, []);
        last.value = last.value.slice(0, -scheme.length);
        this.place += end;
        return this.add(found.tag === 'a' ? found : url);
    }

    run(char) {
        const [{ length }] = at(/\*+|_+|~+/y, this.text, this.place);
        const item = { char, length, count: length, before: this.last, place: this.place };
        if (char !== '~' || length <= 2) Object.assign(item, flanks(this.text, this.place, this.place + length));
        this.last = this.last.after = item;
        this.runs.push(item);
        this.place += length;
        return true;
    }

    openBracket(char) {
        const image = char === '!';
        if (image && this.text[this.place + 1] !== '[') return false;
        this.place += image ? 2 : 1;
        this.add(image ? '![' : '[');
        if (this.brackets.length > 0) this.brackets.at(-1).nested = true;
        this.brackets.push({ image, item: this.last, place: this.place, runs: this.runs.length });
        return true;
    }

    closeBracket() {
        const { text, place } = this;
        const bracket = this.brackets.pop();
        const inner = this.brackets.length < this.linkedTo;
        this.linkedTo = Math.min(this.linkedTo, this.brackets.length);
        if (!bracket || (inner && !bracket.image)) return false;
        const found = resource(text, place + 1) ?? this.reference(bracket) ?? this.unfinished();
        if (!found) return false;
        this.emphasise(bracket.runs);
        const children = this.after(bracket.item);
        const depth = depthOver(children);
        if (depth > MAX_INLINES + 1) {
            Object.assign(this, { brackets: [], linkedTo: 0 }); // what is around it would be deeper
            return false;
        }
        this.last = bracket.item.before;
        this.last.after = undefined;
        this.place = found.end;
        if (!bracket.image) this.linkedTo = this.brackets.length;
        if (bracket.image) return this.add({ ...link(found, [plainText(children)].filter(Boolean), 'image'), depth });
        return this.add(link(found, children));
    }

    /** `[text][label]`, `[label][]` and `[label]`, if the label was defined before. */
    reference(bracket) {
        const { text, place, links } = this;
        const label = at(LABEL, text, place + 1);
        const short = !label?.[1];
        if (short && (bracket.nested || place - bracket.place > 999)) return null;
        const name = normal(short ? text.slice(bracket.place, place) : label[1]);
        const found = links.defined.get(name);
        if (!found && !this.open) links.missed.add(name);
        return found ? { ...found, end: place + 1 + (label?.[0].length ?? 0) } : null;
    }

    /** A link whose destination is still being written is its text until then. */
    unfinished() {
        const rest = this.open && at(/\([^\s()]*(?:[ ]+["'(][^"')\n]*)?$/y, this.text, this.place + 1);
        return rest ? { url: '', end: this.text.length } : null;
    }

    /** Pair the runs from a number on; return those that are left and may open. */
    emphasise(from) {
        const openers = [];
        const bottoms = new Map(); // below it no opener fits: without that, the time would be quadratic
        for (const closer of this.runs.splice(from)) {
            while (closer.closes && closer.count > 0) {
                const kind = `${closer.char}${closer.opens}${closer.char === '~' ? closer.length : closer.length % 3}`;
                const bottom = bottoms.get(kind) ?? 0;
                let i = openers.length - 1;
                while (i >= bottom && !pairs(openers[i], closer)) i -= 1;
                if (i < bottom || !this.wrap(openers[i], closer)) {
                    bottoms.set(kind, openers.length);
                    break;
                }
                openers.length = openers[i].count > 0 ? i + 1 : i;
                for (const [other, depth] of bottoms) bottoms.set(other, Math.min(depth, openers.length));
            }
            if (closer.opens && closer.count > 0) openers.push(closer);
        }
        return openers;
    }

    /** Emphasise what is between two runs, if that is not too deep. */
    wrap(opener, closer) {
        const children = this.after(opener, closer);
        const depth = depthOver(children);
        if (depth > MAX_INLINES) return false;
        const used = Math.min(opener.count, closer?.count ?? 2, 2);
        const tag = opener.char === '~' ? 'del' : (used === 2 ? 'strong' : 'em');
        const item = { value: { tag, depth, children }, before: opener, after: closer };
        opener.after = item;
        if (closer) closer.before = item;
        else this.last = item;
        opener.count -= used;
        if (closer) closer.count -= used;
        return true;
    }
}

// ---- Nodes

/** Join strings; no link in a link; in links, the order of letters is seen. */
function settled(nodes, linked = false) {
    const found = [];
    for (const node of nodes.flatMap((node) => (linked && node.label) || [node])) {
        if (typeof node !== 'string') {
            found.push(node.children ? { ...node, children: settled(node.children, linked || 'label' in node) } : node);
        } else if (typeof found.at(-1) === 'string') {
            found[found.length - 1] += linked ? visible(node) : node;
        } else if (node) {
            found.push(linked ? visible(node) : node);
        }
    }
    return found;
}

/** Make an element; properties, not attributes: none that runs anything is ever among them. */
function make(tag, properties = {}, ...children) {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
}

const WEB = { target: '_blank', rel: 'noopener noreferrer nofollow' };

function nodeOf(node) {
    if (typeof node === 'string') return document.createTextNode(node);
    const { tag, href, title = '', className = '', children = [] } = node;
    const named = { ...(title && { title: visible(title) }), ...(className && { className }) };
    const element = make(tag, { ...named, ...(href && { href, ...WEB }) });
    patch(element, children);
    return element;
}

/** Make an element's children what they are to be; those that are so already stay. */
function patch(element, nodes) {
    let live = element.firstChild;
    const more = document.createDocumentFragment();
    for (const node of nodes) {
        const next = live?.nextSibling;
        if (!live) more.append(nodeOf(node));
        else if (typeof node === 'string' && live.nodeType === Node.TEXT_NODE) {
            if (node !== live.data && node.startsWith(live.data)) live.appendData(node.slice(live.data.length));
            else if (node !== live.data) live.data = node;
        } else if (live.localName === node.tag && node.tag !== 'a' && node.tag !== 'span') patch(live, node.children ?? []);
        else if (!live.isEqualNode(nodeOf(node))) live.replaceWith(nodeOf(node));
        live = next;
    }
    while (live) {
        const next = live.nextSibling;
        live.remove();
        live = next;
    }
    element.append(more);
}

/** Append to the text in an element. */
function grow(element, text) {
    const { lastChild: last } = element;
    if (!text) return;
    if (last?.nodeType === Node.TEXT_NODE && last.length + text.length < NODE_CHARS) last.appendData(text);
    else element.append(text);
}

// ---- Leaves (4): a leaf takes the text of its lines, `add`, and their ends, `endLine`; `close` is its last word.

/** A paragraph (4.8), or a heading (4.2, 4.3), which is one of a single line. */
class Paragraph {
    constructor(tag, links) {
        this.element = make(tag);
        this.links = links;
        this.text = ''; // so far as it has been looked at
        this.parts = []; // what has come since
        this.length = this.grown = 0;
        this.unended = false; // the last line has ended, and another one may follow
    }

    get isParagraph() {
        return this.element.localName === 'p';
    }

    add(text) {
        const part = this.unended ? `\n${text}` : text;
        this.unended = false;
        this.parts.push(part);
        this.length += part.length;
        this.grown += part.length;
    }

    endLine() {
        this.unended = true;
    }

    /** All of the text: what has come is joined with what was there. */
    source() {
        if (this.parts.length > 0) this.text += this.parts.splice(0).join('');
        return this.text;
    }

    show() {
        if (this.grown === 0) return;
        if (this.length > OFTEN_CHARS && this.grown < this.length * SELDOM) {
            grow(this.element, this.parts.slice(this.raw).join(''));
            this.raw = this.parts.length;
            return;
        }
        this.raw = this.grown = 0;
        const text = this.source();
        // What may yet become a table, or a definition, which is not shown.
        const line = text.lastIndexOf('\n') + 1;
        const shown = text[line] === '|' ? text.slice(0, line) : text;
        this.render(MAYBE_DEFINITION.test(text) ? '' : shown, true);
    }

    render(text, open) {
        // Of a heading, the marks at its end (4.2).
        if (!this.isParagraph) {
            const bare = trimmed(trimmed(text, ' \t'), '#');
            text = bare === '' || ' \t'.includes(bare.at(-1)) ? bare : text;
        }
        patch(this.element, settled(new Inlines(text, this.links, open).parse()));
        const dir = this.directs.length > 0 && direction(text);
        if (dir) for (const element of this.directs.splice(0)) element.dir = dir;
    }

    /** Take the definitions (4.7) that a paragraph begins with. */
    define() {
        let place = 0;
        const text = this.source();
        for (let found; (found = definition(text, place)) && !this.links.missed.has(found.label); place = found.end)
            if (!this.links.defined.has(found.label)) this.links.defined.set(found.label, found);
        this.text = text.slice(place);
        if (!this.text) this.unended = false;
    }

    close() {
        if (this.isParagraph) this.define();
        this.render(this.source(), false);
        if (this.isParagraph && !this.text.trim()) this.element.remove();
    }

    /** The line below says that it is a heading; return whether it may. */
    underline(level) {
        this.define();
        if (!this.text) return false;
        this.render(this.text, false);
        const { dir, classList } = this.element;
        const heading = make(`h${level}`, dir ? { dir } : {});
        while (this.element.firstChild) heading.append(this.element.firstChild);
        heading.classList.add(...classList);
        this.element.replaceWith(heading);
        return true;
    }
}

/** Code, fenced (4.5) or indented (4.4). */
class Code {
    constructor(language, fence = null) {
        this.fence = fence; // { mark, length, indent }
        this.blanks = ''; // lines that belong to indented code only if more of it follows
        this.code = make('code', language ? { className: `language-${language}` } : {});
        const head = make('div', { className: 'head' }, make('span', {}, language), copyButton(this.code));
        const scroller = make('pre', { dir: 'ltr', tabIndex: 0 }, this.code);
        this.element = make('div', { className: 'code' }, head, scroller);
    }

    /** Take a line of the code; return what it was: 'text', a 'blank' line, the 'end', or 'none' of it. */
    take(line) {
        if (this.fence) {
            const close = line.match(/[ \t]*(`+|~+)[ \t]*$/y);
            if (line.indent < 4 && close?.[1].startsWith(this.fence.mark)) return 'end';
            line.take(Math.min(line.indent, this.fence.indent));
        } else if (line.isBlank) {
            line.take(4);
            this.blanks += `${line.rest}\n`;
            return 'blank';
        } else if (line.indent < 4) {
            return 'none';
        } else {
            line.take(4);
        }
        this.add(line.rest);
        return 'text';
    }

    add(text) {
        grow(this.code, this.blanks + visible(text));
        this.blanks = '';
    }

    endLine() {
        grow(this.code, '\n');
    }

    show() {}
    close() {}
}

function copyButton(code) {
    const button = make('button', { type: 'button' }, 'Copy');
    button.addEventListener('click', async () => {
        try {
            await navigator.clipboard.writeText(code.textContent);
            button.textContent = 'Copied';
        } catch {
            // No permission, or no TLS: ready for the keyboard.
            getSelection().selectAllChildren(code);
            button.textContent = 'Selected';
        }
        setTimeout(() => (button.textContent = 'Copy'), 2000);
    });
    return button;
}

/**
 * A table of GitHub's (4.10): its rows are whole lines. The widths of its columns are those of the first two lines in the
 * source: widths that follow the rows would move all of them with each.
 */
class Table {
    constructor(header, delimiters, links) {
        this.alignments = delimiters.map((cell) => {
            if (cell.endsWith(':')) return cell.startsWith(':') ? 'center' : 'right';
            return cell.startsWith(':') ? 'left' : '';
        });
        this.links = links;
        const widths = header.map((cell, i) => Math.min(Math.max(cell.length, delimiters[i].length, 10), 30) + 2);
        const width = widths.reduce((sum, one) => sum + one, 0);
        const columns = widths.map((one) => make('col'));
        columns.forEach((column, i) => (column.style.width = `${(100 * widths[i]) / width}%`));
        this.table = make('table', {}, make('colgroup', {}, ...columns), make('thead', {}, this.row('th', header)));
        this.table.style.width = `max(100%, ${width}ch)`;
        this.element = make('div', { className: 'table', tabIndex: 0 }, this.table);
    }

    row(tag, cells) {
        return make('tr', {}, ...this.alignments.map((align, i) => {
            const element = make(tag, { dir: direction(cells[i] ?? ''), ...(align && { align }) });
            patch(element, settled(new Inlines(cells[i] ?? '', this.links, false).parse()));
            return element;
        }));
    }

    add(line) {
        this.body ??= this.table.appendChild(make('tbody'));
        this.body.append(this.row('td', cells(line)));
    }

    endLine() {}
    show() {}
    close() {}
}

/** The cells of a row: a bar is text only after a backslash, also in code. */
function cells(line) {
    const row = line.trim();
    const found = [''];
    for (const part of row.match(/\\\||\||[^\\|]+|\\/g) ?? [])
        if (part === '|') found.push('');
        else found[found.length - 1] += part === '\\|' ? '|' : part;
    if (row.startsWith('|')) found.shift();
    if (found.length > 1 && !found.at(-1).trim()) found.pop();
    return found.map((cell) => cell.trim());
}

// ---- Blocks (3, 5): the strategy of the specification's appendix, a line at a time.

/** A line, read from the left; a tab reaches to the next column of four (2.2). */
class Line {
    constructor(text) {
        this.text = text;
        this.place = this.column = 0;
    }

    get rest() {
        return this.text.slice(this.place);
    }

    get isBlank() {
        return at(/[ \t]*$/y, this.text, this.place) !== null;
    }

    /** The columns of white space that come next. */
    get indent() {
        let { column } = this;
        for (let i = this.place; ' \t'.includes(this.text[i] ?? '?'); i += 1) column += this.text[i] === '\t' ? 4 - (column % 4) : 1;
        return column - this.column;
    }

    /** Take so many columns of white space, or less if there are less. */
    take(columns) {
        for (; columns > 0 && ' \t'.includes(this.text[this.place] ?? '?'); columns -= 1) {
            // Of a tab only a part may be meant.
            if (this.text[this.place] === '\t')
                this.text = this.text.slice(0, this.place) + ' '.repeat(4 - (this.column % 4)) + this.text.slice(this.place + 1);
            this.skip(1);
        }
    }

    skip(chars) {
        this.place += chars;
        this.column += chars;
    }

    match(pattern) {
        return at(pattern, this.text, this.place);
    }
}

const QUOTE = />/y;
const RULE = /(?:(?:\*[ \t]*){3,}|(?:_[ \t]*){3,}|(?:-[ \t]*){3,})$/y;
const HEADING = /(#{1,6})(?:[ \t]+|$)/y;
const UNDERLINE = /(=+|-+)[ \t]*$/y;
const FENCE = /(`{3,})([^`]*)$|(~{3,})(.*)$/y;
const MARKER = /(?:([-+*])|(\d{1,9})([.)]))(?=[ \t]|$)/y;
const DELIMITERS = /(?=.*\|)\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/y;
// Of a line that has only these so far, it is not known what it begins.
const DECIDES = /[^-+*_=|:~`#>.)\d\s]/;
// What such a line begins is known at its end.
const WHOLE = /[-+*>.)\d\s]*(?:`{3}|~{3}|\|)/y;

class Writer {
    constructor(element) {
        this.containers = [{ element }]; // which are in each other: { element, kind, … }
        this.leaf = null; // what is open in the innermost
        this.links = { defined: new Map(), missed: new Set() };
        this.line = 'undecided'; // or 'whole', to be taken at its end; 'begun': its leaf takes the rest; 'ended'
        this.parts = [];
        this.cr = false;
        this.blankIn = -1; // the number of the quote, or the document, in which the line before was blank; or -1
    }

    append(text) {
        if (this.cr && text[0] === '\n') text = text.slice(1);
        if (text) this.cr = text.endsWith('\r');
        const lines = text.replaceAll('\0', '\ufffd').split(/\r\n|\n|\r/);
        lines.forEach((part, i) => {
            if (part) this.take(part);
            if (i < lines.length - 1) this.endLine();
        });
        this.leaf?.show();
    }

    end() {
        if (this.line === 'ended') return;
        if (this.line === 'begun' || this.parts.length > 0) this.endLine();
        this.close(0);
        this.line = 'ended';
    }

    /** Take a part of a line. */
    take(part) {
        if (this.line === 'begun') {
            this.leaf.add(part);
            return;
        }
        this.parts.push(part);
        if (this.line === 'whole' || !DECIDES.test(part)) return;
        const text = this.parts.join('');
        this.line = this.leaf instanceof Table || at(WHOLE, text, 0) ? 'whole' : 'begun';
        if (this.line === 'begun') this.begin(text);
    }

    endLine() {
        if (this.line === 'begun' || this.begin(this.parts.join(''))) this.leaf.endLine();
        if (this.leaf instanceof Paragraph && !this.leaf.isParagraph) this.close(this.containers.length);
        this.line = 'undecided';
    }

    /** Take a line from its start; return whether there is a leaf that has taken of it, and takes the rest. */
    begin(text) {
        this.parts = [];
        const line = new Line(text);
        let depth = 1;
        while (depth < this.containers.length && goesOn(this.containers[depth], line)) depth += 1;
        if (depth === this.containers.length && this.leaf instanceof Code) {
            const taken = this.leaf.take(line);
            if (taken === 'end') this.close(depth);
            if (taken !== 'none') {
                this.blankIn = -1;
                return taken === 'text';
            }
        }
        const isBlank = line.isBlank; // before what it begins is taken
        const taken = this.start(line, depth);
        if (!isBlank) this.blankIn = -1;
        return taken;
    }

    /** Open what a line begins, in the containers that go on. */
    start(line, depth) {
        while (line.indent < 4) {
            const { indent } = line;
            line.take(indent);
            const leaf = depth === this.containers.length ? this.leaf : null;
            const paragraph = leaf?.isParagraph ? leaf : null;
            let match;
            if (depth < MAX_CONTAINERS && line.match(QUOTE)) {
                line.skip(1);
                line.take(1);
                this.close(depth);
                this.open({ kind: 'quote', element: make('blockquote') });
            } else if ((match = line.match(HEADING))) {
                line.skip(match[0].length);
                this.openLeaf(depth, new Paragraph(`h${match[1].length}`, this.links));
                this.leaf.add(line.rest);
                return true;
            } else if ((match = line.match(FENCE))) {
                const [, ticks, info = match[4], tildes] = match;
                const [language] = unescape(info.trim()).split(/\s/);
                this.openLeaf(depth, new Code(language, { mark: (ticks ?? tildes), indent }));
                return false;
            } else if (paragraph && (match = line.match(UNDERLINE)) && paragraph.underline(match[1][0] === '=' ? 1 : 2)) {
                this.leaf = null;
                return false;
            } else if (paragraph && line.match(DELIMITERS) && this.openTable(depth, cells(line.rest))) {
                return false;
            } else if (line.match(RULE)) {
                this.openLeaf(depth, { element: make('hr'), close() {} });
                this.leaf = null;
                return false;
            } else if (depth < MAX_CONTAINERS - 1 && (match = marker(line, paragraph))) {
                this.openItem(depth, line, match, indent);
            } else {
                break;
            }
            depth = this.containers.length;
        }
        return this.text(line, depth);
    }

    /** Take a line, or what is left of it, that begins no block but a paragraph or indented code. */
    text(line, depth) {
        if (line.isBlank) {
            this.close(depth);
            this.blankIn = this.containers.findLastIndex(({ kind }) => kind !== 'list' && kind !== 'item');
            return false;
        }
        // Also where the containers of the paragraph do not go on: a lazy continuation line (5.1).
        if (!this.leaf?.isParagraph) {
            const row = depth === this.containers.length && this.leaf instanceof Table;
            if (line.indent > 3) {
                line.take(4);
                this.openLeaf(depth, new Code(''));
            } else if (!row) {
                this.openLeaf(depth, new Paragraph('p', this.links));
            }
        }
        if (!(this.leaf instanceof Code)) line.take(line.indent);
        this.leaf.add(line.rest);
        return true;
    }

    openLeaf(depth, leaf) {
        this.close(depth);
        this.leaveList();
        const holders = this.containers.filter(({ kind, element }) => (kind === 'item' || kind === 'quote') && !element.dir);
        leaf.directs = [leaf.element, ...holders.map(({ element }) => element)];
        this.place(leaf.element);
        this.leaf = leaf;
    }

    openItem(depth, line, [whole, bullet, number, delimiter], indent) {
        line.skip(whole.length);
        const spaces = line.isBlank || line.indent > 4 ? 1 : line.indent;
        line.take(spaces);
        this.close(depth);
        const mark = bullet ?? delimiter;
        const { kind, mark: before } = this.containers.at(-1);
        if (kind !== 'list' || before !== mark) {
            const start = Number(number ?? 1);
            this.open({ kind: 'list', mark, element: make(bullet ? 'ul' : 'ol', start === 1 ? {} : { start }) });
        }
        this.open({ kind: 'item', width: indent + whole.length + spaces, element: make('li') });
    }

    /** A paragraph's last line turns out to be a table's header; return whether it does. */
    openTable(depth, delimiters) {
        const source = this.leaf.source();
        const start = source.lastIndexOf('\n') + 1;
        const header = cells(source.slice(start));
        if (header.length !== delimiters.length || header.length > MAX_COLUMNS) return false;
        this.leaf.text = source.slice(0, Math.max(0, start - 1));
        this.openLeaf(depth, new Table(header, delimiters, this.links));
        return true;
    }

    /** A list takes nothing but items. */
    leaveList() {
        if (this.containers.at(-1).kind === 'list') this.containers.pop();
    }

    open(container) {
        if (container.kind !== 'item') this.leaveList();
        this.place(container.element);
        this.containers.push(container);
    }

    /** Put an element in the innermost container. After a blank line in a list it stands apart: the list is loose (5.3). */
    place(element) {
        const { kind, element: parent } = this.containers.at(-1);
        const follows = (kind === 'list' || kind === 'item') && parent.hasChildNodes();
        if (follows && this.blankIn >= 0 && this.containers.length > this.blankIn) element.classList.add('apart');
        parent.append(element);
    }

    /** Close what is open, but for so many containers. */
    close(depth) {
        this.leaf?.close();
        this.leaf = null;
        this.containers.length = Math.max(1, depth);
    }
}

/** Whether a line goes on with a container; if so, take what says it. */
function goesOn({ kind, element, width }, line) {
    if (kind === 'list') return true;
    if (kind === 'item') {
        if (line.isBlank ? !element.hasChildNodes() : line.indent < width) return false;
        line.take(width);
        return true;
    }
    const before = { ...line };
    if (line.indent < 4) {
        line.take(line.indent);
        if (line.match(QUOTE)) {
            line.skip(1);
            line.take(1);
            return true;
        }
    }
    Object.assign(line, before);
    return false;
}

/** A list marker (5.2); not every one may interrupt a paragraph. */
function marker(line, paragraph) {
    const match = line.match(MARKER);
    if (!match || !paragraph) return match;
    const blank = at(/[ \t]*$/y, line.text, line.place + match[0].length);
    return blank || Number(match[2] ?? 1) !== 1 ? null : match;
}

/** Write Markdown into an element, as it comes. */
const into = (element) => new Writer(element);

/** Write a text that is whole into an element. */
function whole(element, text) {
    const writer = into(element);
    writer.append(text);
    writer.end();
}

/** What is to be read aloud of a text. */
function plain(text) {
    const place = make('div');
    whole(place, text);
    for (const end of place.querySelectorAll('br')) end.replaceWith('\n');
    return Array.from(place.querySelectorAll('p, h1, h2, h3, h4, h5, h6, pre, th, td'), (block) => block.textContent).join('\n');
}

return { into, whole, plain };
})();
