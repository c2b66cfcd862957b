"""The folder of one queue in the spool: its files are claimed, read, and removed or rejected.

Any program that can write to the folder may change it at any moment. `spool_files.py` says how the steps guard
against that, and `spool_reader.py` what the folder contains.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from heapq import nsmallest
from typing import Final, NamedTuple, TypeAlias

from ....client.batch_sender import MESSAGE_FAULTS
from ....errors import EoqError, Forbidden, InvalidRequest, MessageTooLarge
from ....message import Outgoing
from ....spool.format import WITH_OPTIONS, decode, is_ready, storage_error
from . import spool_files as files
from .spool_folder import SpoolFolder

log = logging.getLogger("eoq.spool")

CLAIMED: Final = ".taking"
"""The folder of the claimed files."""
REJECTED: Final = ".rejected"
"""The folder of the rejected files."""
BATCH_FILES: Final = 250
"""Files in one batch."""
BATCH_BYTES: Final = 1024 * 1024
"""Bytes of the files in one batch."""
MAX_NAMES: Final = 5000
"""How many names of a folder are kept in memory, however many it has."""
LINK_SECONDS: Final = 1.0
"""How long a file may have a second name. A sender that links it into place then removes the first name."""
TIDY_SECONDS: Final = 3600.0
"""How often to look for unfinished files that senders have left behind."""
RENEW_SECONDS: Final = 3600.0
"""The age at which a token is replaced, if the daemon has certainly not stored its file."""
_FILE_ERRORS: Final = (
    errno.EACCES,
    errno.EPERM,
    errno.EBUSY,
    errno.EXDEV,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ENOTEMPTY,
)
"""Errors of a move that concern this file only."""


WhyNot: TypeAlias = Callable[[int, str], EoqError | None]
"""Returns why the files of a user may not become messages of a queue, or None."""


def allow_all(_user: int, _queue: str) -> EoqError | None:
    """Allow the files of all users."""
    return None


class SpoolFile(NamedTuple):
    """A claimed file, by its name in ``.taking``: its message, or the error that says why it has none."""

    file: str
    message: Outgoing | EoqError


class QueueFolder:
    """The folder of one queue. Only one thread may use it at a time.

    All methods raise `Forbidden`, `StorageFull` or `StorageFailed` if the folder cannot be used. After a `scan`,
    ``complete`` says whether it saw all names, and ``has_new_links`` whether it saw a file that has two names for now.
    """

    def __init__(self, spool: SpoolFolder, queue: str, why_not: WhyNot = allow_all) -> None:
        self.queue = queue
        self.path = spool.path / queue
        self.complete = True
        self.has_new_links = False
        self._spool = spool
        self._why_not = why_not
        self._names: deque[str] = deque()
        self._unsent: set[str] = set()
        """The files in ``.taking`` that the daemon has certainly not stored."""
        self._tried_at: dict[str, float] = {}
        """When a sender has sent the message of a file in ``.taking`` itself, before it left the file."""
        self._stuck: set[str] = set()
        """The names, here and in ``.taking``, that could not be moved since the last sweep."""
        self._logged: set[str] = set()
        self._synced = False
        """Whether the moves to ``.taking`` are on disk."""
        self._is_watched = not any(0xDC80 <= ord(character) <= 0xDCFF for character in queue)
        """Whether the name is valid UTF-8. watchfiles cannot watch a folder with another name."""
        self._is_scanned = False
        self._tidy_at = 0.0

    # ── claiming ────────────────────────────────────────────────────────────────────────────────────────

    def scan(self, sweep: bool) -> bool:
        """Note the names of the files that can be claimed, in order. Return whether there is something to do.

        ``sweep`` includes the files that could not be moved before.
        """
        if self._is_scanned and not self._is_watched and not sweep:
            # Nothing has woken the reader for this folder. To open it would interrupt watchfiles, which would wake the
            # reader again, without end.
            return False
        self._is_scanned = True
        if sweep:
            self._stuck.clear()
        self.has_new_links = False
        with self._storage_errors(), ExitStack() as stack:
            here = self._enter(stack)
            if time.monotonic() >= self._tidy_at:
                self._tidy_at = time.monotonic() + TIDY_SECONDS
                files.remove_abandoned(here)
            with os.scandir(here) as entries:
                names = (entry.name for entry in entries if is_ready(entry.name) and self._can_claim(entry))
                self._names = deque(nsmallest(MAX_NAMES, names))
            self.complete = len(self._names) < MAX_NAMES
            if self._names:
                return True
            try:
                return bool(self._claimed_before(files.enter_folder(stack, CLAIMED, here)))
            except FileNotFoundError:
                return False

    def _can_claim(self, entry: os.DirEntry[str]) -> bool:
        if entry.name in self._stuck:
            return False
        try:
            found = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            return False
        is_new = 0 <= time.time() - found.st_ctime < LINK_SECONDS
        if stat.S_ISREG(found.st_mode) and found.st_nlink > 1 and is_new:
            self.has_new_links = True
            return False
        return True

    def claim(self, resend_within: float) -> list[SpoolFile]:
        """Claim and read the next files, at most a batch. Files that were claimed before come first.

        When it returns, the moves to ``.taking`` are on disk: after a loss of power, no file is back under its former
        name. A file that the daemon may have stored longer than ``resend_within`` seconds ago has an error instead of
        its message.
        """
        with self._storage_errors(), ExitStack() as stack:
            here = self._enter(stack)
            if self._names:
                with suppress(FileExistsError):
                    os.mkdir(CLAIMED, 0o700, dir_fd=here)
            try:
                claimed = files.enter_folder(stack, CLAIMED, here)
            except FileNotFoundError:
                return []
            batch = self._claimed_before(claimed)
            self._renew_tokens(batch, claimed, resend_within)
            batch += self._move(BATCH_FILES - len(batch), here, claimed, after=batch[-1] if batch else "")
            if batch and not self._synced:
                os.fsync(claimed)
                os.fsync(here)
                self._synced = True
            return self._read(batch, claimed, resend_within)

    def _claimed_before(self, claimed: int) -> list[str]:
        """Return the first files that were claimed and not removed since."""
        with os.scandir(claimed) as entries:
            names = (entry.name for entry in entries if files.has_token(entry.name) and entry.name not in self._stuck)
            return nsmallest(BATCH_FILES, names)

    def _renew_tokens(self, batch: list[str], claimed: int, resend_within: float) -> None:
        """Give old files a new token, if nothing was stored under the old one, and those behind them as well."""
        most = min(RENEW_SECONDS, resend_within / 2)
        old = (index for index, file in enumerate(batch) if file in self._unsent and files.age(file) > most)
        first = next(old, len(batch))
        if not self._unsent.issuperset(batch[first:]):
            return
        tokens = files.new_tokens(len(batch) - first)
        # The last one first: if the daemon is killed on the way, they are still in their order.
        for index, token in zip(reversed(range(first, len(batch))), reversed(tokens), strict=True):
            file = batch[index]
            renewed = files.with_token(token, files.name_of(file))
            self._synced = False
            os.rename(file, renewed, src_dir_fd=claimed, dst_dir_fd=claimed)
            self._unsent.discard(file)
            self._unsent.add(renewed)
            self._tried_at.pop(file, None)  # it is read again under its new name
            batch[index] = renewed

    def _move(self, room: int, here: int, claimed: int, *, after: str) -> list[str]:
        """Move the next files to ``.taking``, each under a new token. Return their new names.

        Where the clock was set back, the last file there (``after``) may have a later token. Then nothing is moved
        until it is gone: files are stored in the order of their tokens.
        """
        tokens = files.new_tokens(min(room, len(self._names)))
        if tokens and tokens[0] <= after:
            return []
        moved = []
        for token in tokens:
            name = self._names.popleft()
            file = files.with_token(token, name)
            self._synced = False
            try:
                os.rename(name, file, src_dir_fd=here, dst_dir_fd=claimed)
            except FileNotFoundError:
                continue  # another program has removed it
            except OSError as error:
                if error.errno not in _FILE_ERRORS:
                    raise
                self._leave_alone(name, error)
                continue
            moved.append(file)
        self._unsent.update(moved)
        return moved

    def _leave_alone(self, name: str, error: object) -> None:
        self._stuck.add(name)
        if name not in self._logged and len(self._logged) < MAX_NAMES:
            self._logged.add(name)
            log.error("%s: %r can be neither stored nor moved: %s; remove it", self.path, name, error)

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────

    def _read(self, batch: Sequence[str], claimed: int, resend_within: float) -> list[SpoolFile]:
        found: list[SpoolFile] = []
        size = 0
        for file in batch:
            if found and size > BATCH_BYTES:
                break
            try:
                data, owner = files.read_file(file, claimed)
                if (refusal := self._why_not(owner, self.queue)) is not None:
                    found.append(SpoolFile(file, refusal))
                    continue
                size += len(data)
                message, tried_at = decode(data) if file.endswith(WITH_OPTIONS) else (Outgoing(data), None)
                if tried_at is not None:
                    self._tried_at[file] = tried_at
                self._check_age(file, tried_at, resend_within)
                id = files.token_of(file) if message.id is None else message.id
                found.append(SpoolFile(file, replace(message, queue=self.queue, id=id)))
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                    raise
                found.append(SpoolFile(file, _unreadable(error)))
            except (InvalidRequest, MessageTooLarge) as error:
                found.append(SpoolFile(file, error))
            except MESSAGE_FAULTS as fault:
                # The last catch: whatever one file contains, the daemon and the other files go on.
                found.append(SpoolFile(file, InvalidRequest(f"eoq failed at this file: {fault!r}")))
        return found

    def _check_age(self, file: str, tried_at: float | None, resend_within: float) -> None:
        """Raise `InvalidRequest` if the daemon may have stored a file so long ago that it has forgotten the id."""
        tries = [] if tried_at is None else [tried_at]
        if file not in self._unsent:
            tries.append(files.claimed_at(file))
        if not tries or time.time() - min(tries) <= resend_within:
            return
        tried = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(min(max(min(tries), 0.0), 1e11)))
        raise InvalidRequest(
            f"it was first sent on {tried}, and no answer was received. The daemon may have forgotten its id by now, "
            "so it could be stored twice. Find out whether it arrived. If so, delete it; if not, move it back"
            + (", without `tried_at` in its first line" if tried_at is not None else "")
        )

    # ── the outcome of a send ───────────────────────────────────────────────────────────────────────────

    def note_sent(self, batch: Sequence[str]) -> tuple[set[str], float | None]:
        """Note that the daemon may store these from now on.

        Return those that it had certainly not stored before, and the first try of any of the others (or None).
        """
        unsent = self._unsent.intersection(batch)
        self._unsent.difference_update(batch)
        tries = [self._tried_at[file] for file in batch if file in self._tried_at]
        tries += [files.claimed_at(file) for file in batch if file not in unsent]
        return unsent, min(tries, default=None)

    def note_unsent(self, batch: set[str]) -> None:
        """Note that the daemon has certainly not stored these."""
        self._unsent.update(batch)

    def remove(self, batch: Sequence[str]) -> None:
        """Remove files that are stored. Ignore files that are gone."""
        with self._storage_errors(), ExitStack() as stack:
            claimed = files.enter_folder(stack, CLAIMED, self._enter(stack))
            for file in batch:
                self._tried_at.pop(file, None)
                with suppress(FileNotFoundError):
                    os.unlink(file, dir_fd=claimed)

    def reject(self, file: str, error: EoqError) -> bool:
        """Move a file that cannot be stored to ``.rejected``, with the reason beside it.

        Return False if it cannot be moved. It then stays, and is left out until the next sweep.
        """
        try:
            with ExitStack() as stack:
                here = self._enter(stack)
                claimed = files.enter_folder(stack, CLAIMED, here)
                with suppress(FileExistsError):
                    os.mkdir(REJECTED, 0o700, dir_fd=here)
                files.move_to_rejected(file, error, claimed, files.enter_folder(stack, REJECTED, here))
        except OSError as failure:
            self._leave_alone(file, f"{error}; {failure}")
            return False
        self._unsent.discard(file)
        self._tried_at.pop(file, None)
        log.error("%s: %r is rejected: %s", self.path, files.name_of(file), error)
        return True

    def _enter(self, stack: ExitStack) -> int:
        return files.enter_folder(stack, self.queue, self._spool.descriptor)

    @contextmanager
    def _storage_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise storage_error(error, self.path) from error


def _unreadable(error: OSError) -> Forbidden:
    return Forbidden(f"the file cannot be read: {error.strerror}; let the daemon's user read it, and move it back")
