"""A daemon that is not ready yet: signals end it at once, and `eoq start` does not wait for ever."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

import pytest

from eoq.daemon.store.sqlite.database import LOCK_SECONDS
from tests.support import PATIENCE, Shell, clean_environment, eventually, short_folder


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.slow
def test_a_signal_ends_a_daemon_that_is_still_starting(daemon_files: Path, number: signal.Signals) -> None:
    """It waits for a lock here. It may as well be busy with a large log."""
    db = daemon_files / "eoq.db"
    with closing(sqlite3.connect(db, isolation_level=None)) as other:
        other.execute("pragma locking_mode = exclusive")
        other.execute("begin exclusive")
        starting = subprocess.Popen(
            [sys.executable, "-m", "eoq.cli", "daemon", "--db", str(db), "--socket", str(daemon_files / "s")],
            env=clean_environment(),
            stderr=subprocess.DEVNULL,
            cwd=daemon_files,
        )
        with starting:
            eventually(lambda: (daemon_files / "s.lock").exists())
            begun = time.monotonic()
            starting.send_signal(number)
            assert starting.wait(PATIENCE) == -number
            assert time.monotonic() - begun < LOCK_SECONDS - 1, "it did not wait for the lock"
    assert Shell(daemon_files / "s", daemon_files).run("eoq start && eoq send q x && eoq stop").status == 0


@pytest.fixture
def daemon_files() -> Iterator[Path]:
    """A folder with the file of a daemon that has stopped."""
    with short_folder() as folder:
        assert Shell(folder / "s", folder).run("eoq start && eoq stop").status == 0
        yield folder


STOPS: Final = """
import os, signal, sys
if "daemon" in sys.orig_argv:
    os.kill(os.getpid(), signal.SIGSTOP)
"""
"""Stops a daemon before it does anything, so that it cannot be ready before a test stops it."""


@pytest.mark.slow  # it waits for a minute
def test_start_waits_at_most_a_minute_and_says_how_to_go_on() -> None:
    with short_folder() as folder:
        shell = Shell(folder / "s", folder)
        (folder / "planted").mkdir()
        (folder / "planted" / "sitecustomize.py").write_text(STOPS)
        environment = {**shell.environment, "PYTHONPATH": str(folder / "planted")}
        starting = shell.start("exec eoq start", stderr=subprocess.PIPE, env=environment)

        def daemon() -> int | None:
            for process in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):
                    line = (process / "cmdline").read_bytes().split(b"\0")
                    if b"daemon" in line and (process / "environ").read_bytes().count(bytes(folder)):
                        return int(process.name)
            return None

        pid = eventually(daemon)
        assert pid is not None
        try:
            _, errors = starting.communicate(timeout=60 + PATIENCE)
            assert starting.returncode == 75
            assert b"is not ready after 60 s, and goes on starting; `eoq status` says when it is" in errors
        finally:
            os.kill(pid, signal.SIGCONT)
        eventually(lambda: shell.run("eoq status").status == 0)
        assert shell.run("eoq stop").status == 0
