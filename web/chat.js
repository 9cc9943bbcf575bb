'use strict';

/*
 * The chat that is open: this room wires the others together. The id of the chat is the fragment of the address, so that
 * reload, back and links work.
 * Uses all the others.
 */
{
    const idInAddress = () => {
        const id = location.hash.slice(1);
        return settings.UUID.test(id) ? id.toLowerCase() : null;
    };

    function openChat(id) {
        turns.leave();
        composer.open(id);
        for (const place of [thread.messages, $('notice'), $('live')]) place.replaceChildren();
        inspector.close();
        showWelcome(id === null);
        sidebar.show(id);
        thread.follow(true);
        past.open(id);
    }

    /** A chat without a word has its field in the middle. */
    function showWelcome(wanted) {
        $('welcome').hidden = $('samples').hidden = !wanted;
        document.querySelector('main').className = wanted ? 'fresh' : '';
    }

    function newChat() {
        sidebar.close();
        if (location.hash) history.pushState(null, '', location.pathname + location.search);
        openChat(null);
        composer.focus();
    }

    /** What is written in a chat that is gone is not. */
    function takeToNewChat() {
        const { value } = $('message');
        newChat();
        if (value) composer.takeBack(value);
    }

    /** A new chat has got its id. What it is called, the list of chats knows. */
    function adopt(id) {
        if (id === null || id === past.chat) return;
        past.chat = id;
        history.replaceState(null, '', `#${id}`);
    }

    turns.onasked = () => showWelcome(false);
    turns.onopened = (id) => {
        adopt(id);
        if (past.chat === null) return; // What has answered is not a chat server.
        composer.adopt(past.chat);
        sidebar.touch(past.chat);
    };
    turns.onstale = () => openChat(past.chat);
    turns.onfull = newChat;

    tools.on.copy = async (item, button) => {
        tools.say(button, (await tools.copy(thread.sources.get(item))) ? 'Copied' : 'Not copied');
    };
    tools.on.edit = (item) => turns.edit(item);
    tools.on.regenerate = turns.regenerate;
    tools.on.goOn = () => {
        composer.focus(); // The button goes with that.
        turns.send('Go on.');
    };

    inspector.oncut = turns.cut;

    // ---- What one does

    composer.onsubmit = (message) => {
        if (turns.isBusy()) return;
        composer.send();
        turns.send(message);
    };
    addEventListener('keydown', (event) => {
        // One that ends the composition of a character is not for us (229: Safari says so).
        if (event.key !== 'Escape' || event.isComposing || event.keyCode === 229) return;
        if (!document.querySelector('dialog[open]')) turns.stop();
    });
    $('stop').addEventListener('click', ({ detail: clicks }) => {
        // Who sends by a double click meets it where Send was.
        if (clicks < 2) turns.stop();
    });
    model.onsample = (message, sim) => {
        composer.focus();
        turns.send(message, { sim });
    };
    $('new-chat').addEventListener('click', newChat);
    $('new-chat-narrow').addEventListener('click', newChat);

    settings.onchange = () => {
        sidebar.reload();
        model.load();
        // A message that is not sent yet stays, to be tried again with the new settings.
        if (past.chat && !thread.messages.querySelector('[data-status=unsent]')) openChat(past.chat);
    };
    past.onrunning = turns.readOn;
    sidebar.ondelete = (id) => {
        if (id !== past.chat) return;
        history.replaceState(null, '', location.pathname + location.search);
        openChat(null);
    };
    past.onmissing = (error) => {
        if (turns.isRunning()) return; // It tells the same.
        sidebar.remove(past.chat);
        if (thread.messages.hasChildNodes()) {
            // What was read stays, and takes no more.
            showNotice($('notice'), error, { 'New chat': takeToNewChat });
            return;
        }
        // What is sent now starts a new one.
        past.open(null);
        history.replaceState(null, '', '#');
        sidebar.show(null);
        showNotice($('notice'), error);
    };
    addEventListener('hashchange', () => {
        if (idInAddress() !== past.chat) openChat(idInAddress());
    });

    // ---- What was said elsewhere, in another window or on another device

    past.onnews = () => {
        $('notice').replaceChildren(); // That was about what was the end.
        announce('The chat has gone on elsewhere, which is shown now.');
        sidebar.touch(past.chat);
    };

    /** Show it to who comes back to this window, or begins to write here. */
    function catchUp() {
        // A message that waits to be tried again, or changed, stays with what is told of it.
        const waits = composer.isSending() || thread.messages.querySelector('[data-status=unsent]') !== null;
        if (document.hidden || turns.isRunning() || (waits && $('notice').hasChildNodes())) return;
        past.catchUp();
    }

    addEventListener('focus', catchUp);
    document.addEventListener('visibilitychange', catchUp);
    $('message').addEventListener('input', catchUp);

    // ---- Start

    openChat(idInAddress());
    sidebar.load();
    model.load();
    composer.focus();
}
