'use strict';

/*
 * What is told of a failure, and what one can do about it.
 * Uses elements.js, settings.js, composer.js.
 *
 *     showNotice(place, failure, { Retry: () => … });      // the first action is the likeliest
 */
const showNotice = (() => {
    // Failures by their names: those of the server (its `error`), and those that are found here.
    const TITLES = {
        'Bad message': 'This message cannot be sent',
        'Bad offset': 'Less was kept than is here',
        'Bad sim': 'The simulator does not understand its settings',
        'Body too large': 'This message cannot be sent',
        'Budget reserved': 'The budget is set aside for replies that run',
        'Budget spent': 'The budget is spent',
        'Busy': 'The server is busy',
        'Connection lost': 'The connection broke',
        'Conversation too long': 'This chat is too long for the model',
        'Database unavailable': 'The server cannot store anything now',
        'Forbidden': 'You have no access',
        'Foreign host': 'This page has no access',
        'Foreign origin': 'This page has no access',
        'Gone on': 'The chat has gone on',
        'Internal error': 'The server has failed',
        'Keys unavailable': 'The server cannot check tokens now',
        'Model busy': 'The model is busy',
        'No answer': 'The server does not answer',
        'No connection': 'The server cannot be reached',
        'Not JSON': 'This is not a chat server',
        'Not a stream': 'This is not a chat server',
        'Not found': 'It is not there any more',
        'Not stopped': 'The reply could not be stopped',
        'Not stored': 'The question is not stored',
        'Refused': 'The model will not answer this',
        'Reply running': 'Another window reads a reply in this chat',
        'Request timeout': 'The message did not get there in time',
        'Stopped': 'Stopped before it was sent',
        'Stopping': 'The server is stopping',
        'Stream cut short': 'The connection broke',
        'Too many replies': 'Too much at once',
        'Too many streams': 'Too much at once',
        'Too many turns': 'Too much at once',
        'Unauthorized': 'You have no access',
    };
    // What the server says of these is for programs.
    const MESSAGES = {
        'Gone on': 'Something was said in it that is not shown here, so nothing was replaced.',
    };
    const OF_SETTINGS = ['Bad sim', 'Forbidden', 'Foreign host', 'Foreign origin', 'No connection', 'Not JSON', 'Not a stream', 'Unauthorized'];

    return (place, failure, actions = {}, title = TITLES[failure.title] ?? failure.title ?? 'Error') => {
        const change = OF_SETTINGS.includes(failure.title) ? { 'Open settings': settings.open } : {};
        // A server that does not answer is likelier to come back than to be another one.
        const all = failure.title === 'No connection' ? { ...actions, ...change } : { ...change, ...actions };
        const told = [el('strong', {}, title), el('p', {}, MESSAGES[failure.title] ?? failure.message)];
        const buttons = Object.entries(all).map(button);
        place.replaceChildren(el('div', { className: 'notice', role: 'alert' }, ...told, ...buttons, details(failure)));

        function button([name, action], i) {
            const made = el('button', { type: 'button', className: i === 0 ? 'button primary' : 'button' }, name);
            made.addEventListener('click', () => {
                // What is wrong with the settings stays until they are others.
                if (action !== settings.open) {
                    place.replaceChildren();
                    composer.focus();
                }
                action();
            });
            return made;
        }
    };

    function details({ title, status, requestId }) {
        const facts = el('p', { className: 'request' }, title ?? 'Error');
        if (status) facts.append(`, status ${status}`);
        if (requestId) facts.append(', request id ', el('code', {}, requestId));
        return el('details', {}, el('summary', {}, 'Details'), facts);
    }
})();
