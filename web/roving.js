'use strict';

/*
 * Rows of links and buttons that are one stop of Tab: from there arrows go on, from row to row and along a row, Home and
 * End to the first and the last row (WAI-ARIA's roving tabindex).
 * Uses nothing.
 *
 *     const refresh = rove(list, 'li', 'a, button');      // refresh(preferred?) when there are other rows
 */
function rove(container, rowSelector, cellSelector) {
    let stop = null;

    const seen = (element) => element.getClientRects().length > 0 && getComputedStyle(element).visibility === 'visible';
    const rows = () => [...container.querySelectorAll(rowSelector)].filter((row) => cells(row).length > 0);
    const cells = (row) => [...row.querySelectorAll(cellSelector)].filter(seen);

    function refresh(preferred = null) {
        const usable = stop && container.contains(stop) && seen(stop);
        const all = [...container.querySelectorAll(cellSelector)];
        // In a closed drawer none is seen.
        stopAt(usable ? stop : (preferred ?? all.find(seen) ?? all[0]));
    }

    function stopAt(cell) {
        for (const other of container.querySelectorAll(cellSelector)) other.tabIndex = other === cell ? 0 : -1;
        stop = cell;
    }

    container.addEventListener('focusin', ({ target }) => {
        if (target.matches(cellSelector)) stopAt(target);
    });
    container.addEventListener('keydown', (event) => {
        if (!event.target.matches(cellSelector) || event.ctrlKey || event.metaKey || event.altKey) return;
        const all = rows();
        const row = event.target.closest(rowSelector);
        const at = all.indexOf(row);
        const column = cells(row).indexOf(event.target);
        const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: all.length - 1 }[event.key];
        const along = { ArrowLeft: column - 1, ArrowRight: column + 1 }[event.key];
        if (to === undefined && along === undefined) return;
        const line = cells(all[to] ?? row);
        (along === undefined ? line[Math.min(column, line.length - 1)] : line[along])?.focus();
        event.preventDefault();
    });

    return refresh;
}
