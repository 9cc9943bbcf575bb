'use strict';

/*
 * The chat that is open, and its turns: this room wires the others together. The id of the chat is the fragment of the
 * address, so that reload, back and links work.
 * Uses all the others.
 */
{
    let turn = null; // the running one: its stream and its live reply

    const idInAddress = () => {
        const id = location.hash.slice(1);
        return settings.UUID.test(id) ? id.toLowerCase() : null;
    };

    function openChat(id) {
        leave();
        for (const place of [thread.messages, $('notice'), $('live')]) place.replaceChildren();
        $('meter').hidden = true;
        $('welcome').hidden = id !== null;
        sidebar.show(id);
        thread.follow(true);
        past.open(id);
    }

    function newChat() {
        sidebar.close();
        if (location.hash) history.pushState(null, '', location.pathname + location.search);
        openChat(null);
        composer.focus();
    }

    /** A new chat has got its id. What it is called, the list of chats knows. */
    function adopt(id) {
        if (id === null || id === past.chat) return;
        past.chat = id;
        history.replaceState(null, '', `#${id}`);
    }

    // ---- A turn: one message sent, one reply streamed.

    const newKey = () => Array.from(crypto.getRandomValues(new Uint32Array(4)), (part) => part.toString(36)).join('-');

    function newTurn(reply, begun) {
        const stream = new ReplyStream({
            opened(chatId, replyId) {
                reply.item.id = replyId ?? '';
                adopt(chatId);
                sidebar.touch(past.chat);
            },
            token: (text) => reply.add(text),
            arrived: (at, words) => meter.read(at, words),
            waiting: (why) => reply.wait(why),
            resumed: () => meter.resume(),
        }, begun);
        for (const place of [$('notice'), $('live')]) place.replaceChildren();
        thread.follow(true);
        meter.begin(begun !== undefined);
        const mine = { stream, reply };
        setTurn(mine);
        return mine;
    }

    function setTurn(value) {
        const busy = value !== null;
        if (!busy && document.activeElement === $('stop')) composer.focus();
        turn = value;
        $('send').hidden = busy;
        $('stop').hidden = !busy;
        write($('busy'), '');
    }

    /** Leave the turn; its reply is paused, and can be gone on with. */
    function leave() {
        const { stream } = turn ?? {};
        setTurn(null);
        stream?.leave();
    }

    function stop() {
        if (!turn) return;
        turn.stream.stop();
        write(turn.reply.item.querySelector('.status'), thread.STATUS_TEXT.stopping);
    }

    async function send(message, key = newKey()) {
        if (turn) return;
        const question = thread.messageItem({ role: 'user', content: message });
        const reply = new thread.LiveReply();
        $('welcome').hidden = true;
        thread.messages.append(question, reply.item);
        const mine = newTurn(reply);
        try {
            // Or else the history that is asked for could hold this turn too.
            await past.loaded;
            const end = await mine.stream.ask({ message, ...(past.chat && { chat_id: past.chat }) }, key);
            await conclude(mine, end, { Retry: () => send(message) });
        } catch (error) {
            // Another chat is open by now.
            if (turn !== mine) return;
            // If something is stored all the same, the next try with its key finds it.
            reply.item.remove();
            $('meter').hidden = true;
            thread.mark(question, 'unsent');
            const again = (next, ...more) => () => {
                question.remove();
                next(message, ...more);
            };
            showNotice($('notice'), error, { Retry: again(send, key), Edit: again(composer.write) });
        } finally {
            if (turn === mine) setTurn(null);
        }
    }

    /** Read on a reply that has not ended; `content` is what is stored of it so far. */
    async function goOn({ message_id: id, content }) {
        if (turn || !$(id)) return;
        const reply = new thread.LiveReply(content);
        $(id).replaceWith(reply.item);
        reply.item.id = id;
        const mine = newTurn(reply, { replyId: id, text: content });
        await conclude(mine, await mine.stream.goOn());
        if (turn !== mine) return;
        setTurn(null);
        $('meter').hidden = meter.tokens === 0;
    }

    /** Show how a reply has ended, and why. */
    async function conclude(mine, { status, fullText, behind, error }, actions = {}) {
        if (turn !== mine) return;
        const { reply } = mine;
        if (status === 'complete') {
            reply.complete();
        } else if (status === 'differs') {
            reply.differ(fullText);
        } else if (behind) {
            // The words of the last moment come with the history, which may have to wait for a connection.
            reply.end('streaming', thread.STATUS_TEXT[status] ?? '');
            past.settle(past.signal, 0);
        } else if (status === null) {
            await lookUp(reply);
        } else {
            reply.end(status);
        }
        if (turn === mine && error) showNotice($('notice'), error, actions);
    }

    /** End a reply as the history says, now or later: its stream does not tell how it has ended, or will. */
    async function lookUp(reply) {
        const { signal } = past;
        const { id } = reply.item;
        reply.end('streaming', '');
        await past.look(signal).catch(() => {});
        if (signal.aborted) return;
        const item = $(id);
        if (item.dataset.status === 'streaming') thread.mark(item, 'streaming', thread.STATUS_TEXT.unread);
        announce(item.querySelector('.status').textContent);
        past.settle(signal, 500);
    }

    // ---- What one does

    composer.onsubmit = (message) => {
        if (turn) {
            write($('busy'), 'One reply at a time: wait for its end, or stop it.');
            return;
        }
        composer.write('');
        send(message);
    };
    addEventListener('keydown', (event) => {
        if (event.key === 'Escape' && !event.isComposing && !document.querySelector('dialog[open]')) stop();
    });
    $('stop').addEventListener('click', stop);
    for (const sample of document.querySelectorAll('.samples button'))
        sample.addEventListener('click', () => {
            composer.focus();
            send(sample.textContent);
        });
    $('new-chat').addEventListener('click', newChat);
    $('new-chat-narrow').addEventListener('click', newChat);

    settings.onchange = () => {
        sidebar.reload();
        // A message that is not sent yet stays, to be tried again with the new settings.
        if (past.chat && !thread.messages.querySelector('[data-status=unsent]')) openChat(past.chat);
    };
    past.onrunning = goOn;
    sidebar.ondelete = (id) => {
        if (id !== past.chat) return;
        history.replaceState(null, '', location.pathname + location.search);
        openChat(null);
    };
    past.onmissing = (error) => {
        sidebar.remove(past.chat);
        // What is sent now starts a new one.
        past.chat = null;
        history.replaceState(null, '', '#');
        sidebar.show(null);
        showNotice($('notice'), error);
    };
    addEventListener('hashchange', () => {
        if (idInAddress() !== past.chat) openChat(idInAddress());
    });

    // ---- Start

    openChat(idInAddress());
    sidebar.load();
    if (matchMedia('(pointer: fine)').matches) composer.focus();
}
