"""Fixtures: a PostgreSQL that may be broken, and servers that may be killed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ledger import FULL, NODE, Server
from serving import OwnPostgres, new_postgres
from support import Rows


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnPostgres]:
    """A PostgreSQL of its own, to be killed."""
    folder = tmp_path_factory.mktemp("faults") / "data"
    with new_postgres(folder) as url:
        yield OwnPostgres(folder, url)


@pytest.fixture(scope="module")
def database(postgres: OwnPostgres) -> str:
    return postgres.url


@pytest.fixture
def own_rows(database: str) -> Iterator[Rows]:
    rows = Rows(database)
    yield rows
    rows.close()


@pytest.fixture
def serve(database: str, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(**environ: str) -> Server:
        servers.append(Server(database, tmp_path / f"{len(servers)}.log", **environ))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Give a function that prints the figures of a long run."""

    def say(**figures: object) -> None:
        if FULL:
            with capsys.disabled():
                print("   ", *(f"{name}={value}" for name, value in figures.items()), flush=True)

    return say


@pytest.fixture(scope="session")
def node() -> str:
    """Node, with the packages that the scripts take."""
    from test_network import node_with

    return node_with(NODE)
