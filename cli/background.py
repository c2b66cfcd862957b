"""The daemon in the background, for `eoq start`: its log, its process, and the wait until it is ready."""

from __future__ import annotations

import os
import select
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final

import click

from eoq.errors import EoqError, Forbidden, Unavailable
from eoq.protocol.holder import Holder, holder_of

from .common import report
from .progress import ProgressLine

START_SECONDS: Final = 60.0
"""How long `eoq start` waits for the daemon, besides the time in which it brings its file up to date."""
LOOK_SECONDS: Final = 0.1
"""How often to look how far that is."""


class StillStarting(Unavailable):
    """The daemon was started, but was not ready in time. It goes on."""

    exit_status = 75


class Upgrade:
    """Shows how far a daemon is that brings its file up to date: a line that is written over, or one for each step."""

    def __init__(self) -> None:
        self._line = ProgressLine()
        self._said = ""

    def goes_on(self, holder: Holder | None) -> bool:
        """Show what the daemon does. Return whether it brings its file up to date, and so should be waited for."""
        if holder is None or holder.opening is None or not holder.opening.upgrades or holder.is_stopped:
            return False
        what, done, total, _ = holder.opening
        if self._line.shows:
            self._line(f"bringing the file up to date: {what}", done, total)
        elif what != self._said:
            self._said = what
            report(f"the daemon with pid {holder.pid} is {holder.opening.text}")
        return True

    def end(self) -> None:
        """Remove the line."""
        self._line.end()


def run_in_background(options: Sequence[str], socket: Path, log: Path) -> int:
    """Start a daemon that serves ``socket`` and writes to ``log``. Return its pid once it is ready.

    End this process with the daemon's exit status and its words if it does not start. Raises `StillStarting`.
    """
    with _open_log(log) as errors:
        begin = errors.tell()
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "eoq.cli", "daemon", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
            cwd="/",
        )
    assert process.stdout is not None  # noqa: S101 # it is a pipe
    upgrade = Upgrade()
    try:
        is_ready = _is_ready(process.stdout, process.pid, socket, log, upgrade)
    finally:
        upgrade.end()
    if not is_ready:
        status = process.wait()
        with log.open("rb") as file:
            file.seek(begin)
            click.echo(file.read().decode(errors="replace").strip(), err=True)
        click.echo(f"eoq: the daemon did not start; its log is {log}", err=True)
        sys.exit(status if status > 0 else EoqError.exit_status)
    return process.pid


def _open_log(log: Path) -> IO[bytes]:
    try:
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Not blocking: a pipe without a reader would keep this command for ever.
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY, 0o600)
    except OSError as error:
        from eoq.daemon.locks import cannot_use

        raise cannot_use(log, error) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Forbidden(f"{log}, the log of the daemon, is not a regular file; remove it, or choose another --db")
    os.set_blocking(descriptor, True)
    return os.fdopen(descriptor, "ab")


def _is_ready(output: IO[bytes], pid: int, socket: Path, log: Path, upgrade: Upgrade) -> bool:
    """Wait until the daemon says that it is ready. Return False if it ends before.

    As long as it brings its file up to date, it is waited for.
    """
    deadline = time.monotonic() + START_SECONDS
    said = b""
    while b"\n" not in said:
        if select.select([output], [], [], LOOK_SECONDS)[0]:
            piece = os.read(output.fileno(), 4096)
            if not piece:
                return False
            said += piece
        holder = holder_of(socket)
        if holder is not None and holder.pid == pid and upgrade.goes_on(holder):
            deadline = time.monotonic() + START_SECONDS
        elif time.monotonic() > deadline:
            raise StillStarting(
                f"the daemon with pid {pid} is not ready after {START_SECONDS:g} s, and goes on starting; `eoq status` "
                f"says when it is, `eoq stop` ends it, and its log is {log}"
            )
    return True
