"""The soak: in seconds, and that it would find what is left, and what is wrong."""

from __future__ import annotations

import asyncio
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import pytest
from serving import StartServer
from support import Tenant

from tests.load import soak
from tests.load.breaking import BREAKS, SHAPES, Trial, Turn
from tests.load.figures import Figures
from tests.load.streams import Failed

ROOT = Path(__file__).parent.parent


async def test_soak_of_seconds_leaves_nothing_behind() -> None:
    command = [sys.executable, "-m", "tests.load.soak", "--streams=12", "--minutes=0.04"]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    assert "nothing is left, and the invariants hold\n" in out.decode()
    assert int(re.findall(r" s: ([\d,]+) replies", out.decode())[0]) > 5


@pytest.mark.parametrize("name", ["memory", "descriptors", "tasks", "replies", "saves_owed", "readers"])
def test_soak_finds_what_is_left(name: str) -> None:
    before = soak.Rest(memory=100 << 20, descriptors=20, tasks=10, replies=0, saves_owed=0, readers=0)
    much = {"memory": 114 << 20}.get(name, getattr(before, name) + 1)
    after = soak.Rest(**{**vars(before), name: much})
    assert soak.left(before, before) == {}
    assert soak.left(before, after) == {name: f"{getattr(before, name):,} -> {much:,}"}


async def turn(base: object, tenant: Tenant, trial: Trial) -> None:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(sock_read=2)) as session:
        await Turn(session, f"{base}chat/stream?fullText=0", tenant.headers, trial, [Figures()], 0).run()


@pytest.mark.parametrize(
    ("trial", "said"),
    [
        # Who has an event twice has another text.
        (Trial("dup@3 gap=0ms", "done", None), "its text is not what was sent"),
        (Trial("fail@3", "done", None), "ended as failed"),
        (Trial("fail@3", "stopped", None), "ended as failed"),
        (Trial("status=400", "done", None), "400 Simulated"),
    ],
)
async def test_client_of_the_soak_finds_a_wrong_end(
    start_server: StartServer, tenant: Tenant, trial: Trial, said: str
) -> None:
    server = await start_server(sim_faults=True)
    with pytest.raises(Failed, match=said):
        await turn(server.make_url("/"), tenant, trial)


async def test_client_of_the_soak_survives_each_fault(start_server: StartServer, tenant: Tenant) -> None:
    server = await start_server(sim_faults=True, sim_delay_ms=(0.0, 1.0), heartbeat_s=0.5)

    def trial(sim: str) -> Trial:
        end = "failed" if "fail" in sim else "stopped" if "endless" in sim else "done"
        return Trial(sim.format(7), end, 50 if "endless" in sim else None)

    trials = [trial(sim) for sim in (*SHAPES, *BREAKS)]
    await asyncio.gather(*(turn(server.make_url("/"), tenant, trial) for trial in trials))


def test_trials_of_a_seed_are_the_same_and_each_fault_is_among_them() -> None:
    def drawn(seed: int) -> Sequence[Trial]:
        rng = random.Random(seed)
        return [Trial.draw(rng) for _ in range(500)]

    assert drawn(1) == drawn(1) != drawn(2)
    names = {word for trial in drawn(1) for word in trial.kind.split()}
    assert names >= {re.split("[=@]", part)[0] for sim in (*SHAPES, *BREAKS) for part in sim.split()}


@pytest.mark.parametrize("window_s", [0.1, 5.0])
async def test_client_of_the_soak_may_come_back_too_late_only_if_it_did(
    start_server: StartServer, tenant: Tenant, monkeypatch: pytest.MonkeyPatch, window_s: float
) -> None:
    """A reply that nobody has left is not to end as disconnected."""
    server = await start_server(sim_faults=True, resume_window_s=0)
    monkeypatch.setattr("tests.load.breaking.RESUME_WINDOW_S", window_s)
    asked = turn(server.make_url("/"), tenant, Trial("fin@3", "done", None))
    if window_s == 0.1:
        await asked
    else:
        with pytest.raises(Failed, match="ended as failed"):
            await asked
