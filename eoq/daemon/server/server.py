"""The server: its socket, its connections, and which handler each type of request goes to."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeAlias

from ...errors import EoqError
from ...system.spin import Spin
from ..locks import Lock, Locked
from ..session import Handler, Handlers, Reply, Session
from .connection import ClientConnection
from .hang_ups import HangUps
from .routes import Route, route_of
from .sockets import KEEPING_FILE, SocketAccess, identity_of, listen, require_at
from .traffic import Traffic

log = logging.getLogger("eoq.daemon")

SOCKET_SECONDS: Final = 3.0
"""How often to check that the file of the socket is still there. More often would wake an idle daemon for little."""
END_SECONDS: Final = 10.0
"""How long the leases of closed connections may take to end when the daemon stops. They take milliseconds."""
SPIN_SECONDS: Final = 0.0003
"""How long the event loop stays awake for the next of several requests in a row. A client sends it sooner."""


Check: TypeAlias = Callable[[Session, Any], None]


def _guarded(check: Check, handle: Handler) -> Handler:
    def guarded(session: Session, request: Any, reply: Reply) -> None:
        check(session, request)
        handle(session, request, reply)

    return guarded


class Server:
    """The server of a Unix socket. It passes the requests of its connections to the handlers."""

    def __init__(self, backlog: Callable[[], int], access: SocketAccess) -> None:
        """``backlog`` returns the weight of the commands of the store that are not finished."""
        self._access = access
        self.routes: dict[type, Route] = {}
        self._handlers: dict[type, Handler] = {}
        self.connections: set[ClientConnection] = set()
        self.unended: set[ClientConnection] = set()
        """The connections, and those that were closed and whose waits and leases have not ended yet."""
        self.partial = 0
        """Bytes of unfinished lines of all connections."""
        self.traffic = Traffic(backlog)
        self.hang_ups = HangUps()
        self._loop = asyncio.get_running_loop()
        self._spin = Spin(SPIN_SECONDS)
        self._spinning = False
        self._has_answered = False
        """Whether a reply has gone out since the last request."""
        self._server: asyncio.AbstractServer | None = None
        self._path: Path | None = None
        self._is_own = True
        """Whether this process has made the socket, and removes it in the end."""
        self._identity: tuple[int, int] | None = None
        """Device and number of the socket's file, by which a file of another program is told from it."""

    @property
    def socket_mode(self) -> str:
        """The mode of the socket, as the configuration has it, such as ``0600``."""
        return f"{self._access.mode:04o}"

    def add(self, handlers: Handlers) -> None:
        """Pass the requests of these types to these handlers."""
        self._handlers.update(handlers)
        self.guard(None)

    def guard(self, check: Check | None) -> None:
        """From now on call ``check`` before each handler, or nothing. It raises an `EoqError` to refuse a request."""
        for kind, handle in self._handlers.items():
            self.routes[kind] = route_of(kind, handle if check is None else _guarded(check, handle))

    async def start(self, path: Path, passed: socket.socket | None = None) -> None:
        """Accept connections on ``path``. Replace a stale socket there. Raises `Locked` where one is in use.

        ``passed`` is a socket that a service manager listens on, and keeps when this process ends.
        """
        if passed is None:
            listening = listen(path, self._access)
        else:
            require_at(passed, path)
            listening = passed
            listening.setblocking(False)
        self._is_own = passed is None
        self._path, self._identity = path, identity_of(path)
        self._server = await self._loop.create_unix_server(
            lambda: ClientConnection(self), sock=listening, backlog=1024, **KEEPING_FILE
        )

    async def keep_socket(self, lock: Lock) -> None:
        """Make the socket and its lock file again when they were removed, until this task is cancelled.

        That happens: a session ends, and its runtime folder goes; a job cleans /tmp. The folder is made again as well.
        """
        logged = ""
        while True:
            await asyncio.sleep(SOCKET_SECONDS)
            try:
                await self._restore_socket(lock)
            except (EoqError, OSError) as error:
                if logged != str(error):
                    logged = str(error)
                    log.error("no client can connect: %s", error)
            else:
                logged = ""

    async def _restore_socket(self, lock: Lock) -> None:
        path = self._path
        assert path is not None and self._server is not None  # noqa: S101 # it was started
        found = identity_of(path)
        if found is not None and found != self._identity:
            raise Locked(
                f"another program has replaced {path}; remove that file, and this daemon makes its socket again"
            )
        if found is None:
            path.parent.mkdir(0o700, parents=True, exist_ok=True)
        if not lock.is_in_place:
            lock.restore()
        if found is None:
            self._server.close()
            await self.start(path)
            log.warning("%s was removed; it is made again", path)

    def remove_socket(self) -> None:
        """Remove the file of the socket, if it is still this daemon's."""
        if self._path is not None and self._is_own and identity_of(self._path) == self._identity:
            with contextlib.suppress(OSError):
                self._path.unlink()

    def has_room(self) -> None:
        """Handle the lines that were held, if they can be, or one of them: the backlog is smaller."""
        if self.traffic.held:
            self.traffic.resume()
            self.traffic.admit_one()

    def asked(self) -> None:
        """Note that a request has arrived."""
        if self._has_answered:
            self._has_answered = False
            self._spin.end()

    def answered(self) -> None:
        """Note that a reply goes out, alone or before others.

        In a row of requests the next one arrives at once, and the event loop stays awake for it.
        """
        if self._has_answered:
            return
        self._has_answered = True
        if self._spin.begin() and not self._spinning:
            self._spinning = True
            self._loop.call_soon(self._stay_awake)

    def _stay_awake(self) -> None:
        self._spinning = self._spin.again()
        if self._spinning:
            self._loop.call_soon(self._stay_awake)

    def refuse_new(self) -> None:
        """Accept no more connections and read no more requests. Those under way are answered."""
        if self._server is not None:
            self._server.close()
        for connection in self.connections:
            connection.stop_reading()

    async def close(self) -> None:
        """Close all connections once their replies are written, or after a second. Their leases have ended then."""
        for connection in tuple(self.connections):
            connection.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                while self.connections:
                    await next(iter(self.connections)).gone.wait()
        for connection in tuple(self.connections):
            connection.abort()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                while self.unended:
                    await next(iter(self.unended)).gone.wait()
