"""A private daemon in a thread of the test: the real parts, a real socket and a real file in a folder of its own.

    with private_daemon() as daemon:
        daemon.client.send("mail", "hello", delay=3600)
        daemon.clock.move(3600)

It starts within milliseconds, since no process is started. What it has is that of `eoq daemon`, but for the clock, the
spool, which it has only where it is asked for, and that a failure inside fails the test.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

from ..client.aio import AsyncClient
from ..client.blocking import Client
from ..daemon.assembly import Settings, open_daemon
from ..daemon.config.loader import load
from ..daemon.config.model import Config, LiveConfig
from ..daemon.config.reload import Reloader
from ..daemon.services.spool.spool_folder import SpoolFolder
from ..errors import EoqError
from ..message import AsyncMessage, Message, Payload
from . import effects
from .aio_drain import drain as drain_async
from .clock import MovableClock
from .drain import drain
from .drained import Drained

if TYPE_CHECKING:
    from ..worker.aio_handlers import AsyncProcessor
    from ..worker.handlers import Processor

T = TypeVar("T")

PATIENCE: Final = 30.0
"""Seconds that the daemon may take to start or to stop."""
LEAST_MEMORY: Final = 1024 * 1024 * 1024
"""Free bytes with which a file system in memory is used."""
LONGEST_FOLDER: Final = 80
"""Characters of a path in which a socket still fits."""


@contextmanager
def private_daemon(
    *, config: str = "", clock: MovableClock | None = None, spool: bool = False
) -> Iterator[PrivateDaemon]:
    """Run a private daemon in a new folder, which is removed at the end.

    With ``spool``, it reads the spool in the folder ``daemon.spool``, in real time.

    ``config`` is the text of a configuration file, such as ``'[queues."*"]\\nmax_attempts = 3'``. Raises what a daemon
    raises that cannot start, and, at the end, `EoqError` if the daemon has failed inside.
    """
    folder = _short_folder()
    try:
        daemon = PrivateDaemon(folder, config, clock, spool=spool)
        daemon.start()
        try:
            yield daemon
        finally:
            daemon.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class PrivateDaemon:
    """A daemon in a thread. Make it with `private_daemon`, or take the fixture ``eoq_daemon``."""

    def __init__(
        self, folder: Path, config: str = "", clock: MovableClock | None = None, *, spool: bool = False
    ) -> None:
        self.folder = folder
        self.socket = folder / "s"
        """The socket: for `eoq.connect`, or as ``EOQ_SOCKET`` for commands."""
        self.db = folder / "eoq.db"
        """The daemon's file. Look at it, but do not change it."""
        self.spool = folder / "spool" if spool else None
        """The folder of its spool, for `eoq.Spool`, if it has one."""
        self.clock = clock or MovableClock()
        """The time of the daemon. Wall clock and waits move together."""
        self.config = config
        """The text of the configuration file. A change takes effect with `restart`."""
        self._thread: threading.Thread | None = None
        self._stop: Callable[[], object] = _nothing
        self._failures: list[EoqError] = []
        self._client: Client | None = None

    # ── its life ────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Start the daemon, and wait until it accepts connections. Raises what keeps it from starting."""
        config = self._read_config()
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(config, ready), name="eoq daemon", daemon=True)
        self._thread.start()
        ready.result(PATIENCE)

    def stop(self) -> None:
        """Stop the daemon, as SIGTERM does. Raises `EoqError` if it has failed inside."""
        if self._client is not None:
            self._client.close()
            self._client = None
        thread, self._thread = self._thread, None
        if thread is not None:
            self._stop()
            thread.join(PATIENCE)
        if self._failures:
            raise self._failures.pop()

    def restart(self) -> None:
        """Stop the daemon and start it on the same file. Leases end, and what was stored is there."""
        self.stop()
        self.start()

    def _read_config(self) -> Config:
        if not self.config:
            return Config()
        path = self.folder / "eoq.toml"
        path.write_text(self.config)
        return load(path)

    def _run(self, config: Config, ready: Future[None]) -> None:
        try:
            with asyncio.Runner() as runner:
                runner.run(self._serve(config, ready))
        except BaseException as error:  # noqa: BLE001 # it is raised in the thread of the test
            if not ready.done():
                ready.set_exception(error)
            else:
                self._failures.append(_failed(error))

    async def _serve(self, config: Config, ready: Future[None]) -> None:
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        failures = self._failures

        def fail(error: EoqError) -> None:
            failures.append(error)
            stopped.set()

        def handle(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            fail(_failed(context.get("exception") or context["message"]))

        loop.set_exception_handler(handle)
        live = LiveConfig(config)
        settings = Settings(self.db, self.socket, config=config)
        async with AsyncExitStack() as stack:
            owner = {"pid": os.getpid(), "socket": str(self.socket)}
            spool = None if self.spool is None else stack.enter_context(SpoolFolder(self.spool, owner))
            daemon = await stack.enter_async_context(
                open_daemon(settings, self.clock, live, Reloader(None, live), spool, fail)
            )
            self.clock.attach(daemon.settled)
            try:
                await daemon.start()
                self._stop = lambda: loop.call_soon_threadsafe(stopped.set)
                ready.set_result(None)
                await stopped.wait()
                await daemon.stop(drain=not failures)
            finally:
                self.clock.detach()

    # ── clients ─────────────────────────────────────────────────────────────────────────────────────────

    @property
    def client(self) -> Client:
        """A blocking client of this daemon. `stop` closes it."""
        if self._client is None:
            self._client = Client(self.socket)
        return self._client

    def connect_async(self) -> AsyncClient:
        """Return a new asyncio client of this daemon, which the test closes."""
        return AsyncClient(self.socket)

    # ── draining ────────────────────────────────────────────────────────────────────────────────────────

    @overload
    def drain(
        self,
        queue: str,
        handler: Callable[[Message], Payload],
        *,
        inbox: None = None,
        move_clock: bool = False,
        reraise: bool = False,
    ) -> Drained: ...
    @overload
    def drain(
        self,
        queue: str,
        handler: Callable[[T, Message], Payload],
        *,
        inbox: Processor[T],
        move_clock: bool = False,
        reraise: bool = False,
    ) -> Drained: ...
    def drain(
        self,
        queue: str,
        handler: Callable[..., object],
        *,
        inbox: Processor[Any] | None = None,
        move_clock: bool = False,
        reraise: bool = False,
    ) -> Drained:
        """Handle the messages of ``queue`` one by one, in this thread, until none is ready. Return what became of them.

        ``handler`` and ``inbox`` are those of `eoq.Client.work`. Where the handler raises, its message is given back as
        a worker does it. With ``move_clock`` the clock is moved to the moment at which the next message is due, so that
        retries and delayed messages are handled as well. With ``reraise`` the first exception of a handler is raised,
        after its message was given back.
        """
        move = self.clock.move_to if move_clock else None
        return drain(self.client, queue, handler, inbox, move, reraise)

    @overload
    async def drain_async(
        self,
        queue: str,
        handler: Callable[[AsyncMessage], Awaitable[Payload]],
        *,
        inbox: None = None,
        move_clock: bool = False,
        reraise: bool = False,
    ) -> Drained: ...
    @overload
    async def drain_async(
        self,
        queue: str,
        handler: Callable[[T, AsyncMessage], Awaitable[Payload]],
        *,
        inbox: AsyncProcessor[T],
        move_clock: bool = False,
        reraise: bool = False,
    ) -> Drained: ...
    async def drain_async(
        self,
        queue: str,
        handler: Callable[..., Awaitable[object]],
        *,
        inbox: AsyncProcessor[Any] | None = None,
        move_clock: bool = False,
        reraise: bool = False,
    ) -> Drained:
        """Do what `drain` does, with an asyncio handler and an asyncio inbox."""
        move = self.clock.move_to if move_clock else None
        async with self.connect_async() as client:
            return await drain_async(client, queue, handler, inbox, move, reraise)

    # ── effects ─────────────────────────────────────────────────────────────────────────────────────────

    def dead_letters(self, queue: str) -> dict[str, str | None]:
        """Return the dead letters of a queue: for each id its last error."""
        return effects.dead_letters(self.client, queue)

    def assert_done(self, queue: str, *ids: str) -> None:
        """Fail unless exactly the messages with these ids are done in ``queue``, in any order."""
        effects.assert_done(self.client, queue, ids)

    def assert_waiting(self, queue: str, *ids: str) -> None:
        """Fail unless exactly these messages wait in ``queue``, now or for their time or their group, in any order."""
        effects.assert_waiting(self.client, queue, ids)

    def assert_dead(self, queue: str, id: str, error: str = "") -> None:
        """Fail unless the message is a dead letter whose last error has a match of the expression ``error``."""
        effects.assert_dead(self.client, queue, id, error)

    def assert_empty(self, queue: str) -> None:
        """Fail if a message of ``queue`` waits, is leased, or is a dead letter."""
        effects.assert_empty(self.client, queue)


def _short_folder() -> Path:
    """Make a folder in memory where there is one, since a test need not survive a loss of power, else among the others.

    Its path is short enough for a socket.
    """
    memory = Path("/dev/shm")  # noqa: S108 # `mkdtemp` makes a new folder in it
    with suppress(OSError):
        found = os.statvfs(memory)
        if found.f_bavail * found.f_frsize >= LEAST_MEMORY and os.access(memory, os.W_OK):
            return Path(tempfile.mkdtemp(prefix="eoq-", dir=memory))
    folder = tempfile.mkdtemp(prefix="eoq-")
    if len(folder) > LONGEST_FOLDER:
        Path(folder).rmdir()
        folder = tempfile.mkdtemp(prefix="eoq-", dir="/tmp")
    return Path(folder).resolve()


def _failed(reason: object) -> EoqError:
    error = EoqError(f"the private daemon failed inside: {reason!r}")
    if isinstance(reason, BaseException):
        error.__cause__ = reason
    return error


def _nothing() -> None:
    """Do nothing."""
