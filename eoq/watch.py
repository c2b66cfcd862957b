"""Being woken by writes to a file, whoever writes: a SQLite database, or a file that is read again.

What is watched is the file's folder, never the file: closing a descriptor of a database drops all locks that SQLite
has on it in this process, and a file may be replaced by another. Where symbolic links lead to the file, the folder of
each of them is watched too. A wake-up is a hint: it may come for nothing, and it may be lost.

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
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Final

log = logging.getLogger("eoq.watch")

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
_ATTRIB, _MODIFY, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x4, 0x2, 0x40, 0x80, 0x100, 0x200
_DELETE_SELF, _MOVE_SELF, _OVERFLOW, _IGNORED = 0x400, 0x800, 0x4000, 0x8000
_OF_FILES: Final = _ATTRIB | _MODIFY | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE
_OF_FOLDER: Final = _DELETE_SELF | _MOVE_SELF
_EVENT: Final = struct.Struct("iIII")


async def watch_database(path: Path, wake: Callable[[], object], sweep: float) -> None:
    """Calls ``wake`` after writes to the database at ``path``, and every ``sweep`` seconds; without end.

    Also when it begins to watch, and so after any time that it could not. Follows symbolic links, and a folder that
    is replaced or comes back.
    """
    await _watch(path, ("", "-wal", "-journal"), wake, sweep)


async def watch_file(path: Path, wake: Callable[[], object], sweep: float) -> None:
    """As `watch_database`, for a file of any other kind, which may also come later, be replaced, or go."""
    await _watch(path, ("",), wake, sweep)


async def _watch(path: Path, suffixes: tuple[str, ...], wake: Callable[[], object], sweep: float) -> None:
    watch = _watch_by_inotify if sys.platform == "linux" else _watch_by_watchfiles
    said = ""
    while True:
        try:
            real = path.resolve()
            folder = real.parent.stat()
            links = _links(path)

            def is_elsewhere(real: Path = real, folder: os.stat_result = folder, links: list[Path] = links) -> bool:
                now = path.resolve()
                return now != real or _links(path) != links or not os.path.samestat(now.parent.stat(), folder)

            names = {real.name + suffix for suffix in suffixes} | {link.name for link in links}
            folders = [real.parent, *(link.parent for link in links if os.access(link.parent, os.R_OK))]
            await watch(list(dict.fromkeys(folders)), names, wake, sweep, is_elsewhere)
            said = ""
        except (OSError, RuntimeError) as error:
            # RuntimeError: watchfiles has no other name for some failures, such as a limit on watches.
            if str(error) != said:
                said = str(error)
                log.warning("%s cannot be watched: %s; looking every %g s", path.parent, error, RETRY_SECONDS)
            wake()
            await asyncio.sleep(RETRY_SECONDS)


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


async def _watch_by_inotify(
    folders: list[Path], names: set[str], wake: Callable[[], object], sweep: float, is_elsewhere: Callable[[], bool]
) -> None:
    changed = asyncio.Event()
    with _inotify(folders) as descriptor:
        loop = asyncio.get_running_loop()
        loop.add_reader(descriptor, lambda: changed.set() if _concerns(names, descriptor) else None)
        try:
            wake()
            while not is_elsewhere():
                try:
                    async with asyncio.timeout(sweep):
                        await changed.wait()
                except TimeoutError:
                    pass
                changed.clear()
                wake()
                await asyncio.sleep(QUIET_SECONDS)
        finally:
            loop.remove_reader(descriptor)


@contextmanager
def _inotify(folders: list[Path]) -> Iterator[int]:
    """A descriptor that can be read when something in one of ``folders`` has changed."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), f"inotify: {os.strerror(ctypes.get_errno())}")
    try:
        for folder in folders:
            if libc.inotify_add_watch(descriptor, os.fsencode(folder), _OF_FILES | _OF_FOLDER) < 0:
                raise OSError(ctypes.get_errno(), f"inotify: {os.strerror(ctypes.get_errno())}")
        yield descriptor
    finally:
        os.close(descriptor)


def _concerns(names: set[str], descriptor: int) -> bool:
    """Reads what there is; whether it is about one of ``names``, about a folder itself, or unknown."""
    try:
        events = os.read(descriptor, 65536)
    except BlockingIOError:
        return False
    concerns = False
    while events:
        _, mask, _, length = _EVENT.unpack_from(events)
        name = os.fsdecode(events[_EVENT.size : _EVENT.size + length].rstrip(b"\0"))
        concerns = concerns or name in names or bool(mask & (_OF_FOLDER | _OVERFLOW | _IGNORED))
        events = events[_EVENT.size + length :]
    return concerns


async def _watch_by_watchfiles(
    folders: list[Path], names: set[str], wake: Callable[[], object], sweep: float, is_elsewhere: Callable[[], bool]
) -> None:
    from watchfiles import awatch

    changes = awatch(
        *folders,
        watch_filter=lambda _change, changed: Path(changed).name in names,
        recursive=False,
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
