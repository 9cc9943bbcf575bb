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
 * It makes nodes and never markup. Raw HTML is text, but for the line breaks of tables; images are links: nothing is
 * fetched from a host that a model names. Here are the blocks; what is in them is parsed by inlines.js.
 */
const markdown = (() => {

const { MAYBE_DEFINITION, at, definition, direction, trimmed, unescape, visible } = inlines;

// ---- Limits. Models repeat themselves, and some texts are written to make a renderer slow.

const MAX_CONTAINERS = 24; // quotes, lists and items in each other; deeper marks are text
const MAX_COLUMNS = 64;
const NODE_CHARS = 4096; // of a text node that grows: browsers copy it each time
// What is longer is looked at again only when it has grown by this part; until then what comes is shown as it is.
const OFTEN_CHARS = 2048;
const SELDOM = 1 / 32;

// ---- Nodes

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
        patch(this.element, inlines.parse(text, this.links, { open }));
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
        this.table.dir = direction(this.table.textContent); // of its columns
        this.element = make('div', { className: 'table', tabIndex: 0 }, this.table);
    }

    row(tag, cells) {
        return make('tr', {}, ...this.alignments.map((align, i) => {
            const element = make(tag, align ? { align } : {});
            patch(element, inlines.parse(cells[i] ?? '', this.links, { cell: true }));
            element.dir = direction(element.textContent);
            return element;
        }));
    }

    add(line) {
        this.body ??= this.table.appendChild(make('tbody'));
        this.body.append(this.row('td', cells(line, this.alignments.length)));
    }

    endLine() {}
    show() {}
    close() {}
}

/**
 * The cells of a row: a bar is text only after a backslash, also in code. But models forget that: where there are more than
 * there should be, which would not be shown, bars in code are text if that is what makes them as many.
 */
function cells(line, wanted = Infinity) {
    const row = line.trim();
    const found = split(row, /\\\||\||[^\\|]+|\\/g);
    const others = found.length > wanted ? split(row, /\\\||`[^`]*`|\||[^\\|`]+|[\\`]/g) : [];
    return others.length === wanted ? others : found;
}

function split(row, parts) {
    const found = [''];
    for (const part of row.match(parts) ?? [])
        if (part === '|') found.push('');
        else found[found.length - 1] += part.replaceAll('\\|', '|');
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
            this.blankIn = this.containers.length - 1;
            while (['list', 'item'].includes(this.containers[this.blankIn].kind)) this.blankIn -= 1;
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
        const header = cells(source.slice(start), delimiters.length);
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
