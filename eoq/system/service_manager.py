"""What a daemon and its service manager tell each other, as systemd defines it: readiness, life signs, sockets.

The manager names a datagram socket in ``NOTIFY_SOCKET``, and gets lines such as ``READY=1`` there. It may pass sockets
that it listens on, from the descriptor 3 on. Without a manager nothing is sent, and nothing fails.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import Final

FIRST_PASSED: Final = 3
"""The descriptor of the first socket that is passed."""
MOST_PASSED: Final = 16


class ServiceManager:
    """The manager that has started this process, if there is one. Its variables are taken out of the environment."""

    def __init__(self) -> None:
        self._address = os.environ.pop("NOTIFY_SOCKET", "")
        self._told = ""
        mine = str(os.getpid())
        self.watchdog: float | None = None
        """Seconds without a sign of life after which the manager kills this process. None is for ever."""
        microseconds = os.environ.pop("WATCHDOG_USEC", "")
        if os.environ.pop("WATCHDOG_PID", mine) == mine and microseconds.isdecimal() and int(microseconds):
            self.watchdog = int(microseconds) / 1_000_000
        passed = os.environ.pop("LISTEN_FDS", "")
        os.environ.pop("LISTEN_FDNAMES", None)
        is_mine = os.environ.pop("LISTEN_PID", "") == mine and passed.isdecimal()
        self._passed = min(int(passed), MOST_PASSED) if is_mine else 0

    @property
    def is_there(self) -> bool:
        """Whether a manager wants to be told."""
        return bool(self._address)

    def tell(self, *lines: str) -> None:
        """Send lines such as ``READY=1``. A manager that does not read them is not waited for."""
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sending:
            sending.setblocking(False)
            sending.sendto("\n".join(lines).encode(errors="replace"), address)

    def tell_status(self, text: str) -> None:
        """Send a text that says what this process does, for the status that the manager shows, if it is a new one."""
        if text != self._told:
            self._told = text
            self.tell(f"STATUS={text}")

    def passed_socket(self) -> socket.socket | None:
        """Return the first Unix stream socket that was passed, and close the others. None where there is none."""
        found: socket.socket | None = None
        for descriptor in range(FIRST_PASSED, FIRST_PASSED + self._passed):
            try:
                os.set_inheritable(descriptor, False)
                passed = socket.socket(fileno=descriptor)
            except OSError:
                continue  # it is none
            if found is None and passed.family == socket.AF_UNIX and passed.type == socket.SOCK_STREAM:
                found = passed
            else:
                passed.close()
        self._passed = 0
        return found
