"""Wake a task when a file, a database or the contents of a folder change.

watchfiles tells what has changed. This module decides which folders it watches and which changes count:

- Only folders are watched, never a file. Closing a descriptor of a database would drop every lock that SQLite holds on
  it in this process, and a file may be replaced by another one. Where symbolic links lead to the file, the folder of
  each link is watched as well.
- A wake-up is a hint. It may come without a reason, and it may be lost. So each watch also wakes its task every
  ``sweep`` seconds, and checks then whether its folders are still the same.
- All watches of an event loop share one watcher, hence one thread, since each watcher costs processor time while
  nothing happens: watchfiles looks into its own list of changes at each step.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import weakref
from collections.abc import Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from watchfiles import Change

log = logging.getLogger("eoq.watch")

STEP_MS: Final = 7
"""A change wakes after one to two steps. Each step costs processor time even if nothing has changed."""
SLOW_STEP_MS: Final = 100
"""The step while only files are watched whose changes are not urgent."""
RETRY_SECONDS: Final = 5.0
"""The pause before a folder that cannot be watched is tried again."""
INTERRUPTED_SECONDS: Final = 0.1
"""The pause before watchfiles is started again after it has failed while it watched."""
MAX_LINKS: Final = 40
"""How many symbolic links are followed to one file; the kernel has the same limit."""


async def watch_database(path: Path, wake: Callable[[], object], sweep: float) -> None:
    """Call ``wake`` after each write to the SQLite database at ``path``, and every ``sweep`` seconds. Never returns.

    It also wakes when it begins to watch, and thus after any time in which it could not. It follows symbolic links,
    and finds the folder again if the folder is replaced, or removed and created again.
    """
    await _watch(path.parent, partial(_find_file, path, ("", "-wal", "-journal")), wake, sweep, STEP_MS)


async def watch_file(path: Path, wake: Callable[[], object], sweep: float) -> None:
    """Do as `watch_database` for another file, which may appear later, be replaced, or go. Wakes within about 0.2 s."""
    await _watch(path.parent, partial(_find_file, path, ("",)), wake, sweep, SLOW_STEP_MS)


async def watch_subfolders(
    folder: Path,
    wake: Callable[[], object],
    sweep: float,
    *,
    is_folder: Callable[[str], bool],
    is_file: Callable[[str], bool],
    is_urgent: bool = True,
) -> None:
    """Do as `watch_database` for files that appear in the folders inside ``folder``, which may be made at any time.

    Where it is not urgent, it wakes within about 0.2 s, which costs less while nothing happens. Only folders whose name
    passes ``is_folder`` are watched, and only files whose name passes ``is_file`` wake. Symbolic links to folders are
    not followed.
    """
    step = STEP_MS if is_urgent else SLOW_STEP_MS
    await _watch(folder, partial(_find_subfolders, folder, is_folder, is_file), wake, sweep, step)


# ── what is watched ─────────────────────────────────────────────────────────────────────────────────────────

Identity: TypeAlias = tuple[int, int]
"""The device and inode of a folder. The same path may lead to another folder later."""


@dataclass(frozen=True, slots=True)
class _Target:
    """The folders to watch, by their paths, and which changes in them count."""

    folders: dict[str, Identity]
    names: frozenset[str]
    """The names of files that count."""

    def counts(self, _deleted: bool, _folder: str, name: str) -> bool:
        return name in self.names


@dataclass(frozen=True, slots=True)
class _TreeTarget:
    """A folder and those in it, for files that appear in the inner ones."""

    folders: dict[str, Identity]
    top: str
    is_folder: Callable[[str], bool]
    is_file: Callable[[str], bool]

    def counts(self, deleted: bool, folder: str, name: str) -> bool:
        # A removed file does not count: the task that is woken moves files away itself.
        return not deleted and (self.is_folder(name) if folder == self.top else self.is_file(name))


AnyTarget: TypeAlias = _Target | _TreeTarget


def _find_file(path: Path, suffixes: tuple[str, ...]) -> _Target:
    real = path.resolve()
    links = _links(path)
    folders = {str(real.parent): _identify(real.parent)}
    for link in links:
        with suppress(OSError):
            folders[str(link.parent)] = _identify(link.parent)
    return _Target(folders, frozenset({real.name + suffix for suffix in suffixes} | {link.name for link in links}))


def _find_subfolders(folder: Path, is_folder: Callable[[str], bool], is_file: Callable[[str], bool]) -> _TreeTarget:
    top = str(folder.resolve())
    folders = {top: _identify(top)}
    with os.scandir(top) as entries:
        for entry in entries:
            if is_folder(entry.name) and entry.is_dir(follow_symlinks=False):
                with suppress(OSError):
                    folders[entry.path] = _identify(entry.path)
    return _TreeTarget(folders, top, is_folder, is_file)


def _identify(folder: str | Path) -> Identity:
    """Return the identity of a folder. Raises `OSError` if it cannot be watched: the watcher would fail for all."""
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise OSError(errno.EILSEQ, "watchfiles needs a path that is valid UTF-8", str(folder)) from error
    found = os.lstat(folder)
    if not os.access(folder, os.R_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    return found.st_dev, found.st_ino


def _links(path: Path) -> list[Path]:
    """Return the symbolic links on the way to ``path``. If one of them is replaced, ``path`` is another file."""
    links: list[Path] = []
    folder, ahead = Path("/"), list(path.absolute().parts[1:])
    while ahead and len(links) < MAX_LINKS:
        here = folder / ahead.pop(0)
        if here.is_symlink():
            links.append(here)
            target = here.readlink()
            ahead[:0] = target.parts[1:] if target.is_absolute() else target.parts
            folder = Path("/") if target.is_absolute() else folder
        else:
            folder = here.parent.parent if here.name == ".." else here
    return links


class _Interrupted(Exception):
    """A failure of watchfiles while it watched. Wake-ups may be lost."""


# ── one watch ───────────────────────────────────────────────────────────────────────────────────────────────


async def _watch(
    folder: Path, find_target: Callable[[], AnyTarget], wake: Callable[[], object], sweep: float, step: int
) -> None:
    logged = ""
    while True:
        try:
            await _watch_target(find_target, wake, sweep, step)
            logged = ""
        except _Interrupted:
            wake()
            await asyncio.sleep(INTERRUPTED_SECONDS)
        except (OSError, RuntimeError) as error:
            # RuntimeError: watchfiles raises it for some failures of the system, such as a limit on watches.
            if str(error) != logged:
                logged = str(error)
                log.warning("%s cannot be watched: %s; trying again every %g s", folder, error, RETRY_SECONDS)
            wake()
            await asyncio.sleep(RETRY_SECONDS)


async def _watch_target(
    find_target: Callable[[], AnyTarget], wake: Callable[[], object], sweep: float, step: int
) -> None:
    """Watch until a folder was removed or replaced. Raises `OSError` or `RuntimeError` if one cannot be watched."""
    watch = _Watch(find_target(), step)
    watcher = _watcher_of_this_loop()
    watcher.add(watch)
    try:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(sweep):
                    await watch.changed.wait()  # it is set the first time when the folders are watched
            watch.changed.clear()
            if watch.error is not None:
                raise watch.error
            is_lost = watch.is_lost or find_target() != watch.target
            wake()
            if is_lost:
                return
    finally:
        watcher.remove(watch)


@dataclass(slots=True, eq=False)
class _Watch:
    target: AnyTarget
    step: int
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    is_lost: bool = False
    """Whether one of its folders was removed or replaced. The new folder may even have the same identity."""
    error: Exception | None = None

    def take_note(self, change: Change, path: str) -> None:
        """Set ``changed`` if a change counts."""
        folder, name = os.path.split(path)
        if path in self.target.folders:
            self.is_lost = self.is_lost or change.name != "modified"
            self.changed.set()
        elif folder in self.target.folders and self.target.counts(change.name == "deleted", folder, name):
            self.changed.set()


# ── the watcher that they share ─────────────────────────────────────────────────────────────────────────────


class _Watcher:
    """One run of watchfiles over the folders of all watches of an event loop. It starts anew when they change."""

    def __init__(self) -> None:
        self._watches: set[_Watch] = set()
        self._task: asyncio.Task[None] | None = None

    def add(self, watch: _Watch) -> None:
        """Begin to watch. Sets ``watch.changed`` when that is done, after changes that count, and after an error."""
        self._watches.add(watch)
        self._restart()

    def remove(self, watch: _Watch) -> None:
        """Watch no longer."""
        self._watches.discard(watch)
        self._restart()

    def _restart(self) -> None:
        if self._task is not None:
            # watchfiles' thread sees within one step that it is cancelled. Nothing waits for it.
            self._task.cancel()
        self._task = asyncio.get_running_loop().create_task(self._run()) if self._watches else None

    async def _run(self) -> None:
        from watchfiles import awatch

        watches = list(self._watches)
        changes = awatch(
            *{folder for watch in watches for folder in watch.target.folders},
            watch_filter=None,
            recursive=False,
            step=min(watch.step for watch in watches),
            debounce=1,
            rust_timeout=0,  # without end: each watch has a sweep of its own
        )
        has_begun = False

        def begin() -> None:
            nonlocal has_begun
            has_begun = True
            for watch in watches:
                watch.changed.set()

        # It is called when this task first waits. By then the folders are watched, and no change is missed.
        asyncio.get_running_loop().call_soon(begin)
        try:
            async with aclosing(changes):
                async for batch in changes:
                    for watch, (change, path) in product(watches, batch):
                        watch.take_note(change, path)
        except* (OSError, RuntimeError) as group:  # those raised while it watches come in a group
            # It fails at each event of a file whose name is not valid UTF-8. Then it can go on at once.
            error = _Interrupted() if has_begun else group.exceptions[0]
            for watch in watches:
                watch.error = error
                watch.changed.set()


_watchers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Watcher] = weakref.WeakKeyDictionary()


def _watcher_of_this_loop() -> _Watcher:
    loop = asyncio.get_running_loop()
    watcher = _watchers.get(loop)
    if watcher is None:
        watcher = _watchers[loop] = _Watcher()
    return watcher
