"""Fixtures of all tests: a real daemon, and what talks to it. See ``support.py``."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import Daemon, Shell, Wire, running_daemon, short_folder


def pytest_configure(config: pytest.Config) -> None:
    # Ctrl-C means something to the processes of the tests, also where a shell started these in the background.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Thousands of processes are started; none compiles what another has compiled.
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", None) and "PYTHONPYCACHEPREFIX" not in os.environ:
        cache = tempfile.TemporaryDirectory(prefix="eoq-compiled-")
        config.add_cleanup(cache.cleanup)
        os.environ["PYTHONPYCACHEPREFIX"] = cache.name


def pytest_xdist_auto_num_workers() -> int:
    """Two a processor: most of the time a test waits for the disk or for a process."""
    return 2 * (os.cpu_count() or 1)


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """A daemon of the test's own, which it may kill and restart."""
    with running_daemon() as daemon:
        yield daemon


@pytest.fixture(scope="module")
def shared_daemon() -> Iterator[Daemon]:
    """One daemon for all tests of a file, which therefore use queues of their own."""
    with running_daemon() as daemon:
        yield daemon


@pytest.fixture
def queue(request: pytest.FixtureRequest) -> str:
    """The name of a queue that no other test uses."""
    name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)
    return f"q-{name}"[:128]


@pytest.fixture
def wire(shared_daemon: Daemon) -> Iterator[Wire]:
    """A raw connection to the file's daemon."""
    with shared_daemon.wire() as wire:
        yield wire


@pytest.fixture
def shell(shared_daemon: Daemon) -> Shell:
    """A shell whose commands reach the file's daemon."""
    return shared_daemon.shell()


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder whose path is short enough for a socket."""
    with short_folder() as folder:
        yield folder


@pytest.fixture
def alone(folder: Path) -> Iterator[Shell]:
    """A shell for a folder without a daemon; one that is started there is stopped at the end."""
    shell = Shell(folder / "s", folder)
    try:
        yield shell
    finally:
        shell.run("eoq stop")
