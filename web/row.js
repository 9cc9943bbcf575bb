'use strict';

/*
 * A chat in the list: its link, and the menu to rename, export and delete it.
 * Uses elements.js, requests.js, menu.js.
 *
 *     const row = new ChatRow({ chat_id, title, updated_at }, list);      // row.item is its <li>
 *
 * The list has the methods `renamed(row)`, `deleted(row)`, and `failed(error, again)`.
 */
class ChatRow {
    static TITLE_LIMIT = 200;

    #list;
    #wanted = null; // the title that it is to have, while the server does not know

    constructor(chat, list) {
        this.#list = list;
        this.id = chat.chat_id;
        this.name = el('span', { dir: 'auto' });
        // Whole, as a link that is copied is to be.
        const { href } = Object.assign(new URL(location.href), { hash: this.id });
        this.link = el('a', { href, tabIndex: -1 }, this.name);
        this.more = el('button', {
            type: 'button', className: 'icon', tabIndex: -1, textContent: '⋯', 'aria-haspopup': 'menu', 'aria-expanded': 'false',
        });
        this.more.addEventListener('click', () => this.openMenu());
        this.item = el('li', {});
        this.update(chat);
        this.#become('shown', this.link, this.more);
    }

    /** `state`: shown, renaming, confirming or deleting. */
    #become(state, ...children) {
        this.item.dataset.state = state;
        this.item.replaceChildren(...children);
    }

    update({ title, updated_at: updatedAt }) {
        this.updatedAt = new Date(updatedAt);
        this.#call(this.#wanted ?? title);
    }

    #call(title) {
        this.title = title;
        this.name.textContent = title;
        this.more.setAttribute('aria-label', `Options for ${title}`);
        this.link.title = `${title}\n${this.updatedAt.toLocaleString(undefined, { dateStyle: 'medium', timeStyle: 'short' })}`;
    }

    openMenu() {
        menu.open(this.more, {
            Rename: () => this.rename(),
            Export: () => this.export(),
            Delete: () => this.confirm(),
        });
    }

    /** Go back to the link, and to the focus on it if the focus was in the row. */
    #show() {
        const focused = this.item.contains(document.activeElement);
        this.#become('shown', this.link, this.more);
        if (focused) this.link.focus();
    }

    rename() {
        const field = el('input', { value: this.title, maxLength: ChatRow.TITLE_LIMIT, 'aria-label': 'Title', dir: 'auto' });
        const done = (title) => {
            if (this.item.dataset.state !== 'renaming') return;
            this.#show();
            if (title && title !== this.title) this.#save(title);
        };
        field.addEventListener('keydown', (event) => {
            if (event.isComposing || event.keyCode === 229) return;
            if (event.key === 'Enter') done(field.value.trim());
            else if (event.key === 'Escape') done(null);
            else return;
            // Escape also closes drawers, and stops replies.
            event.preventDefault();
            event.stopPropagation();
        });
        field.addEventListener('blur', () => done(field.value.trim()));
        this.#become('renaming', field);
        field.select();
        field.focus();
    }

    /** Show the new title at once; the old one again if the server will not have it. */
    async #save(title) {
        const before = this.title;
        const rename = (to) => {
            this.#call(to);
            this.#list.renamed(this);
        };
        this.#wanted = title;
        rename(title);
        try {
            await request(`/chats/${this.id}`, {
                method: 'PATCH',
                headers: { 'content-type': 'application/json' },
                body: JSON.stringify({ title }),
            });
        } catch (error) {
            // Not where it was renamed once more meanwhile.
            if (this.#wanted === title) rename(before);
            this.#list.failed(error, () => this.#save(title));
        } finally {
            if (this.#wanted === title) this.#wanted = null;
        }
    }

    /** Ask once, in place. */
    confirm() {
        const yes = el('button', { type: 'button', className: 'button danger', textContent: 'Delete' });
        const no = el('button', { type: 'button', className: 'button', textContent: 'Keep' });
        const asked = el('p', { id: `asked-${this.id}` }, 'Delete “', el('bdi', { textContent: this.title }), '”?');
        const box = el('div', { role: 'alertdialog', 'aria-labelledby': asked.id }, asked, yes, no);
        yes.addEventListener('click', () => this.delete());
        no.addEventListener('click', () => this.#show());
        box.addEventListener('keydown', (event) => {
            if (event.key === 'ArrowLeft' || event.key === 'ArrowRight') (document.activeElement === no ? yes : no).focus();
            else if (event.key === 'Escape') this.#show();
            else return;
            event.preventDefault();
            event.stopPropagation();
        });
        this.#become('confirming', box);
        no.focus();
        box.scrollIntoView({ block: 'nearest' });
    }

    async delete() {
        this.#become('deleting', el('p', { className: 'hint', role: 'status', tabIndex: -1, textContent: 'Deleting…' }));
        this.item.firstChild.focus();
        try {
            await request(`/chats/${this.id}`, { method: 'DELETE' });
            this.#list.deleted(this);
        } catch (error) {
            this.#show();
            this.#list.failed(error, () => this.delete());
        }
    }

    /** Save the chat as a file. A link cannot: the server wants to know who asks. */
    async export() {
        announce('Exporting…');
        try {
            const response = await request(`/chats/${this.id}/export`);
            const blob = await response.blob().catch(() => {
                throw new Failure('Export cut short', 'The connection broke before the file was complete.');
            });
            const name = this.title.replace(/[^\p{L}\p{N}]+/gu, '-').slice(0, 60);
            download(blob, `${name}.jsonl`);
        } catch (error) {
            this.#list.failed(error, () => this.export());
        }
    }
}
