"""The daemon as a process: takes its locks, opens its file, serves until it is told to stop, and cleans up."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import secrets
import signal
import sqlite3
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from ..errors import EoqError
from .broker.broker import Broker
from .clock import LoopClock
from .config.model import Config, LiveConfig
from .config.reload import Reloader
from .locks import Lock, cannot_use
from .records import Binding
from .server.server import MAX_CONNECTIONS, Server
from .services.admin import AdminService
from .services.once import OnceService
from .services.queries import Queries
from .services.relays import Relays
from .services.retention import Retention
from .services.scheduler import Scheduler
from .services.spool_folder import SpoolFolder
from .services.spool_reader import SpoolReader
from .services.topics import Topics
from .store.commands import ListBindings
from .store.sqlite.database import QUICK_COMMIT
from .store.sqlite.reader import Reader
from .store.sqlite.store import SqliteStore
from .store.writer import Writer

log = logging.getLogger("eoq.daemon")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a daemon is started with.

    ``max_attempts`` counts before the configuration; None leaves it to that. ``quick_commit`` is in seconds; 0 commits
    on a thread always. ``config`` was read from ``config_path``, and is read from there again.
    """

    database: Path
    socket: Path
    max_attempts: int | None = None
    quick_commit: float = QUICK_COMMIT
    config: Config = field(default_factory=Config)
    config_path: Path | None = None
    spool: Path | None = None

    @property
    def folder(self) -> Path:
        """The folder to which paths in ``config`` are relative."""
        return Path() if self.config_path is None else self.config_path.parent


def run(settings: Settings, ready: Callable[[Path], None]) -> None:
    """Serves until SIGTERM or SIGINT; calls ``ready`` with the socket's path once connections are accepted.

    Raises `EoqError` where it cannot start, or had to stop.
    """
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(settings, ready))
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


async def serve(settings: Settings, ready: Callable[[Path], None]) -> None:
    """See `run`."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    failures: list[EoqError] = []

    def fail(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # What should never happen is not survived half-way: the file is safe, and a restart is clean.
        error = context.get("exception")
        log.error("stopping: %s", context["message"], exc_info=error)
        failures.append(EoqError(f"the daemon failed inside and stopped: {error!r}; what was confirmed is safe"))
        stopped.set()

    loop.set_exception_handler(fail)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    overrides = {} if settings.max_attempts is None else {"max_attempts": settings.max_attempts}
    current = LiveConfig(settings.config, overrides)
    reloader = Reloader(settings.config_path, current)

    def hangup(_number: int, _frame: object) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(reloader.ask)

    # Not through the loop, which gives a signal its default back when it ends: this one's would kill what is stopping.
    signal.signal(signal.SIGHUP, hangup)
    async with AsyncExitStack() as stack:
        holder = {"pid": os.getpid(), "socket": str(settings.socket)}
        for path in (settings.database, settings.socket):
            _make_folder(path.parent)
            # Resolved, so that a link is no second name under which another daemon opens the same file.
            stack.enter_context(Lock(path.resolve(), holder))
        spool = None
        if settings.spool is not None:
            spool = SpoolFolder(settings.spool, holder)
            stack.callback(spool.close)
        _allow_many_files()
        store = await SqliteStore.open(
            settings.database,
            settings=current.queue,
            storage=lambda: current.config.storage,
            quick_commit=settings.quick_commit,
        )
        stack.push_async_callback(store.close)
        reader = await Reader.open(settings.database)
        stack.push_async_callback(reader.close)
        writer = Writer(store)
        clock = LoopClock()
        # Some time before the daemon may have forgotten what it settled.
        taker = None if spool is None else SpoolReader(spool, lambda queue: current.queue(queue).retention * 6 / 7)

        def describe() -> dict[str, Any]:
            return {
                "database": str(settings.database),
                "socket": str(settings.socket),
                "connections": len(server.connections),
                "leased": broker.leased,
                "waiting": broker.waiting,
                "max_attempts": settings.max_attempts,
                **reloader.describe(),
                **({} if taker is None else taker.describe()),
            }

        topics = Topics(writer)
        topics.load(await store.execute(ListBindings()))
        topics.configure(_bindings(current.config))
        looker = Queries(reader, describe, lambda queue: broker.rates.rate(queue))
        broker = Broker(
            writer,
            clock,
            epoch=secrets.token_hex(4),
            ended=looker.ended,
            made_room=lambda: scheduler.made_room(),  # which is made below
            arrived=looker.arrived,
            topics=topics,
            settings=current.queue,
        )
        deduplicator = OnceService(writer, broker.clock)
        forgetter = Retention(writer, broker.clock, current)
        steward = AdminService(writer, broker.clock, broker)
        scheduler = Scheduler(writer, broker.clock, broker.intake, current.queue)
        server = Server(broker, looker, deduplicator, (steward, topics, scheduler))
        await server.start(settings.socket)
        stack.callback(_remove_socket, settings.socket)
        for part in (broker, deduplicator, forgetter):
            part.start()
        scheduler.apply(current.config)
        log.info("pid %d, SQLite %s, file %s", os.getpid(), sqlite3.sqlite_version, settings.database)
        relays = Relays(settings.socket, settings.folder)
        relays.follow(Config(), current.config)
        reloader.listeners += [
            relays.follow,
            lambda _, new: topics.configure(_bindings(new)),
            lambda _old, _new: forgetter.hurry(),
            lambda _, new: scheduler.apply(new),
            lambda _old, _new: broker.settings_changed(),
        ]
        inner = [loop.create_task(reloader.run())]
        if taker is not None:
            inner.append(loop.create_task(taker.run_over(settings.socket)))
        for task in inner:
            task.add_done_callback(_tell_failure)
        ready(settings.socket)
        await stopped.wait()
        log.info("stopping")
        for task in inner:
            task.cancel()
        await asyncio.gather(*inner, return_exceptions=True)
        await relays.stop()
        server.refuse_new()
        scheduler.stop()
        for part in (broker, deduplicator, forgetter):
            part.stop()
        if not failures:
            await writer.drain()
        await looker.stop()
        await server.close()
        if not failures:
            await writer.drain()
    if failures:
        raise failures[0]


def _bindings(config: Config) -> list[Binding]:
    return [Binding(bind.topic, bind.queue, bind.headers) for bind in config.bind]


def _tell_failure(task: asyncio.Task[None]) -> None:
    """A part of the daemon that ends by itself has failed inside."""
    if not task.cancelled() and (error := task.exception()) is not None:
        task.get_loop().call_exception_handler({"message": "a part of the daemon failed", "exception": error})


def _allow_many_files() -> None:
    """Raises the soft limit of open files, so that it is our own limit of connections that answers."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + 100
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(OSError, ValueError):  # then fewer clients can connect
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_use(folder, error) from error


def _remove_socket(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
