"""A small process beside ``eoq work`` and ``eoq once``, which kills their commands if they are killed with -9.

A process cannot catch SIGKILL. But the pipe to the guard closes when its owner ends, for whatever reason. The guard
then kills the process groups that it was told of and that still run, so that a message that is delivered again does
not meet an old copy of its command. Only a command started in that same instant is not known to the guard yet.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import NoReturn


class Guard:
    """The owner's end of the pipe. Create it before other threads start, because it forks."""

    def __init__(self) -> None:
        read_end, self._write_end = os.pipe()
        if os.fork() == 0:
            try:
                os.close(self._write_end)
                _watch(read_end)
            finally:
                os._exit(0)
        os.close(read_end)

    def add(self, group: int) -> None:
        """Have the process group ``group`` killed when this process ends."""
        self._tell(b"+%d\n" % group)

    def remove(self, group: int) -> None:
        """Forget a process group that has ended."""
        self._tell(b"-%d\n" % group)

    def _tell(self, line: bytes) -> None:
        with suppress(BrokenPipeError):  # without a guard the commands still run, but are not protected
            os.write(self._write_end, line)


def _watch(read_end: int) -> NoReturn:
    """Read the process groups from the pipe until it closes, then kill those that remain."""
    os.setsid()  # Ctrl-C at the terminal must not end the guard
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # Release the owner's streams: their readers wait until every copy is closed.
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nowhere, stream)
    groups: set[int] = set()
    with open(read_end, "rb", buffering=0) as lines:  # a descriptor
        for line in lines:
            if line.startswith(b"+"):
                groups.add(int(line[1:]))
            else:
                groups.discard(int(line[1:]))
    for group in groups:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    os._exit(0)
