"""The rows of an outbox as the relay sees them, whatever database they are in. Any program may have written them."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from ..client.batch_sender import MESSAGE_FAULTS
from ..errors import EoqError, InvalidRequest, MessageTooLarge, NotFound, StorageFailed
from ..message import Outgoing
from ..protocol.limits import MAX_BODY
from ..protocol.validation import check_options, check_queue, time_left


class FileBusy(StorageFailed):
    """Another program has locked the application's file, or is writing to the table of its database."""


class FileGone(StorageFailed):
    """The application's file does not exist."""


class NoOutbox(NotFound):
    """The application's file or database has no outbox table yet."""


class Row(NamedTuple):
    """A row of an outbox.

    ``key`` is the id in the file: together with ``seq`` it names this row even if the file was restored meanwhile.
    ``stream`` is the queue and the group, or None without a group: rows of one stream are sent in their order.
    ``message`` is the message to send, or the error that says why it cannot be sent.
    """

    seq: int
    key: bytes
    stream: tuple[str | bytes, str | bytes] | None
    message: Outgoing | EoqError


class SetAside(NamedTuple):
    """A row that cannot be sent, as it is shown to the operator."""

    seq: int
    queue: str
    id: str
    group: str | None
    error: str
    failed_at: float | None


class OutboxStore(Protocol):
    """An outbox in an application's database. `OutboxFile` says what its methods do. One thread at a time uses it."""

    @property
    def name(self) -> str:
        """The name of the outbox in messages to the operator."""

    def read(
        self,
        limit: int,
        most_bytes: int,
        *,
        without: Collection[str] = (),
        resend_within: float,
        behind_writers: bool = False,
        reread: bool = False,
    ) -> list[Row]: ...
    def mark(self, rows: Sequence[Row]) -> tuple[list[Row], float]: ...
    def unmark(self, rows: Sequence[Row]) -> None: ...
    def remove(self, rows: Sequence[Row]) -> None: ...
    def set_aside(self, row: Row, error: str) -> None: ...
    def count_set_aside(self) -> int: ...
    def list_set_aside(self, limit: int) -> list[SetAside]: ...
    def close(self) -> None: ...

    async def watch(self, wake: Callable[[], None], seconds: float) -> None:
        """Call ``wake`` when the outbox may have changed, and every ``seconds`` at least, until cancelled."""


def check_age(since: Any, resend_within: float, arrived: str = "delete the row") -> InvalidRequest | None:
    """Return why a row may not be sent again without the operator's decision, or None if it may.

    ``arrived`` is what the operator does with a row whose message has arrived.
    """
    if since is None:
        return None
    if not isinstance(since, int | float) or not math.isfinite(since):
        return InvalidRequest("the date of its first try is not a number of seconds; it may have been sent")
    if time.time() - since <= resend_within:
        return None
    tried = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(max(since, 0.0)))
    return InvalidRequest(
        f"it was first sent on {tried}, and no answer was received. The daemon may have forgotten its id by now, so it "
        f"could be stored twice. Find out whether it arrived. If so, {arrived}; if not, set its error to null"
    )


def read_message(
    queue: Any, group: Any, body: Any, headers: Any, id: Any, priority: Any, at: Any, ttl: Any, created_at: Any
) -> Outgoing | InvalidRequest | MessageTooLarge:
    """Return a row as a message, or an error that says what is wrong with the row."""
    try:
        check_queue(queue)
        if id is None:
            raise InvalidRequest("it has no id, so it could be stored twice")
        if not isinstance(body, str | bytes):
            raise InvalidRequest("it has no body; write text or a blob")
        content = body.encode(errors="surrogateescape") if isinstance(body, str) else body
        if len(content) > MAX_BODY:
            raise MessageTooLarge(f"the body has more than {MAX_BODY:,} bytes; store it elsewhere and send its name")
        message = Outgoing(content, id, queue, _read_headers(headers), priority, group, None, at, ttl)
        check_options(message)
        if ttl is not None:
            if not isinstance(created_at, int | float):
                raise InvalidRequest("its `created_at`, from which its `ttl` counts, is not a number of seconds")
            message = replace(message, ttl=time_left(ttl, created_at))
    except (InvalidRequest, MessageTooLarge) as error:
        return error
    except MESSAGE_FAULTS as fault:
        # The last catch: whatever one row contains, the relay and the other rows go on.
        return InvalidRequest(f"eoq failed at this row: {fault!r}")
    return message


def _read_headers(text: object) -> dict[str, str] | None:
    if text is None:
        return None
    headers = None
    if isinstance(text, str | bytes):
        with suppress(ValueError, RecursionError):
            headers = json.loads(text)
    if not isinstance(headers, dict):
        raise InvalidRequest('the headers are not a JSON object of texts such as {"name": "value"}')
    return headers
