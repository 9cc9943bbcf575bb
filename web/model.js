'use strict';

/*
 * Which model answers, and the samples of what it can be asked.
 * Uses elements.js, settings.js, requests.js.
 *
 *     model.load();                        // ask the server
 *     model.sim();                         // what the settings tell the simulated model with each question, null if nothing
 *     model.onsample = (message, sim) => …     // sim: what the simulated model is told to do, null if it cannot be
 */
const model = (() => {
    const room = { load, sim: () => (told && settings.current.sim) || null, onsample() {} };
    const samples = [...$('samples').children];
    const ofSimulator = samples.filter((sample) => sample.hidden); // A slow model, one that fails.
    let told = false; // whether a question may say what the simulated model does

    async function load() {
        await settings.ready;
        const from = settings.current;
        const response = await request('/model').catch(() => null); // Not all servers know.
        const { model: name, simulated } = (await response?.json().catch(() => null)) ?? {};
        if (from !== settings.current) return;
        write($('model'), simulated ? 'Simulated model' : (name ?? ''));
        told = response?.headers.has('x-sim-faults') ?? false;
        for (const element of [...ofSimulator, $('knobs')]) element.hidden = !told;
    }

    for (const sample of samples)
        sample.addEventListener('click', () => room.onsample(sample.dataset.message, told ? sample.dataset.sim : null));

    return room;
})();
