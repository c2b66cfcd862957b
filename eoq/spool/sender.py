"""The sender's end of the spool: a message written as a file, which a daemon stores when it runs.

``daemon/services/spool/spool_reader.py`` specifies what a spool contains. A message with options is a file whose name
ends in ``.eoq``: its first line is a JSON object of options, and its body is what follows. So options and body become
visible together, with one rename.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from sys import modules
from typing import Final, Unpack

from ..client.blocking import Client
from ..errors import Forbidden, InvalidRequest, StorageFailed, StorageFull, Unavailable
from ..ids import new_id
from ..message import Outgoing, SendOptions, Sent, complete_headers, encode_payload
from ..protocol.limits import MAX_HEADERS
from ..protocol.validation import check_options, check_queue, headers_too_large
from ..spans import API, with_context
from ..system.bell import ring
from .format import FOLDER, UNFINISHED, WITH_OPTIONS, check_size, encode, open_folder, storage_error

SPOOLED_TOGETHER: Final = 100
"""How many messages of a stream the daemon sees at once."""
NAMED: Final = 3
"""How many ids an error names at most."""
SET_BACK: Final = 0.5
"""Seconds. If two clocks drift apart by less than this between two sends, the wall clock was not set back."""
_NUMBER: Final = re.compile(r"([01]\d{19})-")
"""How the name of a file begins that a sender has left."""
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Spooled:
    """A message that was written to the spool, and is on disk, because the daemon could not be reached."""

    id: str


class Spool:
    """The spool in ``folder``, for senders. It needs no daemon to run.

    The first send creates the folder, and the first send to a queue creates the queue's folder in it.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).absolute()
        self._order: dict[str, _Order] = {}

    def send(self, queue: str, body: object, **options: Unpack[SendOptions]) -> str:
        """Write a message to the spool. When this returns, it is on disk, and it will be stored once.

        Return its id. The arguments are those of `Client.send`. ``delay`` and ``ttl`` count from now, not from when a
        daemon stores the message.

        Raises `InvalidRequest` or `MessageTooLarge` for what a daemon would refuse. Raises `Forbidden`, `StorageFull`
        or `StorageFailed` if the spool cannot be written. After an error, nothing was written, unless it says that this
        is unknown: repeat the call with the id that it names.
        """
        return self.send_many(queue, [Outgoing(body, **options)])[0]

    def send_many(self, queue: str, messages: Iterable[object], *, tried_at: float | None = None) -> list[str]:
        """Write many messages, in their order: `Outgoing` values, or bodies as for `send`. Return their ids.

        All are checked and on disk before a daemon can store the first. If the disk fails after that, some of them may
        be stored: repeat the call with the same ids. ``tried_at`` is when they were sent to a daemon that did not
        answer, in seconds since the epoch (see `send_or_spool`).
        """
        check_queue(queue)
        prepared = [_prepare(queue, message) for message in messages]
        contents = [encode(message, tried_at) for message in prepared]
        try:
            self._write(queue, contents, [str(message.id) for message in prepared])
        except OSError as error:
            raise storage_error(error, self.folder / queue) from error
        return [str(message.id) for message in prepared]

    def _write(self, queue: str, contents: Sequence[bytes], ids: Sequence[str]) -> None:
        with ExitStack() as stack:
            spool = self._open(stack)
            folder = _open_or_make(queue, spool)
            stack.callback(os.close, folder)
            order = self._order.setdefault(queue, _Order())
            begin = f"{order.next(folder):020d}-{os.urandom(4).hex()}"
            files = {f"{begin}-{index:06d}{WITH_OPTIONS}": content for index, content in enumerate(contents)}
            mode = os.fstat(folder).st_mode & 0o444 | 0o600
            unfinished = {name: f".{name}{UNFINISHED}" for name in files}
            try:
                for name, data in files.items():
                    _write_file(unfinished[name], data, mode, folder)
                with _unknown_after_failure(self.folder / queue, ids):
                    for name in files:
                        os.rename(unfinished[name], name, src_dir_fd=folder, dst_dir_fd=folder)
                    os.fsync(folder)
                    os.fsync(spool)  # another sender may have created the folder just now
            except BaseException:
                for name in unfinished.values():
                    with suppress(OSError):
                        os.unlink(name, dir_fd=folder)
                raise
            ring(spool)

    def _open(self, stack: ExitStack) -> int:
        try:
            self.folder.mkdir(0o700)
        except FileExistsError:
            pass
        else:
            parent = os.open(self.folder.absolute().parent, FOLDER)
            stack.callback(os.close, parent)
            os.fsync(parent)
        spool = os.open(self.folder, FOLDER)
        stack.callback(os.close, spool)
        return spool


@contextmanager
def _unknown_after_failure(folder: Path, ids: Sequence[str]) -> Iterator[None]:
    """Raise `StorageFailed` where messages may be stored although the disk has failed, and name their ids."""
    try:
        yield
    except OSError as error:
        named = ", ".join(ids[:NAMED]) + (f" and {len(ids) - NAMED:,} more" if len(ids) > NAMED else "")
        raise StorageFailed(
            f"{str(folder)!r} could not be written to the disk ({error.strerror}), so it is unknown whether this is "
            f"stored: repeat it with the same id ({named})"
        ) from error


class _Order:
    """The numbers with which the names of one queue's files begin: the daemon stores files in the order of names.

    A number is the time in nanoseconds. Where the clock may have been set back, it is above those of all files that
    wait, whichever process has written them.
    """

    def __init__(self) -> None:
        self._last = 0
        self._ahead = float("inf")
        """How far the wall clock was ahead of the clock that is never set."""

    def next(self, folder: int) -> int:
        """Return the number of the next file. ``folder`` is the descriptor of the queue's folder."""
        now, ahead = time.time_ns(), time.time() - time.monotonic()
        number = now
        if now <= self._last or ahead < self._ahead - SET_BACK:
            found = (match for match in map(_NUMBER.match, os.listdir(folder)) if match is not None)
            number = max(now, *(int(match[1]) + 1 for match in found), 0)
        if number == now:
            self._ahead = ahead
        self._last = number
        return number


def send_or_spool(client: Client, spool: Spool, queue: str, messages: Iterable[object]) -> Iterator[Sent | Spooled]:
    """Do as `Client.send_stream`. If the daemon cannot be reached, write the remaining messages to the spool.

    Each message gets its id before the first try and keeps it in the spool. So a message whose confirmation was lost is
    not stored twice. The daemon remembers ids for a limited time only: a file whose message may have arrived also says
    when it was sent, and a daemon that finds it after its retention rejects it. Raises what `Client.send_stream` and
    `Spool.send` raise, except `Unavailable`.
    """
    source = iter(messages)
    in_flight: deque[tuple[float, Outgoing]] = deque()

    def with_ids() -> Iterator[Outgoing]:
        for item in source:
            message = item if isinstance(item, Outgoing) else Outgoing(item)
            message = replace(message, id=new_id() if message.id is None else message.id)
            in_flight.append((time.time(), message))
            yield message

    try:
        for sent in client.send_stream(queue, with_ids()):
            in_flight.popleft()
            yield sent
        return
    except Unavailable as error:
        unavailable = error
        tried_at = in_flight[0][0] if client.reached and in_flight else None
    batch: list[object] = [message for _, message in in_flight]
    while batch:
        try:
            ids = spool.send_many(queue, batch, tried_at=tried_at)
        except (Forbidden, StorageFull, StorageFailed) as error:
            raise type(error)(f"{unavailable}. The spool cannot be written either: {error}") from error
        for id in ids:
            yield Spooled(id)
        batch, tried_at = list(islice(source, SPOOLED_TOGETHER)), None


# ── one file ────────────────────────────────────────────────────────────────────────────────────────────────


def _prepare(queue: str, item: object) -> Outgoing:
    """Return a message as it is written: its body as bytes, with an id, and its delay as a time.

    Raises `InvalidRequest` or `MessageTooLarge`.
    """
    message = item if isinstance(item, Outgoing) else Outgoing(item)
    if message.queue not in (None, queue):
        raise InvalidRequest(f"a message for {message.queue!r} among those for {queue!r}: send it to its own queue")
    check_options(message)
    body, is_json = encode_payload(message.body)
    check_size(len(body))
    headers = complete_headers(message, is_json)
    if API in modules:
        headers = with_context(headers)
    size = len(json.dumps(headers, ensure_ascii=False, separators=(",", ":")))
    if size > MAX_HEADERS:
        raise headers_too_large(size)
    return replace(
        message,
        body=body,
        id=new_id() if message.id is None else message.id,
        headers=headers or None,
        delay=None,
        at=message.at if message.delay is None else time.time() + message.delay,
    )


# ── folders ─────────────────────────────────────────────────────────────────────────────────────────────────


def _open_or_make(name: str, parent: int) -> int:
    """Open the folder of a queue. A new one gets the permissions of the spool."""
    try:
        os.mkdir(name, 0o700, dir_fd=parent)
    except FileExistsError:
        return open_folder(name, parent)
    folder = open_folder(name, parent)
    _give_to_owner(folder, parent)
    os.fchmod(folder, os.fstat(parent).st_mode & 0o7777)
    return folder


def _give_to_owner(descriptor: int, folder: int) -> None:
    """Give what root has made in the spool of a user to that user, whose daemon could not read it otherwise."""
    if os.geteuid() == 0:
        owner = os.fstat(folder)
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def _write_file(name: str, data: bytes, mode: int, folder: int) -> None:
    descriptor = os.open(name, _NEW, 0o600, dir_fd=folder)
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        _give_to_owner(descriptor, folder)
        os.fchmod(descriptor, mode)
        left = memoryview(data)
        while left:
            left = left[file.write(left) :]
        os.fsync(descriptor)
