"""A handler in Python: it runs in forked children, which end at a statement, or are killed at a write by ptrace."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from ...inbox.aio import AsyncInbox
from ...inbox.blocking import Inbox
from ...message import AsyncMessage, Message, Outgoing, encode_payload
from ...outcomes import give_back
from ...worker.handler_shape import check_handler
from .children import KILLED, run_child
from .hooks import Hooks, places_of_connect
from .journal import Journal, Ran
from .ptrace import SystemCall, can_trace, trace
from .report import CannotProve, Point
from .seen import Seen

STATEMENTS: Final = "each statement and each call to the outside, from within the handler's process"
WRITES: Final = "each write and sync of the file and its log, by ptrace"
NO_WRITES: Final = "not the writes and syncs within a statement, because ptrace is not used here"


class PythonHandler:
    """A function, with the inbox through which it is called."""

    def __init__(
        self,
        handler: Callable[..., object],
        inbox: Callable[[Path], Any] | None,
        db: Path,
        timeout: float,
        traced: bool | None = None,
    ) -> None:
        """``db`` is the user's own file, which no run may write to.

        ``inbox`` makes the inbox of a copy; with None the handler is called as ``handler(path, message)``. ``timeout``
        is in seconds for one run. ``traced`` says whether to use ptrace; None means where it works.
        """
        self._traced = can_trace() if traced is None else traced
        self._is_async = inspect.iscoroutinefunction(handler)
        if self._is_async and inbox is Inbox:
            inbox = AsyncInbox
        kind: type[Message | AsyncMessage] = AsyncMessage if self._is_async else Message
        check_handler(handler, inbox=True, messages=kind)  # two arguments in any case
        self._handler = handler
        self._inbox = inbox
        self._db = db.resolve()
        self._timeout = timeout
        self._places = places_of_connect()

    @property
    def method(self) -> str:
        return f"{STATEMENTS}; {WRITES if self._traced else NO_WRITES}"

    def points(self, ran: Ran) -> list[Point]:
        sources = (("statement", ran.statements), ("write", ran.writes))
        return [
            Point(source, number, place) for source, places in sources for number, place in enumerate(places, start=1)
        ]

    def run(self, database: Path, message: Message, attempt: int, stop: Point | None, *, watched: bool) -> Ran:
        statement = stop.number if stop is not None and stop.source == "statement" else None
        write = stop.number if stop is not None and stop.source == "write" else None

        def deliver(journal: Journal) -> int:
            self._deliver(database, replace(message, attempt=attempt), journal, statement)
            return 0

        def deliver_traced(journal: Journal) -> int:
            seen = Seen(database, self._db, journal, write)

            def see(call: SystemCall) -> bool:
                # The hooks see what happens outside, also where no system call shows it.
                return call.name not in ("connect", "sendto", "open", "openat", "rename", "") and seen.see(call)

            status = trace(lambda: os._exit(deliver_guarded(journal, deliver)), see)
            return KILLED if status is None else status

        traced = self._traced and (watched or write is not None)
        journal = database.parent.with_suffix(".journal")
        ran = run_child(journal, deliver_traced if traced else deliver, self._timeout)
        if ran.refused is not None:
            raise CannotProve(f"{ran.refused}: use the connection, or the path, that the handler gets")
        return ran

    def _deliver(self, database: Path, message: Message, journal: Journal, stop_at: int | None) -> None:
        hooks = Hooks(database.parent.parent, self._db, journal, stop_at, self._places)
        settler = _Settler(hooks, journal)
        hooks.install()
        if self._is_async:
            asyncio.run(self._deliver_async(database, message, _AsyncSettler(settler), settler))
            return
        message = replace(message, settler=settler)
        try:
            if self._inbox is not None:
                self._inbox(database).process(message, self._handler)
            else:
                result = self._handler(database, message)
                if not settler.settled:
                    message.ack(result)
        except Exception as error:  # noqa: BLE001 # it is the outcome of the message
            if not settler.settled:
                give_back(message, error)

    async def _deliver_async(
        self, database: Path, message: Message, settler: _AsyncSettler, blocking: _Settler
    ) -> None:
        handler: Any = self._handler
        fields = {name: getattr(message, name) for name in _FIELDS}
        delivered = AsyncMessage(**fields, settler=settler)
        try:
            if self._inbox is not None:
                async with self._inbox(database) as inbox:
                    await inbox.process(delivered, handler)
            else:
                result = await handler(database, delivered)
                if not blocking.settled:
                    await delivered.ack(result)
        except Exception as error:  # noqa: BLE001 # it is the outcome of the message
            if not blocking.settled:
                give_back(replace(message, settler=blocking), error)


_FIELDS: Final = (
    "id", "queue", "body", "receipt", "attempt", "headers", "priority", "group", "enqueued_at", "seq", "watermark",
    "received_at", "digest", "source", "retention", "expires_at",
)  # fmt: skip


def deliver_guarded(journal: Journal, deliver: Callable[[Journal], int]) -> int:
    """Deliver, and return the exit status also after an error that no handler may raise."""
    try:
        return deliver(journal)
    except BaseException as error:  # noqa: BLE001 # the process ends here
        journal.note("error", f"{type(error).__name__}: {error}")
        return 1


class _Settler:
    """Settles a message by a line of the journal. To be about to settle is a crash point."""

    def __init__(self, hooks: Hooks, journal: Journal) -> None:
        self._hooks = hooks
        self._journal = journal
        self.settled = False

    def _settle(self, outcome: str, result: str | None = None, error: str | None = None) -> None:
        self._hooks.point(f"{'the ack' if outcome == 'done' else 'settling'}")
        self.settled = True
        self._journal.note("settled", outcome, result, error)

    def ack(self, _receipt: str, result: object = None, send: Iterable[Outgoing] = (), /) -> None:
        sent = [(message.queue, message.id, repr(message.body)) for message in send]
        body = None if result is None else repr(encode_payload(result)[0])
        self._settle("done", f"{body} with {sent}" if sent else body)

    def ack_many(self, acks: Any, /) -> None:
        for message, result in acks:
            self.ack(message.receipt, result)

    def nack(self, _receipt: str, _delay: float | None = None, error: str | None = None, /) -> None:
        self._settle("retried", None, error)

    def reject(self, _receipt: str, error: str | None = None, /) -> None:
        self._settle("rejected", None, error)

    def release(self, _receipt: str, /) -> None:
        self._settle("released", None, "the file was locked, or the disk full")

    def extend(self, _receipt: str, _seconds: float, /) -> bool:
        return False


class _AsyncSettler:
    """The same for an asyncio handler."""

    def __init__(self, settler: _Settler) -> None:
        self._settler = settler

    async def ack(self, receipt: str, result: object = None, send: Iterable[Outgoing] = (), /) -> None:
        self._settler.ack(receipt, result, send)

    async def ack_many(self, acks: Any, /) -> None:
        self._settler.ack_many(acks)

    async def nack(self, receipt: str, delay: float | None = None, error: str | None = None, /) -> None:
        self._settler.nack(receipt, delay, error)

    async def reject(self, receipt: str, error: str | None = None, /) -> None:
        self._settler.reject(receipt, error)

    async def release(self, receipt: str, /) -> None:
        self._settler.release(receipt)

    async def extend(self, receipt: str, seconds: float, /) -> bool:
        return self._settler.extend(receipt, seconds)
