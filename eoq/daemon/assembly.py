"""The assembly: it makes the parts of the daemon, joins them, and starts and stops them in the right order.

    server → broker and services → writer → store
                                            reader ← queries

A request goes down: the server decodes it, a handler makes one command of it, and the writer runs the command in a
transaction of the store. The outcome comes back up as the reply. Where one part must know what another has done, it
listens to an event of `Events`. All listeners subscribe here, except the broker's own receivers.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import EoqError
from .broker.broker import Broker
from .broker.events import Events
from .broker.throughput import Throughput
from .clock import Clock
from .config.access import group_of
from .config.model import Config, LiveConfig
from .config.reload import Reloader
from .locks import Lock
from .records import Binding
from .server.server import Server
from .server.sockets import SocketAccess, who_cannot_pass
from .services.admin import AdminService
from .services.bridges.bridges import Bridges
from .services.changes import MessageChangeService
from .services.far_results import ResultsService
from .services.monitoring.explain import Explain
from .services.monitoring.letters import log_dead_letters
from .services.monitoring.metrics import Metrics
from .services.monitoring.overview import QueueOverview
from .services.monitoring.server import MetricsServer
from .services.monitoring.status import StatusService
from .services.monitoring.totals import TotalsService
from .services.once import OnceService
from .services.permissions import Permissions
from .services.queries import Queries
from .services.relays import Relays
from .services.remembered import RememberedService
from .services.retention import Retention
from .services.scheduler import Scheduler
from .services.spool.spool_folder import SpoolFolder
from .services.spool.spool_reader import SpoolReader
from .services.topics import Topics
from .store.commands import EndLife, ListBindings
from .store.sqlite.database import QUICK_COMMIT
from .store.sqlite.migration import Tell, to_nobody
from .store.sqlite.reader import Reader
from .store.sqlite.store import SqliteStore
from .store.writer import Writer

log = logging.getLogger("eoq.daemon")


@dataclass(frozen=True, slots=True)
class Settings:
    """The values that a daemon is started with."""

    database: Path
    socket: Path
    max_attempts: int | None = None
    """For all queues; it takes precedence over the configuration. None leaves it to the configuration."""
    quick_commit: float = QUICK_COMMIT
    """Seconds. Commits that take longer run on a thread. With 0, all commits run on a thread."""
    config: Config = field(default_factory=Config)
    config_path: Path | None = None
    """The file that ``config`` was read from, and is read from again. None means no file."""
    spool: Path | None = None
    """The spool that somebody has asked for. None stands for the default one, beside the database."""

    @property
    def access(self) -> SocketAccess:
        """Who may connect to the socket."""
        named = self.config.daemon
        mode = 0o600 if named.socket_mode is None else int(named.socket_mode, 8)
        return SocketAccess(mode, None if named.socket_group is None else group_of(named.socket_group))

    @property
    def folder(self) -> Path:
        """The folder to which paths in ``config`` are relative."""
        return Path() if self.config_path is None else self.config_path.parent


class Daemon:
    """All parts of one daemon, joined. Make it with `open_daemon`."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        config: LiveConfig,
        reloader: Reloader,
        store: SqliteStore,
        reader: Reader,
        spool: SpoolFolder | None,
        on_lost: Callable[[EoqError], None],
    ) -> None:
        self._settings = settings
        self._config = config
        self._reloader = reloader
        self._store = store
        self._writer = writer = Writer(store, on_lost)
        events = Events()
        self._throughput = Throughput(clock)
        self._topics = Topics(writer)
        self._broker = Broker(
            writer,
            clock,
            life=store.token,
            source=store.identity,
            events=events,
            topics=self._topics,
            settings=config.queue,
        )
        clock = self._broker.clock
        overview = QueueOverview(reader, self._throughput, self._broker.receivers, store.totals)
        self._queries = Queries(reader, clock, overview)
        self._results = ResultsService(writer, reader, events)
        self._explain = Explain(reader, self._broker, config.queue)
        self._once = OnceService(writer, clock)
        self._remembered = RememberedService(writer, clock, config)
        self._retention = Retention(writer, clock, config, self._topics.configured_names, self._broker.due_times)
        self._admin = AdminService(writer, clock, self._broker.due_times, events, self._topics, config.queue)
        self._changes = MessageChangeService(writer, self._broker, events)
        self._scheduler = Scheduler(writer, clock, self._broker.publisher, config.queue)
        self._relays = Relays(settings.socket, settings.folder)
        self._bridges = Bridges(settings.socket)
        self._permissions = Permissions(self._broker, config.config)
        self._spool = None if spool is None else SpoolReader(spool, self._resend_within, self._permissions.why_not)
        self._server = Server(lambda: writer.backlog, settings.access)
        writer.finished = self._server.has_room
        self._status = StatusService(
            *(settings.database, settings.socket, store, settings.max_attempts, self._remembered),
            *(self._server, self._broker, reloader, self._spool, self._bridges),
        )
        self._totals = TotalsService(writer, clock)
        self._metrics = Metrics(self._status, overview, store.database.latencies)
        self._metrics_server = MetricsServer(self._metrics, settings.folder)
        self._tasks: list[asyncio.Task[None]] = []
        self._join(events)

    def _join(self, events: Events) -> None:
        """Subscribe each part to what it must know of the others."""
        events.on_stored += [self._throughput.stored, self._queries.stored, self._totals.stored]
        events.on_ended += [
            self._throughput.ended,
            self._queries.ended,
            self._results.ended,
            self._retention.ended,
            self._totals.ended,
            log_dead_letters,
        ]
        events.on_resulted += [self._queries.ended, self._results.ended]
        events.on_room += [self._scheduler.made_room]
        self._reloader.listeners += [
            self._relays.follow,
            self._bridges.follow,
            self._metrics_server.follow,
            self._follow_permissions,
            self._configure_topics,
            self._remembered.follow,
            self._hurry_retention,
            self._apply_schedules,
            self._wake_receivers,
        ]
        for part in (
            *(self._broker, self._topics, self._queries, self._results, self._explain, self._once),
            *(self._admin, self._changes, self._scheduler, self._status, self._metrics),
        ):
            self._server.add(part.handlers)
        self._follow_permissions(Config(), self._config.config)

    async def start(self, passed: socket.socket | None = None) -> None:
        """Begin to serve, on a socket that a service manager ``passed``, if it did.

        Raises `EoqError` where the socket cannot be used.
        """
        config = self._config.config
        self._topics.load(await self._store.execute(ListBindings()))
        self._configure_topics(config, config)
        self._broker.start()
        await self._remembered.start()  # before clients ask for how long their ids are remembered
        await self._server.start(self._settings.socket, passed)
        self._once.start()
        self._retention.start()
        self._scheduler.apply(config)
        if (left_out := who_cannot_pass(self._settings.socket, self._settings.access)) is not None:
            log.warning("%s: %s may connect, but may not enter its folder", self._settings.socket, left_out)
        log.info("pid %d, SQLite %s, file %s", os.getpid(), sqlite3.sqlite_version, self._settings.database)
        self._relays.follow(Config(), config)
        self._bridges.follow(Config(), config)
        self._metrics_server.follow(Config(), config)
        self._run(self._reloader.run())
        if self._spool is not None:
            self._run(self._spool.run_over(self._settings.socket))

    async def stop(self, *, drain: bool) -> None:
        """Answer all requests that were read, and close all connections.

        ``drain`` waits until every submitted command is on disk. After a failure inside, that may never happen.
        """
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._relays.stop()
        await self._bridges.stop()
        await self._metrics_server.stop()
        self._server.refuse_new()
        self._scheduler.stop()
        self._broker.stop()
        self._once.stop()
        self._retention.stop()
        self._totals.stop()
        if drain:
            await self._writer.drain()
        await self._queries.stop()
        await self._results.stop()
        await self._server.close()
        if drain:
            await self._writer.drain()
            await self._end_life()

    async def _end_life(self) -> None:
        """Store that the daemon was not killed. Without that, the deliveries that end now use an attempt."""
        try:
            await self._store.execute(EndLife())
        except EoqError as error:
            log.warning("the clean stop could not be stored: %s", error)

    async def settled(self) -> None:
        """Wait until every command that was submitted so far is on disk and answered."""
        await self._writer.drain()

    @property
    def lost(self) -> EoqError | None:
        """Why the daemon has to end without closing its file; None where it need not."""
        return self._store.lost

    @property
    def summary(self) -> str:
        """What the daemon does now, in a line, for a service manager."""
        clients = len(self._server.connections)
        return f"serving {self._settings.socket}: {clients:,} connections, {self._broker.leased:,} messages leased"

    def keep_socket(self, lock: Lock) -> None:
        """Make the socket, and the file of its ``lock``, again whenever they were removed."""
        self._run(self._server.keep_socket(lock))

    def remove_socket(self) -> None:
        """Remove the file of the socket, if it was created."""
        self._server.remove_socket()

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.append(task)
        task.add_done_callback(_report_failure)

    def _resend_within(self, name: str) -> float:
        """Return for how many seconds a file in the folder of this name may be sent again."""
        if self._topics.was_topic(name):
            return self._remembered.surely  # its copies have the retentions of other queues
        return self._remembered.of_queue(name)

    # ── a new configuration ─────────────────────────────────────────────────────────────────────────────

    def _follow_permissions(self, _old: Config, new: Config) -> None:
        self._server.guard(self._permissions.check if self._permissions.follow(new) else None)

    def _configure_topics(self, _old: Config, new: Config) -> None:
        self._topics.configure([Binding(bind.topic, bind.queue, bind.headers) for bind in new.bind])

    def _hurry_retention(self, _old: Config, _new: Config) -> None:
        self._retention.hurry()

    def _apply_schedules(self, _old: Config, new: Config) -> None:
        self._scheduler.apply(new)

    def _wake_receivers(self, _old: Config, _new: Config) -> None:
        self._broker.receivers.wake_all()


@asynccontextmanager
async def open_daemon(
    settings: Settings,
    clock: Clock,
    config: LiveConfig,
    reloader: Reloader,
    spool: SpoolFolder | None,
    on_lost: Callable[[EoqError], None],
    tell: Tell = to_nobody,
) -> AsyncIterator[Daemon]:
    """Open the file of the daemon, and make its parts. Close what was opened at the end. Raises `EoqError`.

    ``on_lost`` is told when the daemon has to end without closing its file, and ``tell`` how far a file of an earlier
    version is brought up to date.
    """
    async with AsyncExitStack() as stack:
        store = await SqliteStore.open(
            settings.database,
            settings=config.queue,
            storage=lambda: config.config.storage,
            quick_commit=settings.quick_commit,
            tell=tell,
        )
        stack.push_async_callback(store.close)
        reader = await Reader.open(settings.database)
        stack.push_async_callback(reader.close)
        daemon = Daemon(settings, clock, config, reloader, store, reader, spool, on_lost)
        stack.callback(daemon.remove_socket)
        yield daemon


def _report_failure(task: asyncio.Task[None]) -> None:
    """Stop the daemon if a task of its own has failed. Such a task never ends by itself."""
    if not task.cancelled() and (error := task.exception()) is not None:
        task.get_loop().call_exception_handler({"message": "a part of the daemon failed", "exception": error})
