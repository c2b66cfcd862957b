"""The daemon's hands in the spool: takes files, reads, removes and rejects them. What may lie there: ``spool.py``.

Anybody who can write to the folder may have put anything there, at any moment. So every step is relative to an open
descriptor of a folder, and follows no link; what is read stands in a folder of our own by then.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from heapq import nsmallest
from pathlib import Path
from typing import Any, Final, NamedTuple

from ...errors import EoqError, Forbidden, InvalidRequest, MessageTooLarge
from ...ids import new_id
from ...message import Outgoing
from ...protocol.limits import MAX_BODY
from ...spool.format import MAX_OPTIONS, WITH_OPTIONS, check_size, decode, is_ready, is_visible, open_folder, trouble
from ..locks import Lock, cannot_use

log = logging.getLogger("eoq.spool.sender")

LOCK: Final = ".daemon.lock"
TAKING: Final = ".taking"
REJECTED: Final = ".rejected"
REASON: Final = ".reason"
BATCH_FILES: Final = 250
BATCH_BYTES: Final = 1024 * 1024
LISTED: Final = 5000
"""Names of a folder that are kept at once, however many there are."""
LINK_SECONDS: Final = 1.0
"""How long a file may have a second name: as long as it takes to link it into place and remove the first."""
RENEW_SECONDS: Final = 3600.0
"""Age of a token after which a file that was surely not stored under it gets a new one."""
MAX_NAME: Final = 255
"""Bytes of a file's name."""
TOKEN_LENGTH: Final = 36

_TOKEN: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\..", re.DOTALL)
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OF_THE_FILE: Final = (
    errno.EACCES,
    errno.EPERM,
    errno.EBUSY,
    errno.EXDEV,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ENOTEMPTY,
)
"""Why one name cannot be moved, though others can."""
_KINDS: Final = {
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class Taken(NamedTuple):
    """A file that is ours, by its name in ``.taking``: what is to be stored, or why it cannot be."""

    file: str
    message: Outgoing | EoqError


class SpoolFolder:
    """The folder itself, under a lock, so that no other daemon takes from it. Made if it is not there."""

    def __init__(self, path: Path, holder: dict[str, Any]) -> None:
        """Raises `Locked` or `Forbidden`."""
        self.path = path
        self._holder = holder
        self._stack = ExitStack()
        self._said: set[str] = set()
        try:
            path.mkdir(0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_use(path, error) from error
        self._open()

    def _open(self) -> None:
        with ExitStack() as stack:
            try:
                descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError as error:
                raise cannot_use(self.path, error) from error
            stack.callback(os.close, descriptor)
            stack.callback(Lock(self.path, self._holder, self.path / LOCK).release)
            self.descriptor, self._stack = descriptor, stack.pop_all()

    def close(self) -> None:
        """Gives the lock back."""
        self._stack.close()

    def queues(self) -> list[str]:
        """The folders in it. Raises what is wrong with it; one that was replaced is opened anew."""
        try:
            if not os.path.samestat(self.path.stat(), os.fstat(self.descriptor)):
                old = self._stack
                self._open()
                old.close()
            with os.scandir(self.descriptor) as entries:
                return sorted(entry.name for entry in entries if is_visible(entry.name) and self._is_folder(entry))
        except OSError as error:
            raise trouble(error, self.path) from error

    def _is_folder(self, entry: os.DirEntry[str]) -> bool:
        if entry.is_dir(follow_symlinks=False):
            return True
        if entry.name not in self._said and len(self._said) < LISTED:
            self._said.add(entry.name)
            log.warning(
                "%s: %r is left alone: what stands here must be a folder named for a queue", self.path, entry.name
            )
        return False


class QueueFolder:
    """The folder of one queue. Not for two threads at once.

    All methods raise `Forbidden`, `StorageFull` or `StorageFailed`.
    """

    def __init__(self, spool: SpoolFolder, queue: str) -> None:
        self.queue = queue
        self.path = spool.path / queue
        self.complete = True
        """Whether the last `look` has seen all there is."""
        self.settling = False
        """Whether it saw a file that has two names for the moment."""
        self._spool = spool
        self._names: deque[str] = deque()
        self._unsent: set[str] = set()
        """Those of ``.taking`` that have surely not been stored."""
        self._stuck: set[str] = set()
        """Names that could not be moved, there and here, until the next sweep."""
        self._told: set[str] = set()
        self._synced = False
        """Whether what stands in ``.taking`` is there after a loss of power as well, and nowhere else."""

    def look(self, anew: bool) -> bool:
        """Whether there is something to take; notes it, in the order of the names.

        ``anew`` tries again what could not be moved.
        """
        if anew:
            self._stuck.clear()
        self.settling = False
        with self._trouble(), ExitStack() as stack:
            here = self._enter(stack)
            with os.scandir(here) as entries:
                names = (one.name for one in entries if is_ready(one.name) and self._may_take(one))
                self._names = deque(nsmallest(LISTED, names))
            self.complete = len(self._names) < LISTED
            if self._names:
                return True
            try:
                return bool(self._left(_enter_folder(stack, TAKING, here)))
            except FileNotFoundError:
                return False

    def _may_take(self, entry: os.DirEntry[str]) -> bool:
        if entry.name in self._stuck:
            return False
        try:
            found = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            return False
        young = 0 <= time.time() - found.st_ctime < LINK_SECONDS
        if stat.S_ISREG(found.st_mode) and found.st_nlink > 1 and young:
            self.settling = True
            return False
        return True

    def take(self, resend_within: float) -> list[Taken]:
        """The next files, those first that were taken before: at most a batch, none if there is none.

        When it returns, they are ours also after a loss of power: none comes back under its old name. One that may
        have been stored longer than ``resend_within`` seconds ago has an error instead of its message.
        """
        with self._trouble(), ExitStack() as stack:
            here = self._enter(stack)
            if self._names:
                with suppress(FileExistsError):
                    os.mkdir(TAKING, 0o700, dir_fd=here)
            try:
                taking = _enter_folder(stack, TAKING, here)
            except FileNotFoundError:
                return []
            files = self._left(taking)
            self._renew(files, taking, resend_within)
            files += self._move(BATCH_FILES - len(files), here, taking)
            if files and not self._synced:
                os.fsync(taking)
                os.fsync(here)
                self._synced = True
            return self._read(files, taking, resend_within)

    def _left(self, taking: int) -> list[str]:
        """The first that were taken and not removed."""
        with os.scandir(taking) as entries:
            names = (one.name for one in entries if _TOKEN.match(one.name) and one.name not in self._stuck)
            return nsmallest(BATCH_FILES, names)

    def _renew(self, files: list[str], taking: int, resend_within: float) -> None:
        """Gives those a new token that are old, though nothing has been stored under it."""
        age = min(RENEW_SECONDS, resend_within / 2)
        old = [index for index, file in enumerate(files) if file in self._unsent and _age(file) > age]
        for index, token in zip(old, _tokens(len(old)), strict=True):
            file, new = files[index], f"{token}{files[index][TOKEN_LENGTH:]}"
            self._synced = False
            os.rename(file, new, src_dir_fd=taking, dst_dir_fd=taking)
            self._unsent.discard(file)
            self._unsent.add(new)
            files[index] = new

    def _move(self, room: int, here: int, taking: int) -> list[str]:
        names = [self._names.popleft() for _ in range(min(room, len(self._names)))]
        files = []
        for token, name in zip(_tokens(len(names)), names, strict=True):
            file = f"{token}.{_shortened(name, MAX_NAME - TOKEN_LENGTH - 1)}"
            self._synced = False
            try:
                os.rename(name, file, src_dir_fd=here, dst_dir_fd=taking)
            except FileNotFoundError:
                continue  # somebody has taken it back
            except OSError as error:
                if error.errno not in _OF_THE_FILE:
                    raise
                self._leave(name, error)
                continue
            files.append(file)
        self._unsent.update(files)
        return files

    def _leave(self, name: str, error: object) -> None:
        self._stuck.add(name)
        if name not in self._told and len(self._told) < LISTED:
            self._told.add(name)
            log.error("%s: %r can be neither taken nor moved away: %s; remove it", self.path, name, error)

    def _read(self, files: Sequence[str], taking: int, resend_within: float) -> list[Taken]:
        taken: list[Taken] = []
        size = 0
        for file in files:
            if taken and size > BATCH_BYTES:
                break
            try:
                data = _read_file(file, taking)
                size += len(data)
                message, tried_at = decode(data) if file.endswith(WITH_OPTIONS) else (Outgoing(data), None)
                self._doubt(file, tried_at, resend_within)
                message = replace(
                    message, queue=self.queue, id=file[:TOKEN_LENGTH] if message.id is None else message.id
                )
                taken.append(Taken(file, message))
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                    raise
                taken.append(Taken(file, Forbidden(f"the file cannot be read: {error.strerror}")))
            except (InvalidRequest, MessageTooLarge) as error:
                taken.append(Taken(file, error))
        return taken

    def _doubt(self, file: str, tried_at: float | None, resend_within: float) -> None:
        tries = [] if tried_at is None else [tried_at]
        if file not in self._unsent:
            tries.append(_taken_at(file))
        if not tries or time.time() - min(tries) <= resend_within:
            return
        tried = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(min(max(min(tries), 0.0), 1e11)))
        raise InvalidRequest(
            f"it was first sent on {tried}, and no answer was seen; by now the daemon may have forgotten its id, so "
            "that it would be stored twice. Find out whether it arrived: then delete it; otherwise move it back"
            + (", without `tried_at` in its first line" if tried_at is not None else "")
        )

    def sending(self, files: Sequence[str]) -> Callable[[], None]:
        """From now on these may have been stored. What it returns takes that back: they surely have not."""
        surely = self._unsent.intersection(files)
        self._unsent.difference_update(files)
        return lambda: self._unsent.update(surely)

    def remove(self, files: Sequence[str]) -> None:
        """Removes what is stored. Without effect for what is gone."""
        with self._trouble(), ExitStack() as stack:
            taking = _enter_folder(stack, TAKING, self._enter(stack))
            for file in files:
                with suppress(FileNotFoundError):
                    os.unlink(file, dir_fd=taking)

    def reject(self, file: str, error: EoqError) -> bool:
        """Moves what cannot be stored to ``.rejected``, with its reason beside it. Nothing there is overwritten.

        Returns False where that is not possible either; it then stays, and is left out until the next sweep.
        """
        reason = f"{error.code}: {error}\n".encode(errors="backslashreplace")
        try:
            with ExitStack() as stack:
                here = self._enter(stack)
                taking = _enter_folder(stack, TAKING, here)
                with suppress(FileExistsError):
                    os.mkdir(REJECTED, 0o700, dir_fd=here)
                rejected = _enter_folder(stack, REJECTED, here)
                name = _free_name(file, rejected)
                # The reason first: what is rejected never stands there without it.
                _write_reason(name + REASON, reason, rejected)
                os.rename(file, name, src_dir_fd=taking, dst_dir_fd=rejected)
                os.fsync(rejected)
                os.fsync(taking)
        except OSError as failure:
            self._leave(file, f"{error}; {failure}")
            return False
        self._unsent.discard(file)
        log.error("%s: %r is rejected: %s", self.path, file[TOKEN_LENGTH + 1 :], error)
        return True

    def _enter(self, stack: ExitStack) -> int:
        return _enter_folder(stack, self.queue, self._spool.descriptor)

    @contextmanager
    def _trouble(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise trouble(error, self.path) from error


def _enter_folder(stack: ExitStack, name: str, parent: int) -> int:
    descriptor = open_folder(name, parent)
    stack.callback(os.close, descriptor)
    return descriptor


def _tokens(count: int) -> list[str]:
    """So many, in their order; new ids of one millisecond are in none."""
    return sorted(new_id() for _ in range(count))


def _taken_at(file: str) -> float:
    """When a file was taken: the time in its token, a UUIDv7."""
    return int(file[:8] + file[9:13], 16) / 1000


def _age(file: str) -> float:
    return time.time() - _taken_at(file)


def _shortened(name: str, most: int) -> str:
    """The end of a name, which says what it is."""
    while len(os.fsencode(name)) > most:
        name = name[1:]
    return name


def _read_file(file: str, taking: int) -> bytes:
    """A file's content; raises what is wrong with it, before more is read than a message may have."""
    # Looked at first: to open a device may do something already.
    _refuse_others(os.stat(file, dir_fd=taking, follow_symlinks=False))
    descriptor = os.open(file, _READ, dir_fd=taking)
    with os.fdopen(descriptor, "rb", buffering=0) as content:
        found = os.fstat(descriptor)
        _refuse_others(found)
        most = MAX_BODY + (MAX_OPTIONS + 1 if file.endswith(WITH_OPTIONS) else 0)
        check_size(found.st_size if found.st_size > most else 0)
        data = bytearray()
        while piece := content.read(most + 1 - len(data)):
            data += piece
    check_size(len(data) if len(data) > most else 0)
    return bytes(data)


def _refuse_others(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise InvalidRequest(f"it is {kind}, and a message is a regular file")
    if found.st_nlink > 1:
        raise InvalidRequest("the file has another name as well (a hard link); copy it instead")


def _free_name(file: str, rejected: int) -> str:
    """The old name of a file, or where that is taken in ``.rejected``, one with its token."""
    token, name = file[:TOKEN_LENGTH], _shortened(file[TOKEN_LENGTH + 1 :], MAX_NAME - TOKEN_LENGTH - 1 - len(REASON))
    for wanted in (name, name + REASON):
        with suppress(FileNotFoundError):
            os.stat(wanted, dir_fd=rejected, follow_symlinks=False)
            return f"{token}.{name}"
    return name


def _write_reason(name: str, reason: bytes, rejected: int) -> None:
    # What is there under this name is our own, from before we were killed.
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=rejected)
    with os.fdopen(os.open(name, _NEW, 0o600, dir_fd=rejected), "wb") as file:
        file.write(reason)
