"""Machines for the tests of the bridge: a daemon each, with `eoq forward` or `eoq ingest` beside it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support import Daemon, Ran, kill_group


def bridge(daemon: Daemon, command: str) -> Ran:
    """Run `eoq forward` or `eoq ingest` to its end."""
    return daemon.shell().run(f"eoq {command}")


@contextmanager
def bridging(daemon: Daemon, command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run `eoq forward` or `eoq ingest` until the end of the block."""
    with (daemon.folder / "bridge.err").open("ab") as errors:
        process = daemon.shell().start(f"exec eoq {command}", stderr=errors)
    try:
        yield process
    finally:
        kill_group(process)
        process.wait()


def bridge_processes(daemon: Daemon) -> list[int]:
    """Return the processes of the bridges that a daemon runs by its configuration."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):  # it has ended
                parent = (entry / "stat").read_text().rpartition(") ")[2].split()[1]
                if int(parent) == daemon.pid and b"eoq.bridge.child" in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found
