'use strict';

/*
 * A table of so many rows that only those in view are elements. All have one height.
 * Uses elements.js.
 *
 *     const rows = new Rows(scroller, ROW_PX, () => count, (i) => [text of each cell]);
 *     rows.begin(atEnd);                   // others, from the first or the last
 *     rows.show();                         // as they are now; who is at the end stays there
 */
class Rows {
    #scroller;
    #body;
    #rowPx;
    #count;
    #cells;
    #atEnd = false;

    constructor(scroller, rowPx, count, cells) {
        this.#scroller = scroller;
        this.#body = scroller.querySelector('.rows');
        this.#rowPx = rowPx;
        this.#count = count;
        this.#cells = cells;
        scroller.addEventListener('scroll', () => {
            const { scrollTop, clientHeight, scrollHeight } = scroller;
            this.#atEnd = scrollHeight - clientHeight - scrollTop < rowPx;
            this.#draw();
        });
        new ResizeObserver(() => requestAnimationFrame(() => this.#draw())).observe(scroller);
    }

    begin(atEnd) {
        this.#atEnd = atEnd;
        this.#scroller.scrollTop = 0;
        this.show();
    }

    show() {
        const count = this.#count();
        this.#scroller.setAttribute('aria-rowcount', String(count + 1));
        this.#body.style.height = `${count * this.#rowPx}px`;
        if (this.#atEnd) this.#scroller.scrollTop = this.#scroller.scrollHeight;
        this.#draw();
    }

    #draw() {
        const { scrollTop, clientHeight } = this.#scroller;
        const count = this.#count();
        const first = Math.max(0, Math.min(Math.floor(scrollTop / this.#rowPx) - 1, count - 1));
        const shown = Math.max(0, Math.min(count - first, Math.ceil(clientHeight / this.#rowPx) + 2));
        while (this.#body.children.length > shown) this.#body.lastElementChild.remove();
        for (let i = 0; i < shown; i += 1) this.#write(this.#body.children[i] ?? this.#add(), first + i);
    }

    #add() {
        const row = el('div', { role: 'row' });
        this.#body.append(row);
        return row;
    }

    #write(row, number) {
        const texts = this.#cells(number);
        row.style.top = `${number * this.#rowPx}px`;
        row.setAttribute('aria-rowindex', String(number + 2));
        while (row.children.length < texts.length) row.append(el('span', { role: 'cell' }));
        texts.forEach((text, i) => write(row.children[i], text));
    }
}
