"""A small process beside ``eoq work`` and ``eoq once``, which kills their commands if they are killed with -9.

Nobody can catch SIGKILL; but the pipe between the two closes with the worker, whatever ends it. What the guard has
been told of and still runs then is killed, so that a message which is delivered again finds no old copy at work. Only
a command that was started in that very instant is not known to it yet.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import NoReturn


class Guard:
    """Make it while there is one thread only; it forks."""

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
        """A process group that ends with us."""
        self._say(b"+%d\n" % group)

    def remove(self, group: int) -> None:
        """It has ended."""
        self._say(b"-%d\n" % group)

    def _say(self, line: bytes) -> None:
        with suppress(BrokenPipeError):  # the guard was killed; the commands are no worse for it
            os.write(self._write_end, line)


def _watch(read_end: int) -> NoReturn:
    os.setsid()  # out of reach of the terminal's Ctrl-C
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # Our copies of the worker's streams would keep its readers waiting.
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
