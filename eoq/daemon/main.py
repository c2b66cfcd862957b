"""The daemon as a process: its signals, its locks, its limit of open files. `assembly.py` makes the parts in it."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from ..errors import EoqError, Forbidden
from ..protocol.holder import Opening
from ..protocol.paths import how_to_open, spool_path
from ..system.service_manager import ServiceManager
from .assembly import Daemon, Settings, open_daemon
from .clock import LoopClock
from .config.model import LiveConfig
from .config.reload import Reloader
from .locks import Lock, cannot_use
from .server.connection import MAX_CONNECTIONS
from .services.spool.spool_folder import SpoolFolder

__all__ = ["Settings", "run"]

log = logging.getLogger("eoq.daemon")

STATUS_SECONDS: Final = 10.0
"""How often a service manager is told what the daemon does, if that has changed."""
SWITCH_SECONDS: Final = 0.001
"""How long the event loop, while it has work, keeps the thread of the file waiting after each statement (5 ms by
default). A transaction of ten statements could wait for 50 ms beside a client that sends without a pause."""
LAST_REPLIES_SECONDS: Final = 0.1
"""How long replies may take to be written, when the process has to end without closing its file."""


def run(settings: Settings, ready: Callable[[Path], None], hung_up: Callable[[], None] = lambda: None) -> None:
    """Serve until SIGTERM or SIGINT. Call ``ready`` with the path of the socket once connections are accepted.

    ``hung_up`` is called on each SIGHUP, beside reading the configuration again.

    Raises `EoqError` where the daemon cannot start, or has failed inside.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        with asyncio.Runner(loop_factory=_find_loop()) as runner:
            runner.run(_serve(settings, ready, hung_up))
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _find_loop() -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what makes the event loop: uvloop, or asyncio where uvloop is not installed (there may be no wheel)."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        return asyncio.new_event_loop
    return new_event_loop


async def _serve(settings: Settings, ready: Callable[[Path], None], hung_up: Callable[[], None]) -> None:
    stopped = asyncio.Event()
    failures = _stop_on_failure(stopped)
    overrides = {} if settings.max_attempts is None else {"max_attempts": settings.max_attempts}
    config = LiveConfig(settings.config, overrides)
    reloader = Reloader(settings.config_path, config)
    _reload_on_hangup(reloader, hung_up)
    _end_on_signals()
    manager = ServiceManager()
    with ExitStack() as stack:
        socket_lock, found = _lock_paths(settings, stack)
        spool = None if isinstance(found, EoqError) else found
        _allow_many_files()
        manager.tell_status(f"opening {settings.database}")
        _note_opening(socket_lock, Opening("opening its file", 0, 0, upgrades=False))
        tell = partial(_tell_of_upgrade, socket_lock, manager)
        end_soon = partial(_end_soon, socket_lock)
        async with open_daemon(settings, LoopClock(), config, reloader, spool, end_soon, tell) as daemon:
            await daemon.start(manager.passed_socket())
            if isinstance(found, EoqError):
                log.warning("going on without the default spool: %s", found)
            daemon.keep_socket(socket_lock)
            _stop_on_signals(stopped)
            gc.freeze()  # what was loaded stays: the collector would look at all of it while clients wait
            socket_lock.note()
            ready(settings.socket)
            manager.tell("READY=1", f"MAINPID={os.getpid()}")
            telling = asyncio.get_running_loop().create_task(_tell_of_life(manager, daemon))
            await stopped.wait()
            log.info("stopping")
            manager.tell("STOPPING=1", "STATUS=stopping")
            telling.cancel()
            await daemon.stop(drain=not failures)
            if daemon.lost is not None:
                os._exit(daemon.lost.exit_status)  # see `_end_soon`
    if failures:
        raise failures[0]


def _note_opening(lock: Lock, opening: Opening) -> None:
    """Let those who look at the socket's lock know what the daemon does before it serves."""
    lock.note(opening=opening._asdict())


def _tell_of_upgrade(lock: Lock, manager: ServiceManager, what: str, done: int, total: int) -> None:
    """Tell clients and the service manager how far the file of an earlier version is brought up to date."""
    opening = Opening(what, done, total, upgrades=True)
    _note_opening(lock, opening)
    manager.tell_status(opening.text)


async def _tell_of_life(manager: ServiceManager, daemon: Daemon) -> None:
    """Tell the service manager now and then that the event loop turns, and what the daemon does."""
    seconds = STATUS_SECONDS if manager.watchdog is None else min(manager.watchdog / 3, STATUS_SECONDS)
    while manager.is_there:
        manager.tell_status(daemon.summary)
        if manager.watchdog is not None:
            manager.tell("WATCHDOG=1")
        await asyncio.sleep(seconds)  # not a wait for anything


def _stop_on_failure(stopped: asyncio.Event) -> list[EoqError]:
    """Stop the daemon when a callback or task fails. Return the list to which each failure is added.

    The daemon does not go on after an error that should never happen: the file is safe, and a restart is clean.
    """
    failures: list[EoqError] = []

    def fail(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        log.error("stopping: %s", context["message"], exc_info=error)
        failures.append(EoqError(f"the daemon failed inside and stopped: {error!r}; what was confirmed is safe"))
        stopped.set()

    asyncio.get_running_loop().set_exception_handler(fail)
    return failures


def _end_soon(lock: Lock, lost: EoqError) -> None:
    """End the process as soon as the last replies are written, and leave the file as it is.

    To close the file, or to let Python close it at the end of the process, would be a checkpoint. See `FileLost`. The
    lock of the socket goes on saying why, for those who find no daemon afterwards.
    """
    log.critical("stopping at once: %s", lost)
    lock.note(ended=str(lost))
    asyncio.get_running_loop().call_later(LAST_REPLIES_SECONDS, os._exit, lost.exit_status)


def _end_on_signals() -> None:
    """Let SIGTERM and SIGINT end the process at once, while it starts.

    It may then be busy for long, with a large log of the database for example. The file is safe, as after every kill.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def _stop_on_signals(stopped: asyncio.Event) -> None:
    """Let SIGTERM and SIGINT stop the daemon: it answers what was begun, and closes the file."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)


def _reload_on_hangup(reloader: Reloader, hung_up: Callable[[], None]) -> None:
    """Read the configuration again on SIGHUP, and call ``hung_up``."""
    loop = asyncio.get_running_loop()

    def act() -> None:
        try:
            hung_up()
        except EoqError as error:
            log.error("%s; the log goes on where it was", error)
        reloader.ask()

    def reload(_number: int, _frame: object) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(act)

    # Not with `add_signal_handler`: the loop would restore the default action of SIGHUP when it ends, and the signal
    # would then kill a daemon that is stopping.
    signal.signal(signal.SIGHUP, reload)


def _lock_paths(settings: Settings, stack: ExitStack) -> tuple[Lock, SpoolFolder | EoqError]:
    """Lock the file, the socket and the spool for this daemon, until ``stack`` ends.

    Return the lock of the socket, and the spool, or why the default one cannot be used: nobody has asked for it.

    Raises `Locked` where another daemon has one of them, `Forbidden` where a folder cannot be used.
    """
    with suppress(PermissionError):  # then the lock says so
        _require_files(settings.database)
    owner = {"pid": os.getpid(), "socket": str(settings.socket)}
    for path in (settings.database, settings.socket):
        _make_folder(path.parent)
        # Resolved, so that another daemon cannot open the same file under the name of a link.
        lock = stack.enter_context(Lock(Path(os.path.realpath(path)), owner))
    try:
        is_default = settings.spool is None
        spool = SpoolFolder(settings.spool or spool_path(settings.database), owner, is_default=is_default)
    except EoqError as error:
        if not is_default:
            raise
        return lock, error
    return lock, stack.enter_context(spool)


def _require_files(database: Path) -> None:
    """Raise `Forbidden` where the database, its log or its index is no file, or is closed to its owner by its mode."""
    for path in (database.with_name(database.name + end) for end in ("", "-wal", "-shm")):
        if not path.exists():
            continue
        if not path.is_file():
            kind = "a folder" if path.is_dir() else "not a regular file"
            raise Forbidden(f"{path} cannot be opened: it is {kind}; remove it, or name another database with --db")
        if not os.access(path, os.R_OK | os.W_OK) and (hint := how_to_open(path)) is not None:
            raise Forbidden(f"{path} cannot be read or written by this user; {hint}")


def _allow_many_files() -> None:
    """Raise the soft limit of open files, so that the daemon can answer the connections that are over its own limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + 100
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(OSError, ValueError):  # without it, fewer clients can connect
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_use(folder, error) from error
