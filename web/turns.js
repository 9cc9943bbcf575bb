'use strict';

/*
 * The turns of the open chat: a message sent, its reply streamed; one at a time.
 * Uses elements.js, stream.js, composer.js, notice.js, meter.js, tools.js, inspector.js, thread.js, past.js,
 * requests.js, model.js.
 *
 *     turns.send('Hello');                 // and readOn, regenerate, edit; stop; leave, for another chat
 *     turns.onasked = () => …              // there is a first message
 *     turns.onopened = (chatId) => …       // the server has stored the question
 *     turns.onstale = () => …              // the chat has gone on elsewhere, and is to be shown as it is
 *     turns.onfull = () => …               // this chat takes no more, and a new one is wanted
 */
const turns = (() => {
    let turn = null; // the running one: its stream and its live reply

    const room = {
        send, readOn, regenerate, edit, stop, cut, leave, isBusy, isRunning, onasked() {}, onopened() {}, onstale() {}, onfull() {},
    };

    const newKey = () => Array.from(crypto.getRandomValues(new Uint32Array(4)), (part) => part.toString(36)).join('-');

    function newTurn(reply, begun) {
        const recording = meter.begin(reply.item, begun !== undefined);
        const stream = new ReplyStream({
            opened(chatId, replyId) {
                // Of a message that is tried again the first try may have been stored, and be shown by now.
                const first = $(replyId);
                first?.previousElementSibling?.remove();
                first?.remove();
                reply.item.id = replyId ?? '';
                room.onopened(chatId);
            },
            token: (text) => reply.add(text),
            arrived(at, bytes, events) {
                recording.read(at, bytes, events);
                inspector.touch(recording);
            },
            waiting(why) {
                recording.lost();
                reply.wait(why);
            },
            resumed: (text) => inspector.tell(recording, recording.resumed(text)),
            asked: (path, options) => recording.asked(described(path, options)),
            answered(response, error) {
                recording.answered(response?.status ?? error.status ?? error.title, [...(response?.headers ?? [])]);
                inspector.touch(recording);
            },
        }, begun);
        for (const place of [$('notice'), $('live')]) place.replaceChildren();
        const mine = { stream, reply, recording };
        setTurn(mine);
        return mine;
    }

    function setTurn(value) {
        const busy = value !== null;
        if (document.activeElement === $(busy ? 'send' : 'stop')) composer.focus();
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

    /** Cut the connection of the turn that is recorded, to see it go on; return whether it has one. */
    function cut(recording, awayMs) {
        return turn?.recording === recording && turn.stream.cut(awayMs);
    }

    /** Send a message; `instead`, what it takes the place of. */
    async function send(message, { key = newKey(), instead = null, sim = model.sim() } = {}) {
        if (isBusy()) return;
        // A message that replaces others knows which.
        if (!instead) past.catchUp();
        const putBack = instead && thread.cut(instead.from);
        const question = thread.messageItem({ role: 'user', content: message });
        const reply = new thread.LiveReply();
        room.onasked();
        thread.messages.append(question, reply.item);
        const mine = newTurn(reply);
        thread.follow(true);
        try {
            // Or else the history that is asked for could hold this turn too.
            await past.ready();
            const body = { message, ...(past.chat && { chat_id: past.chat }), ...instead?.body, ...(sim && { sim }) };
            const end = await mine.stream.ask(body, key);
            await conclude(mine, end);
        } catch (error) {
            // Another chat is open by now.
            if (turn !== mine) return;
            reply.item.remove();
            // If something is stored all the same, the next try with its key finds it.
            const again = () => (error.title === 'Bad sim' ? model.sim() : sim); // By then they may be other settings.
            const retry = () => send(message, { key, instead, sim: again() });
            if (instead) {
                question.remove();
                putBack();
                tellUnasked(error, message, { Retry: retry, Edit: () => edit(instead.from, message) });
            } else {
                tellUnsent(error, question, retry, message);
            }
        } finally {
            if (turn === mine) setTurn(null);
        }
    }

    function tellUnsent(error, question, retry, message) {
        thread.mark(question, 'unsent');
        const without = (next) => () => {
            question.remove();
            next();
        };
        tellUnasked(error, message, { Retry: without(retry), Edit: without(() => composer.takeBack(message)) });
    }

    /** Tell why a message was not asked, and what can be done about it. It is a draft by then. */
    function tellUnasked(error, message, { Retry, Edit }) {
        const { title } = error;
        const show = { 'Show it': () => room.onstale() };
        // What is in the way, or is wrong with the message itself, another try does not change.
        const actions = {
            'Bad message': { Edit },
            'Body too large': { Edit },
            'Gone on': show,
            'Reply running': { ...show, Retry, Edit }, // Its end may have come.
        }[title] ?? { Retry, Edit };
        // It was deleted, in another window.
        const isGone = title === 'Not found' && past.chat !== null;
        showNotice($('notice'), error, isGone ? inNewChat(message) : actions);
    }

    const inNewChat = (message) => ({
        'New chat': () => {
            room.onfull();
            composer.takeBack(message);
        },
    });

    /** Read on a reply that has not ended; `content` is what is stored of it so far. */
    async function readOn({ message_id: id, content, created_at: at }) {
        if (turn || !$(id)) return;
        const reply = new thread.LiveReply(content, at);
        $(id).replaceWith(reply.item);
        reply.item.id = id;
        const mine = newTurn(reply, { replyId: id, text: content });
        await conclude(mine, await mine.stream.goOn());
        if (turn !== mine) return;
        setTurn(null);
    }

    /** Show how a reply has ended, and why. */
    async function conclude(mine, { status, stop, check, fullText, behind, error }) {
        mine.recording.check = check ?? null;
        if (turn !== mine) return;
        const { reply } = mine;
        if (status === 'complete') {
            reply.complete(stop);
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
        inspector.touch(mine.recording);
        if (turn === mine && error) tellEnd(error, $(reply.item.id) ?? reply.item);
    }

    /** Tell why a reply has not come to its end, by the name that its message has for it. */
    function tellEnd(error, item) {
        // By then it may have been shown anew.
        const actions = { Retry: () => regenerate($(item.id) ?? item) };
        const question = item.previousElementSibling;
        const more = {
            'Conversation too long': { 'New chat': () => room.onfull() },
            'Refused': { Edit: () => edit(question) },
            'Stream failed': thread.sources.get(item) ? { 'Go on': () => send('Go on.') } : {},
        }[error.title];
        item.dataset.told = ''; // Its own button for that has a double in the notice.
        const title = error.title === 'Stream failed' ? item.querySelector('.status').textContent : undefined;
        showNotice($('notice'), error, { ...more, ...actions }, title);
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

    function isBusy() {
        if (turn) write($('busy'), 'One reply at a time: wait for its end, or stop it.');
        return isRunning();
    }

    function isRunning() {
        return turn !== null;
    }

    // ---- A message instead of an earlier one, and of all after it

    /** Return what is to be said of it; null if its question is not here, or not any more. */
    function insteadOf(item) {
        if (!item.isConnected) return null;
        const from = item.matches('.user') ? item : item.previousElementSibling;
        if (!from?.matches('.user')) return null;
        const reply = from.nextElementSibling?.matches('.assistant') ? from.nextElementSibling : null;
        const replaced = [from, reply].find((one) => one && thread.isStored(one));
        return { from, body: replaced && { replaces: replaced.id, last: thread.lastStored().id } };
    }

    function regenerate(item, button = null) {
        if (isBusy()) return;
        const instead = insteadOf(item);
        if (!instead) {
            if (button) tools.say(button, 'Its question is further up');
        } else if (button && item.nextElementSibling && !button.dataset.said) {
            tools.say(button, 'Once more, to replace what follows');
        } else {
            composer.focus(); // The button goes with its message.
            send(thread.sources.get(instead.from), { instead });
        }
    }

    function edit(item, text = thread.sources.get(item)) {
        composer.edit(text, () => noteOf(item), (message) => {
            if (isBusy()) return;
            composer.send();
            send(message, { instead: insteadOf(item) });
        });
    }

    function noteOf(item) {
        if (!insteadOf(item)) return 'The message is not there any more: sent, this is a new one.';
        const items = [...thread.messages.children];
        const after = items.length - items.indexOf(item) - 1;
        return `Sent again, it replaces the message${['', ' and its reply'][after] ?? ` and the ${after} after it`}.`;
    }

    return room;
})();
