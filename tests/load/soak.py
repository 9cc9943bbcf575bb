"""`python -m tests.load.soak`: a load on a server of its own, whose streams break at random; then nothing is left.

Each client gets its reply's text to the character, or the end that its faults ask for (`breaking.py`). After that
the invariants hold in the database, and the server has no more memory, descriptors, tasks and readers than before.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from urllib.request import urlopen

TESTS = Path(__file__).parents[1]
# As pytest has it.
sys.path[:0] = [str(TESTS), str(TESTS / "faults")]

from aiohttp.test_utils import unused_port  # noqa: E402
from ledger import Server, broken_invariants  # noqa: E402
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402
from serving import new_postgres  # noqa: E402
from support import Rows  # noqa: E402

from .__main__ import Progress, minutes, number, report  # noqa: E402
from .breaking import ALARM_S, HEARTBEAT_S, RESUME_WINDOW_S, BreakingStream  # noqa: E402
from .generators import raise_descriptors, run  # noqa: E402
from .plan import Plan, Target  # noqa: E402
from .streams import ticks  # noqa: E402

# What a server at rest has none of, by its metrics.
GAUGES = {"chat_replies_running": "replies", "chat_saves_owed": "saves_owed", "chat_readers": "readers"}

# What the allocator keeps is not known to the byte.
SPARE_BYTES = 8 << 20

WARM_UP_S = 60.0
SETTLE_S = 30.0

# What `fail@n` is logged as.
ON_PURPOSE = "the simulator was to fail"


@dataclass(frozen=True)
class Rest:
    """What a server has while nobody asks."""

    # Bytes, never twice the same.
    memory: int = field(compare=False)
    descriptors: int
    tasks: int
    replies: int
    saves_owed: int
    readers: int

    @property
    def is_busy(self) -> bool:
        return bool(self.replies or self.saves_owed or self.readers)


class SoakServer(Server):
    module = "tests.load.served"

    def __init__(self, url: str, folder: Path) -> None:
        self.metrics_port = unused_port()
        self._tasks_file = folder / "tasks"
        super().__init__(
            url,
            folder / "server.log",
            SIM_FAULTS="1",
            HEARTBEAT_S=str(HEARTBEAT_S),
            RESUME_WINDOW_S=str(RESUME_WINDOW_S),
            CHECKPOINT_S="1",
            WRITE_TIMEOUT_S="5",
            # As many at rest as under load; and a busy machine is no fault of the server.
            DB_POOL_SIZE="2",
            DB_TIMEOUT_S="20",
            METRICS_PORT=str(self.metrics_port),
            TASKS_FILE=str(self._tasks_file),
        )

    def tasks(self) -> int:
        self._tasks_file.unlink(missing_ok=True)
        self.signal(signal.SIGUSR1)
        until_s = time.monotonic() + 5
        while not self._tasks_file.exists():
            assert time.monotonic() < until_s, "the server does not say how many tasks it has"
            time.sleep(0.005)
        return int(self._tasks_file.read_text())

    def gauges(self) -> dict[str, int]:
        with urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=5) as response:
            families = text_string_to_metric_families(response.read().decode())
            return {GAUGES[name]: int(of.samples[0].value) for of in families if (name := of.name) in GAUGES}

    def rest(self) -> Rest:
        memory, descriptors = self.usage()
        return Rest(memory=memory, descriptors=descriptors, tasks=self.tasks(), **self.gauges())


def left(before: Rest, after: Rest) -> dict[str, str]:
    """Return what a server has more of than it had."""
    allowed = asdict(before) | {"memory": int(before.memory * 1.05) + SPARE_BYTES}
    return {
        name: f"{getattr(before, name):,} -> {value:,}"
        for name, value in asdict(after).items()
        if value > allowed[name]
    }


async def at_rest(server: SoakServer, before: Rest | None = None) -> Rest:
    """Wait until nothing is under way, nor changes any more, nor is left over, but not for ever."""
    until_s, last, rest = time.monotonic() + SETTLE_S, None, server.rest()
    while time.monotonic() < until_s and (rest != last or rest.is_busy or (before and left(before, rest))):
        await asyncio.sleep(0.2)
        last, rest = rest, server.rest()
    return rest


async def soak(server: SoakServer, rows: Rows, options: argparse.Namespace) -> tuple[Plan, Progress, list[str]]:
    """Return what was measured, and what is wrong with the server after it."""
    stopped, loop = asyncio.Event(), asyncio.get_running_loop()
    for stop in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(stop, stopped.set)
    generator = partial(ticks, stream=BreakingStream)
    users = [rows.tenant().headers]

    def plan(name: str, seconds: float) -> Plan:
        seed = {"seed": f"{options.seed} {name}"}
        ramp_s = min(5.0, seconds / 10)
        return Plan(options.streams, seconds, ramp_s, [Target.parse(server.base)], users, seed, ALARM_S)

    seconds = options.minutes * 60
    # What the first streams build stays.
    await run(plan("warm-up", min(WARM_UP_S, seconds / 4)), generator, stopped, lambda tick: None)
    before = await at_rest(server)
    measured = plan("soak", seconds)
    progress = Progress(measured)
    await run(measured, generator, stopped, progress.tell)
    progress.end()
    if (code := server.popen.poll()) is not None:
        return measured, progress, [f"the server has ended with {code}"]
    after = await at_rest(server, before)
    wrong = [f"left over: {what} {change}" for what, change in left(before, after).items()]
    wrong += [f"broken: {count} {name}" for name, count in broken_invariants(server.database).items()]
    wrong += [f"logged: {line}" for line in server.errors() if ON_PURPOSE not in line][:5]
    print(
        f"at rest: {before.memory >> 20} -> {after.memory >> 20} MiB, {before.descriptors} -> {after.descriptors}"
        f" descriptors, {before.tasks} -> {after.tasks} tasks"
    )
    return measured, progress, wrong


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.load.soak", description="Streams that break, for long.")
    parser.add_argument("--streams", type=number, default=50, help="under way at once (50)")
    parser.add_argument("--minutes", type=minutes, default=10.0, help="how long, 0.1 for instance (10)")
    parser.add_argument("--seed", default="1", help="of the faults (1)")
    options = parser.parse_args()
    raise_descriptors(options.streams + 64)
    # Not in a folder that is closed to PostgreSQL's user.
    with (
        tempfile.TemporaryDirectory() as folder,
        new_postgres(Path(folder) / "data") as url,
        closing(Rows(url)) as rows,
        closing(SoakServer(url, Path(folder))) as server,
    ):
        plan, progress, wrong = asyncio.run(soak(server, rows, options))
    code = report(plan, "Python", progress, None)
    print("\n".join(wrong) or "nothing is left, and the invariants hold")
    return 1 if wrong else code


if __name__ == "__main__":
    sys.exit(main())
