"""Messages made by hand, to call a handler without a daemon. What the handler does to its message is recorded.

message = make_message({"amount": 5}, id="order-17", attempt=2)
handle(message)
assert settlements(message) == [Settlement("done", result=b"paid")]
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ..daemon.request_values import new_message
from ..daemon.requests import Message as Content
from ..errors import InvalidRequest
from ..message import AsyncMessage, Message, Outgoing, complete_headers, encode_payload
from ..protocol.codec import put_bytes
from ..protocol.validation import check_queue

RETENTION: Final = 7 * 86400.0
"""Seconds of the retention that the messages carry: the default of a queue."""
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Settlement:
    """What was done to a message: ``done``, ``retried``, ``rejected``, ``released`` or ``extended``."""

    outcome: str
    result: bytes | None = None
    sent: Sequence[Outgoing] = ()
    error: str | None = None
    delay: float | None = None
    """Seconds: of a retry, or of an extension."""


@dataclass(slots=True)
class _Recorder:
    """The settler of a blocking message made by hand."""

    settlements: list[Settlement] = field(default_factory=list)

    def ack(self, _receipt: str, result: object = None, send: Iterable[Outgoing] = (), /) -> None:
        body = None if result is None else encode_payload(result)[0]
        self.settlements.append(Settlement("done", body, tuple(send)))

    def ack_many(self, acks: Sequence[tuple[Any, object]], /) -> None:
        for message, result in acks:
            self.ack(message.receipt, result)

    def nack(self, _receipt: str, delay: float | None = None, error: str | None = None, /) -> None:
        self.settlements.append(Settlement("retried", error=error, delay=delay))

    def reject(self, _receipt: str, error: str | None = None, /) -> None:
        self.settlements.append(Settlement("rejected", error=error))

    def release(self, _receipt: str, /) -> None:
        self.settlements.append(Settlement("released"))

    def extend(self, _receipt: str, seconds: float, /) -> bool:
        self.settlements.append(Settlement("extended", delay=seconds))
        return False


class _AsyncRecorder:
    """The settler of an asyncio message made by hand."""

    def __init__(self) -> None:
        self._recorder = _Recorder()
        self.settlements = self._recorder.settlements

    async def ack(self, receipt: str, result: object = None, send: Iterable[Outgoing] = (), /) -> None:
        self._recorder.ack(receipt, result, send)

    async def ack_many(self, acks: Sequence[tuple[AsyncMessage, object]], /) -> None:
        self._recorder.ack_many(acks)

    async def nack(self, receipt: str, delay: float | None = None, error: str | None = None, /) -> None:
        self._recorder.nack(receipt, delay, error)

    async def reject(self, receipt: str, error: str | None = None, /) -> None:
        self._recorder.reject(receipt, error)

    async def release(self, receipt: str, /) -> None:
        self._recorder.release(receipt)

    async def extend(self, receipt: str, seconds: float, /) -> bool:
        return self._recorder.extend(receipt, seconds)


def settlements(message: Message | AsyncMessage) -> list[Settlement]:
    """Return what was done to a message made by hand, in its order. Raises `InvalidRequest` for any other message."""
    settler = message.settler
    if not isinstance(settler, _Recorder | _AsyncRecorder):
        raise InvalidRequest("only a message of `make_message` or `make_async_message` records its settlements")
    return list(settler.settlements)


def make_message(
    body: object = b"",
    *,
    queue: str = "test",
    id: str | None = None,
    attempt: int = 1,
    headers: Mapping[str, str] | None = None,
    priority: int = 0,
    group: str | None = None,
    enqueued_at: float | None = None,
    cancelled: bool = False,
) -> Message:
    """Return a message as a daemon would deliver it. ``body`` and the options are those of a send.

    ``attempt`` counts deliveries from 1, ``enqueued_at`` is in seconds since the epoch (now by default). Each message
    has another ``seq``. The same ``id`` stands for another delivery of the same message. Raises `InvalidRequest` or
    `MessageTooLarge` for what could not be sent.
    """
    fields = _fields(body, queue, id, headers, priority, group)
    return Message(
        **fields,
        attempt=attempt,
        enqueued_at=time.time() if enqueued_at is None else enqueued_at,
        cancelled=cancelled,
        settler=_Recorder(),
    )


def make_async_message(
    body: object = b"",
    *,
    queue: str = "test",
    id: str | None = None,
    attempt: int = 1,
    headers: Mapping[str, str] | None = None,
    priority: int = 0,
    group: str | None = None,
    enqueued_at: float | None = None,
    cancelled: bool = False,
) -> AsyncMessage:
    """Return a message for an asyncio handler. See `make_message`."""
    fields = _fields(body, queue, id, headers, priority, group)
    return AsyncMessage(
        **fields,
        attempt=attempt,
        enqueued_at=time.time() if enqueued_at is None else enqueued_at,
        cancelled=cancelled,
        settler=_AsyncRecorder(),
    )


def _fields(
    body: object, queue: str, id: str | None, headers: Mapping[str, str] | None, priority: int, group: str | None
) -> dict[str, Any]:
    """Return the fields of a delivery, after the checks of the daemon, with the digest of its content."""
    number = next(_numbers)
    payload, is_json = encode_payload(body)
    all_headers = complete_headers(Outgoing(body, headers=headers), is_json)
    content: dict[str, Any] = {}
    put_bytes(content, "body", payload)
    made = new_message(
        check_queue(queue),
        Content(**content, id=id, headers=all_headers or None, priority=priority, group=group),
        time.time(),
        lambda: f"m-{number}",
    )
    return {
        "id": made.id,
        "queue": queue,
        "body": payload,
        "receipt": f"made-by-hand-{number}",
        "headers": all_headers,
        "priority": priority,
        "group": group,
        "seq": number,
        "digest": made.digest.hex(),
        "source": "made-by-hand",
        "retention": RETENTION,
    }
