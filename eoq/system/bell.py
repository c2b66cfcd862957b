"""A bell: a named pipe in a folder, which wakes a task when another process opens and closes it.

So a process is woken by others without watching a folder, which costs processor time. Whoever rings is never blocked,
and needs no more than a shell (``1<>.bell``). That it rang is a hint: the task that is woken also looks by itself.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import Final

log = logging.getLogger("eoq.bell")

BELL: Final = ".bell"
"""The name of the pipe."""
_LISTEN: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC
_RING: Final = os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC


def ring(folder: int) -> None:
    """Ring the bell of the folder with this descriptor, if it has one and somebody listens."""
    with suppress(OSError):
        os.close(os.open(BELL, _RING, dir_fd=folder))


class Bell:
    """The end that listens. ``folder`` returns the descriptor of the folder, ``wake`` is called when the bell rang."""

    def __init__(self, folder: Callable[[], int], wake: Callable[[], object]) -> None:
        self._folder = folder
        self._wake = wake
        self._descriptor: int | None = None
        self._is_logged = False

    def listen(self) -> None:
        """Begin to listen, or begin anew: the pipe is made if it is not there, or not that of this folder any more."""
        self.close()
        try:
            with suppress(FileExistsError):
                os.mkfifo(BELL, 0o600, dir_fd=self._folder())
            descriptor = os.open(BELL, _LISTEN, dir_fd=self._folder())
        except OSError as error:
            self._report(error.strerror or str(error))
            return
        if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            self._report("something else is in its place; remove it")
            return
        self._descriptor, self._is_logged = descriptor, False
        asyncio.get_running_loop().add_reader(descriptor, self._rung)

    def close(self) -> None:
        """Listen no longer."""
        if self._descriptor is not None:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None

    def _rung(self) -> None:
        # A pipe whose last writer has gone would go on ringing. It is closed before it is opened again: while another
        # descriptor is open, some systems let it ring on. Whatever was done before a ring in between is seen now.
        self.listen()
        self._wake()

    def _report(self, why: str) -> None:
        if not self._is_logged:
            self._is_logged = True
            log.warning("the named pipe %s, by which others wake this daemon, cannot be used: %s", BELL, why)
