"""Being woken by writes to a file, or by files renamed into a spool, whoever does it.

Of a file (a SQLite database, or one that is read again) the folder is watched, never the file: closing a descriptor of
a database drops all locks that SQLite has on it in this process, and a file may be replaced by another. Where symbolic
links lead to it, the folder of each of them is watched too. A wake-up is a hint: it may come for nothing, and it may
be lost.

On Linux the kernel wakes the event loop (inotify(7)). Elsewhere watchfiles does; it looks into its own list of changes
a thousand times a second, which costs 1.5 % of a processor for as long as nothing happens.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from ..spool.format import is_hidden, is_ready

log = logging.getLogger("eoq.system.watch")

QUIET_SECONDS: Final = 0.002
"""How long after a wake-up the next one comes at the earliest: a commit is a few writes."""
RETRY_SECONDS: Final = 5.0
"""How long until a folder that cannot be watched is tried again."""
STEP_MS: Final = 1
DEBOUNCE_MS: Final = 5
"""Those of watchfiles, where it is used."""
MAX_LINKS: Final = 40
"""Symbolic links that are followed to one file, as the kernel does."""

# From linux/inotify.h.
_ATTRIB, _MODIFY, _CLOSE_WRITE, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x4, 0x2, 0x8, 0x40, 0x80, 0x100, 0x200
_DELETE_SELF, _MOVE_SELF, _OVERFLOW, _IGNORED = 0x400, 0x800, 0x4000, 0x8000
_ONLYDIR, _DONT_FOLLOW, _ISDIR = 0x1000000, 0x2000000, 0x40000000
_OF_FILES: Final = _ATTRIB | _MODIFY | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE
_OF_SPOOL: Final = _CLOSE_WRITE | _MOVED_TO | _CREATE
_OF_FOLDER: Final = _DELETE_SELF | _MOVE_SELF
_EVENT: Final = struct.Struct("iIII")


@dataclass(frozen=True, slots=True)
class _Target:
    """What is watched: a folder, with others beside it, and those in it where ``inner``; and the names that count."""

    folder: Path
    names: frozenset[str] | None
    """None: those of files that are ready in a spool."""
    others: tuple[Path, ...] = ()
    inner: bool = False

    @property
    def mask(self) -> int:
        return _OF_FOLDER | (_OF_FILES if self.names is not None else _OF_SPOOL)

    def concerns(self, name: str, mask: int) -> bool:
        if self.names is not None:
            return name in self.names
        if mask & _ISDIR:
            return not is_hidden(name)
        # A file that is only made is not complete yet.
        return is_ready(name) and bool(mask & (_MOVED_TO | _CLOSE_WRITE))

    def folders(self) -> list[Path]:
        """The folders in it."""
        if not self.inner:
            return []
        with os.scandir(self.folder) as entries:
            return [
                self.folder / one.name
                for one in entries
                if not is_hidden(one.name) and one.is_dir(follow_symlinks=False)
            ]


async def watch_database(path: Path, wake: Callable[[], object], sweep: float) -> None:
    """Calls ``wake`` after writes to the database at ``path``, and every ``sweep`` seconds; without end.

    Also when it begins to watch, and so after any time that it could not. Follows symbolic links, and a folder that
    is replaced or comes back.
    """
    await _watch(path.parent, partial(_file, path, ("", "-wal", "-journal")), wake, sweep)


async def watch_file(path: Path, wake: Callable[[], object], sweep: float) -> None:
    """As `watch_database`, for a file of any other kind, which may also come later, be replaced, or go."""
    await _watch(path.parent, partial(_file, path, ("",)), wake, sweep)


def _file(path: Path, suffixes: tuple[str, ...]) -> _Target:
    real = path.resolve()
    links = _links(path)
    names = {real.name + suffix for suffix in suffixes} | {link.name for link in links}
    others = dict.fromkeys(link.parent for link in links if os.access(link.parent, os.R_OK))
    return _Target(real.parent, frozenset(names), tuple(others))


def _links(path: Path) -> list[Path]:
    """The symbolic links on the way to ``path``; what one of them is replaced by may lead to another file."""
    links: list[Path] = []
    place, ahead = Path("/"), list(path.absolute().parts[1:])
    while ahead and len(links) < MAX_LINKS:
        here = place / ahead.pop(0)
        if here.is_symlink():
            links.append(here)
            target = here.readlink()
            ahead[:0] = target.parts[1:] if target.is_absolute() else target.parts
            place = Path("/") if target.is_absolute() else place
        else:
            place = here.parent.parent if here.name == ".." else here
    return links


async def watch_spool(folder: Path, wake: Callable[[], object], sweep: float) -> None:
    """`watch_database` for the spool in ``folder``: after a file was renamed into one of its queues, old or new."""
    await _watch(folder, lambda: _Target(folder.resolve(), None, inner=True), wake, sweep)


async def _watch(folder: Path, look: Callable[[], _Target], wake: Callable[[], object], sweep: float) -> None:
    watch = _watch_by_inotify if sys.platform == "linux" else _watch_by_watchfiles
    said = ""
    while True:
        try:
            target = look()
            identity = target.folder.stat()

            def is_elsewhere(target: _Target = target, identity: os.stat_result = identity) -> bool:
                now = look()
                return now != target or not os.path.samestat(now.folder.stat(), identity)

            await watch(target, wake, sweep, is_elsewhere)
            said = ""
        except (OSError, RuntimeError) as error:
            # RuntimeError: watchfiles has no other name for some failures, such as a limit on watches.
            if str(error) != said:
                said = str(error)
                log.warning("%s cannot be watched: %s; looking every %g s", folder, error, RETRY_SECONDS)
            wake()
            await asyncio.sleep(RETRY_SECONDS)


async def _watch_by_inotify(
    target: _Target, wake: Callable[[], object], sweep: float, is_elsewhere: Callable[[], bool]
) -> None:
    changed = asyncio.Event()
    with _inotify() as inotify:
        loop = asyncio.get_running_loop()
        loop.add_reader(inotify.descriptor, lambda: changed.set() if _concerns(target, inotify.descriptor) else None)
        try:
            for folder in (target.folder, *target.others):
                inotify.add(folder, target.mask)
            while not is_elsewhere():
                # What came into a new folder before it was watched is found by this wake-up.
                for folder in target.folders():
                    with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                        inotify.add(folder, target.mask | _ONLYDIR | _DONT_FOLLOW)
                wake()
                await asyncio.sleep(QUIET_SECONDS)
                with suppress(TimeoutError):
                    async with asyncio.timeout(sweep):
                        await changed.wait()
                changed.clear()
        finally:
            loop.remove_reader(inotify.descriptor)


class _Inotify:
    """inotify(7): ``descriptor`` can be read when something in one of its folders has changed."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.descriptor: int = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.descriptor < 0:
            raise _last_error()

    def add(self, folder: Path, mask: int) -> None:
        """Watches a folder; without effect where it does."""
        if self._libc.inotify_add_watch(self.descriptor, os.fsencode(folder), mask) < 0:
            raise _last_error()


def _last_error() -> OSError:
    return OSError(ctypes.get_errno(), f"inotify: {os.strerror(ctypes.get_errno())}")


@contextmanager
def _inotify() -> Iterator[_Inotify]:
    inotify = _Inotify()
    try:
        yield inotify
    finally:
        os.close(inotify.descriptor)


def _concerns(target: _Target, descriptor: int) -> bool:
    """Reads what there is; whether it is about what counts, about a folder itself, or unknown."""
    try:
        events = os.read(descriptor, 65536)
    except BlockingIOError:
        return False
    concerns = False
    while events:
        _, mask, _, length = _EVENT.unpack_from(events)
        name = os.fsdecode(events[_EVENT.size : _EVENT.size + length].rstrip(b"\0"))
        concerns = concerns or target.concerns(name, mask) or bool(mask & (_OF_FOLDER | _OVERFLOW | _IGNORED))
        events = events[_EVENT.size + length :]
    return concerns


async def _watch_by_watchfiles(
    target: _Target, wake: Callable[[], object], sweep: float, is_elsewhere: Callable[[], bool]
) -> None:
    from watchfiles import awatch

    def concerns(_change: object, changed: str) -> bool:
        if target.names is not None:
            return Path(changed).name in target.names
        # It does not say what is a folder; in a spool that are those at its top.
        kinds = (_ISDIR, _MOVED_TO, _MOVED_TO)
        return all(map(target.concerns, Path(changed).relative_to(target.folder).parts, kinds))

    changes = awatch(
        target.folder,
        *target.others,
        watch_filter=concerns,
        recursive=target.inner,
        step=STEP_MS,
        debounce=DEBOUNCE_MS,
        rust_timeout=int(sweep * 1000),
        yield_on_timeout=True,
    )
    # Runs when this task first waits, which is when the folder is watched: nothing before it is missed.
    asyncio.get_running_loop().call_soon(wake)
    async with aclosing(changes):
        async for _ in changes:
            wake()
            if is_elsewhere():
                break
