"""Fixtures of all tests: real daemons, connections and shells. See ``support.py``."""

from __future__ import annotations

import os
import signal
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nats_server import NatsServer, running_nats, why_no_nats
from tests.postgres import Server, running_server, why_absent
from tests.support import Daemon, Shell, Wire, running_daemon, short_folder


def pytest_configure(config: pytest.Config) -> None:
    # Processes of the tests must react to Ctrl-C, even if a shell started the tests in the background.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # The tests start thousands of processes. Let them share compiled files.
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", None) and "PYTHONPYCACHEPREFIX" not in os.environ:
        cache = tempfile.TemporaryDirectory(prefix="eoq-compiled-")
        config.add_cleanup(cache.cleanup)
        os.environ["PYTHONPYCACHEPREFIX"] = cache.name


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the parameters of ``first_by_default`` as slow, but for the first that is not slow anyway."""
    seen: set[str] = set()
    for item in items:
        if item.get_closest_marker("first_by_default") is not None and item.get_closest_marker("slow") is None:
            function = item.nodeid.partition("[")[0]
            if function in seen:
                item.add_marker(pytest.mark.slow)
            seen.add(function)


def pytest_xdist_auto_num_workers() -> int:
    """Return two workers per processor, because tests mostly wait for the disk or for a process."""
    return 2 * (os.cpu_count() or 1)


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """Run a daemon for one test, which may kill and restart it."""
    with running_daemon() as daemon:
        yield daemon


@pytest.fixture(scope="module")
def shared_daemon() -> Iterator[Daemon]:
    """Run one daemon for all tests of a file. Each of them uses its own queues."""
    with running_daemon() as daemon:
        yield daemon


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """Run a PostgreSQL server for all tests of this process. Without one, they are skipped."""
    reason = why_absent()
    if reason is not None:
        pytest.skip(reason)
    with running_server() as server:
        yield server


@pytest.fixture
def nats_server() -> Iterator[NatsServer]:
    """Run a NATS server for one test, which may kill and restart it. Without one, the test is skipped."""
    reason = why_no_nats()
    if reason is not None:
        pytest.skip(reason)
    with running_nats() as server:
        yield server


@pytest.fixture
def restarted() -> Iterator[Server]:
    """Run a PostgreSQL server for one test, which may kill and restart it."""
    reason = why_absent()
    if reason is not None:
        pytest.skip(reason)
    with running_server() as server:
        yield server


@pytest.fixture
def database(postgres: Server) -> Iterator[str]:
    """Return the URL of an empty schema in `postgres`, which is the first of its search path."""
    import psycopg

    schema = f"t{uuid.uuid4().hex}"
    with psycopg.connect(postgres.conninfo(), autocommit=True) as connection:
        connection.execute(f"create schema {schema}")
    yield postgres.conninfo(schema)
    with psycopg.connect(postgres.conninfo(), autocommit=True) as connection:
        # A test may have left a connection with a transaction open.
        connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where backend_type = 'client backend' and pid <> pg_backend_pid()"
        )
        connection.execute(f"drop schema {schema} cascade")


@pytest.fixture
def queue(request: pytest.FixtureRequest) -> str:
    """Return the name of a queue that no other test uses."""
    name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)
    return f"q-{name}"[:128]


@pytest.fixture
def wire(shared_daemon: Daemon) -> Iterator[Wire]:
    """Open a raw connection to `shared_daemon`."""
    with shared_daemon.wire() as wire:
        yield wire


@pytest.fixture
def shell(shared_daemon: Daemon) -> Shell:
    """Return a shell whose commands reach `shared_daemon`."""
    return shared_daemon.shell()


@pytest.fixture
def folder() -> Iterator[Path]:
    """Make an empty folder whose path is short enough for a socket."""
    with short_folder() as folder:
        yield folder


@pytest.fixture
def alone(folder: Path) -> Iterator[Shell]:
    """Return a shell in a folder without a daemon. A daemon started there is stopped at the end."""
    shell = Shell(folder / "s", folder)
    try:
        yield shell
    finally:
        shell.run("eoq stop")
