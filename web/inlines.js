'use strict';

/*
 * The inlines of Markdown (CommonMark 0.31.2, section 6): what is in a paragraph. No DOM.
 *
 *     inlines.parse('*a* b', links)   // [{ tag: 'em', children: ['a'] }, ' b']
 */
const inlines = (() => {

// ---- Limits. Models repeat themselves, and some texts are written to make a renderer slow.

const MAX_INLINES = 24; // emphasis in emphasis, images in images
const MAX_PARENTHESES = 32; // in each other, in a link's destination

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

// What follows a URL in Chinese or Japanese follows without a space.
const BARE = /:\/\/[^\s<\u3001-\u3003\u3008-\u3011\u3014-\u301f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff3d\uff5b-\uff65]+/y;

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

// Chinese, Japanese and Korean are written without spaces: beside their letters and marks, a run needs none to be one.
const EAST_ASIAN = /[\p{sc=Han}\p{sc=Hira}\p{sc=Kana}\p{sc=Hang}\p{sc=Bopo}\u3001-\u303f\u30fb\u30fc\uff01-\uffee]/u;
const SCHEME = new RegExp(`(?:^|[^\\p{L}\\p{N}]|${EAST_ASIAN.source})(https?)$`, 'u');

const isSpace = (char) => char === undefined || /\s/u.test(char);
const isPunctuation = (char) => char !== undefined && /[\p{P}\p{S}]/u.test(char);
const isEastAsian = (char) => char !== undefined && EAST_ASIAN.test(char);

/** Whether a run of `*`, `_` or `~` may open and may close emphasis. */
function flanks(text, start, end) {
    const low = /[\udc00-\udfff]/.test(text[start - 1] ?? '');
    const before = start > 0 ? text.slice(start - (low ? 2 : 1), start) : undefined;
    const after = end < text.length ? String.fromCodePoint(text.codePointAt(end)) : undefined;
    const loose = text[start] !== '_' && (isEastAsian(before) || isEastAsian(after));
    const left = !isSpace(after) && (!isPunctuation(after) || isSpace(before) || isPunctuation(before) || loose);
    const right = !isSpace(before) && (!isPunctuation(before) || isSpace(after) || isPunctuation(after) || loose);
    // A tilde alone is more often a range, `10~20`, than a mark.
    if (text[start] !== '_' && text.slice(start, end) !== '~') return { opens: left, closes: right };
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

const BREAK = /<br[ \t]*\/?>/iy;

/** The inlines of a text, once. */
class Inlines {
    constructor(text, links, { open = false, cell = false }) {
        // A mark at the very end is not shown before it is known what it does.
        Object.assign(this, { text: trimmed(text, open ? '*_~`[\\' : ' \t'), links, open, cell, place: 0 });
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
        // What is still being written is emphasised before the end of its emphasis has come; but `~10` is more often a number.
        let wraps = this.open;
        for (let i = openers.length - 1; wraps && openers[i]?.place >= this.lastLine; i -= 1)
            while (wraps && openers[i].count > (openers[i].char === '~' ? 1 : 0)) wraps = this.wrap(openers[i]);
        return this.after(this.first);
    }

    /** Take what a mark begins; return whether it begins anything. */
    mark(char) {
        if (char === '\\' && this.text[this.place + 1] === '\n') return this.lineEnd(2, true);
        if (char === '\\' || char === '&') return this.take(at(ESCAPED, this.text, this.place), character);
        if (char === '\n') return this.lineEnd(1, false);
        if (char === '`') return this.code();
        if (char === '<') return this.autolink() || this.lineBreak();
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

    /** Hard and soft line breaks (6.7, 6.8): a mark of so many characters, and the blanks around it. */
    lineEnd(chars, hard) {
        const { last } = this;
        this.place += chars;
        this.place += at(/[ \t]*/y, this.text, this.place)[0].length;
        if (typeof last.value !== 'string') return this.add(hard ? { tag: 'br' } : '\n');
        const { length } = last.value;
        last.value = trimmed(last.value, ' ');
        return this.add(hard || length - last.value.length > 1 ? { tag: 'br' } : '\n');
    }

    /** `<br>`, in a table's cell: it is one line, and there is no other way to write two. */
    lineBreak() {
        const mark = this.cell && at(BREAK, this.text, this.place);
        return mark ? this.lineEnd(mark[0].length, true) : false;
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

    /** A URL that nothing is around (GitHub's 6.9); it ends before what ends a sentence, and before marks that need no space. */
    bareUrl() {
        const { text, place, last } = this;
        const scheme = typeof last.value === 'string' && SCHEME.exec(last.value.slice(-7))?.[1];
        const rest = scheme && at(BARE, text, place)?.[0];
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

/**
 * Return what a text is: strings and { tag, children, … }. `links` are the definitions that it may refer to: a Map
 * `defined`, and a Set `missed` of labels that were looked for in vain. `open`: more of it may come; `cell`: it is a table's.
 */
const parse = (text, links, where = {}) => settled(new Inlines(text, links, where).parse());

return { MAYBE_DEFINITION, at, definition, direction, parse, trimmed, unescape, visible };
})();
