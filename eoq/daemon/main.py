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
from .broker import Broker
from .clock import LoopClock
from .config import Config, Current
from .file import QUICK_COMMIT
from .forgetting import Forgetter
from .locks import Lock, cannot_use
from .looking import Looker
from .once import Deduplicator
from .reader import Reader
from .schedules import Scheduler
from .server import MAX_CONNECTIONS, Server
from .settings import MAX_ATTEMPTS
from .store import Store
from .writer import Writer

log = logging.getLogger("eoq.daemon")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a daemon is started with.

    ``quick_commit`` is in seconds; 0 commits on a thread always. Paths in ``config`` are relative to ``folder``.
    """

    database: Path
    socket: Path
    max_attempts: int = MAX_ATTEMPTS
    quick_commit: float = QUICK_COMMIT
    config: Config = field(default_factory=Config)
    folder: Path = Path()


def run(settings: Settings, ready: Callable[[Path], None]) -> None:
    """Serves until SIGTERM or SIGINT; calls ``ready`` with the socket's path once connections are accepted.

    Raises `EoqError` where it cannot start, or had to stop.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(settings, ready))


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
    async with AsyncExitStack() as stack:
        holder = {"pid": os.getpid(), "socket": str(settings.socket)}
        for path in (settings.database, settings.socket):
            _make_folder(path.parent)
            # Resolved, so that a link is no second name under which another daemon opens the same file.
            stack.callback(Lock(path.resolve(), holder).release)
        _allow_many_files()
        current = Current(settings.config, {"max_attempts": settings.max_attempts})
        store = await Store.open(settings.database, settings=current.queue, quick_commit=settings.quick_commit)
        stack.push_async_callback(store.close)
        reader = await Reader.open(settings.database)
        stack.push_async_callback(reader.close)
        writer = Writer(store)
        clock = LoopClock()

        def describe() -> dict[str, Any]:
            return {
                "database": str(settings.database),
                "socket": str(settings.socket),
                "connections": len(server.connections),
                "leased": broker.leased,
                "waiting": broker.waiting,
            }

        looker = Looker(reader, describe)
        broker = Broker(
            store,
            writer,
            clock,
            epoch=secrets.token_hex(4),
            ended=looker.ended,
            settings=current.queue,
        )
        deduplicator = Deduplicator(store, writer, clock)
        forgetter = Forgetter(store, writer, clock, current)
        scheduler = Scheduler(store, writer, clock, broker.stored)
        server = Server(broker, looker, deduplicator, scheduler)
        await server.start(settings.socket)
        stack.callback(_remove_socket, settings.socket)
        for part in (broker, deduplicator, forgetter):
            part.start()
        scheduler.apply(current.config)
        log.info("pid %d, SQLite %s, file %s", os.getpid(), sqlite3.sqlite_version, settings.database)
        relaying = [loop.create_task(_relay(settings.folder / relay.path, settings)) for relay in settings.config.relay]
        ready(settings.socket)
        await stopped.wait()
        log.info("stopping")
        for task in relaying:
            task.cancel()
        await asyncio.gather(*relaying, return_exceptions=True)
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


async def _relay(path: Path, settings: Settings) -> None:
    """Sends an application's outbox through the daemon's own socket, also when the file comes later or goes."""
    from ..aio import connect_async
    from ..relay import Relay

    # Some time before the daemon may have forgotten what it settled.
    resend_within = settings.config.shortest_retention * 6 / 7
    async with connect_async(settings.socket) as client:
        await Relay(path, client, resend_within=resend_within).run()


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
