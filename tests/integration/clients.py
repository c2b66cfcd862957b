"""One interface for the blocking and the asyncio client in tests.

The asyncio client has an event loop of its own, which runs during each call.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Literal, Protocol, TypeVar

import eoq
from eoq.message import Delivery
from eoq.protocol.admin_calls import CancelledMessage, Changed, EditedMessage, FoundMessage
from eoq.protocol.codec import Fields
from eoq.protocol.features import QueueOrder

T = TypeVar("T")
Kind = Literal["blocking", "asyncio"]


class AnyTransaction(Protocol):
    """The methods of both kinds of transaction."""

    sent: list[eoq.Sent]

    def ack(self, message: Delivery | str, result: object = None) -> None: ...
    def send(self, queue: str, body: object, *, id: str | None = None) -> None: ...
    def send_many(self, messages: Iterable[eoq.Outgoing]) -> None: ...


class AnyClient(Protocol):
    """The methods of both clients, with the asyncio ones awaited."""

    def send(
        self,
        queue: str,
        body: object,
        *,
        id: str | None = None,
        headers: dict[str, str] | None = None,
        priority: int = 0,
        group: str | None = None,
        delay: float | None = None,
        at: float | None = None,
        ttl: float | None = None,
    ) -> eoq.Sent: ...
    def send_many(self, queue: str, messages: Iterable[object]) -> list[eoq.Sent]: ...
    def send_stream(self, queue: str, messages: Iterable[object]) -> Iterator[eoq.Sent]: ...
    def receive(
        self, queue: str, limit: int = 1, wait: float = 0.0, *, lease: float | None = None, bound: bool = False
    ) -> Sequence[Delivery]: ...
    def consume(
        self, queue: str, *, prefetch: int = 1, lease: float | None = None, idle: float | None = None
    ) -> Iterator[Delivery]: ...
    def ack(self, message: Delivery | str, result: object = None, send: Iterable[eoq.Outgoing] = ()) -> None: ...
    def ack_many(self, acks: Sequence[tuple[Delivery | str, object]]) -> None: ...
    def nack(self, message: Delivery | str, delay: float | None = None, error: str | None = None) -> None: ...
    def reject(self, message: Delivery | str, error: str | None = None) -> None: ...
    def extend(self, message: Delivery | str, seconds: float) -> bool: ...
    def transaction(self) -> AbstractContextManager[AnyTransaction]: ...
    def result(self, queue: str, id: str, wait: float = 0.0) -> eoq.Result | None: ...
    def queues(self, *, prefix: str = "", after: str = "", limit: int | None = None) -> list[Fields]: ...
    def overview(
        self, order: QueueOrder = "busy", *, contains: str = "", skip: int = 0, limit: int = 100
    ) -> Fields: ...
    def status(self) -> Fields: ...
    def find(self, id: str, queues: str | Iterable[str] | None = None) -> list[FoundMessage]: ...
    def why(self, queue: str, id: str) -> Fields: ...
    def metrics(self) -> str: ...
    def peek(
        self,
        queue: str,
        state: str = "ready",
        *,
        limit: int = 10,
        group: str | None = None,
        headers: Mapping[str, str] | None = None,
        contains: str | None = None,
    ) -> list[Fields]: ...
    def show(self, queue: str, id: str) -> Fields: ...
    def tail(self, queue: str, *, last: int = 0) -> Iterator[Fields]: ...
    def pause(self, queue: str) -> bool: ...
    def resume(self, queue: str) -> bool: ...
    def delete_queue(self, queue: str, *, forget_ids: bool = False) -> bool: ...
    def purge(self, queue: str) -> int: ...
    def cancel(self, queue: str, id: str) -> CancelledMessage: ...
    def edit(
        self,
        queue: str,
        id: str,
        *,
        body: object = None,
        priority: int | None = None,
        delay: float | None = None,
        at: float | None = None,
    ) -> EditedMessage: ...
    def pause_schedule(self, name: str) -> bool: ...
    def resume_schedule(self, name: str) -> bool: ...
    def run_schedule(self, name: str, *, id: str | None = None) -> eoq.Sent: ...
    def redrive(
        self,
        queue: str,
        ids: Sequence[str] | None = None,
        *,
        failed_before: float | None = None,
        everything: bool = False,
        to: str | None = None,
    ) -> Changed: ...
    def drop(
        self,
        queue: str,
        ids: Sequence[str] | None = None,
        *,
        failed_before: float | None = None,
        everything: bool = False,
    ) -> Changed: ...
    def bind(self, topic: str, queue: str, headers: Mapping[str, str] | None = None) -> None: ...
    def unbind(self, topic: str, queue: str) -> None: ...
    def topics(self) -> list[Fields]: ...
    def schedule(
        self,
        name: str,
        queue: str,
        body: object = b"",
        *,
        cron: str | None = None,
        timezone: str | None = None,
        every: int | None = None,
        at: float | None = None,
        group: str | None = None,
        ttl: float | None = None,
        replace: bool = False,
    ) -> float | None: ...
    def unschedule(self, name: str) -> None: ...
    def schedules(self) -> list[Fields]: ...
    def ask(self, op: str, **fields: Any) -> dict[str, Any]: ...
    def close(self) -> None: ...


class AsyncFace:
    """The asyncio client, with each call run to its end."""

    def __init__(self, runner: asyncio.Runner, client: eoq.AsyncClient) -> None:
        self._runner = runner
        self.client = client

    def __enter__(self) -> AsyncFace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the client's loop."""
        return self._runner.run(coroutine)

    def _each(self, source: AsyncIterator[T]) -> Iterator[T]:
        async def step() -> T:
            return await anext(source)

        async def end() -> None:
            if isinstance(source, AsyncGenerator):
                await source.aclose()

        try:
            while True:
                try:
                    value = self.run(step())
                except StopAsyncIteration:
                    return
                yield value
        finally:
            self.run(end())

    def send(self, queue: str, body: object, **options: Any) -> eoq.Sent:
        return self.run(self.client.send(queue, body, **options))

    def send_many(self, queue: str, messages: Iterable[object]) -> list[eoq.Sent]:
        return self.run(self.client.send_many(queue, messages))

    def send_stream(self, queue: str, messages: Iterable[object]) -> Iterator[eoq.Sent]:
        return self._each(self.client.send_stream(queue, messages))

    def receive(
        self, queue: str, limit: int = 1, wait: float = 0.0, *, lease: float | None = None, bound: bool = False
    ) -> Sequence[Delivery]:
        return self.run(self.client.receive(queue, limit, wait, lease=lease, bound=bound))

    def consume(
        self, queue: str, *, prefetch: int = 1, lease: float | None = None, idle: float | None = None
    ) -> Iterator[Delivery]:
        return self._each(self.client.consume(queue, prefetch=prefetch, lease=lease, idle=idle))

    def ack(self, message: Delivery | str, result: object = None, send: Iterable[eoq.Outgoing] = ()) -> None:
        self.run(self.client.ack(message, result, send))

    def ack_many(self, acks: Sequence[tuple[Delivery | str, object]]) -> None:
        self.run(self.client.ack_many(acks))

    def nack(self, message: Delivery | str, delay: float | None = None, error: str | None = None) -> None:
        self.run(self.client.nack(message, delay, error))

    def reject(self, message: Delivery | str, error: str | None = None) -> None:
        self.run(self.client.reject(message, error))

    def extend(self, message: Delivery | str, seconds: float) -> bool:
        return self.run(self.client.extend(message, seconds))

    def transaction(self) -> AbstractContextManager[AnyTransaction]:
        return _Transaction(self, self.client.transaction())

    def result(self, queue: str, id: str, wait: float = 0.0) -> eoq.Result | None:
        return self.run(self.client.result(queue, id, wait))

    def queues(self, **options: Any) -> list[Fields]:
        return self.run(self.client.queues(**options))

    def overview(self, order: QueueOrder = "busy", **options: Any) -> Fields:
        return self.run(self.client.overview(order, **options))

    def find(self, id: str, queues: str | Iterable[str] | None = None) -> list[FoundMessage]:
        return self.run(self.client.find(id, queues))

    def why(self, queue: str, id: str) -> Fields:
        return self.run(self.client.why(queue, id))

    def status(self) -> Fields:
        return self.run(self.client.status())

    def metrics(self) -> str:
        return self.run(self.client.metrics())

    def peek(self, queue: str, state: str = "ready", **options: Any) -> list[Fields]:
        return self.run(self.client.peek(queue, state, **options))

    def show(self, queue: str, id: str) -> Fields:
        return self.run(self.client.show(queue, id))

    def tail(self, queue: str, *, last: int = 0) -> Iterator[Fields]:
        return self._each(self.client.tail(queue, last=last))

    def pause(self, queue: str) -> bool:
        return self.run(self.client.pause(queue))

    def resume(self, queue: str) -> bool:
        return self.run(self.client.resume(queue))

    def delete_queue(self, queue: str, *, forget_ids: bool = False) -> bool:
        return self.run(self.client.delete_queue(queue, forget_ids=forget_ids))

    def cancel(self, queue: str, id: str) -> CancelledMessage:
        return self.run(self.client.cancel(queue, id))

    def edit(self, queue: str, id: str, **changes: Any) -> EditedMessage:
        return self.run(self.client.edit(queue, id, **changes))

    def pause_schedule(self, name: str) -> bool:
        return self.run(self.client.pause_schedule(name))

    def resume_schedule(self, name: str) -> bool:
        return self.run(self.client.resume_schedule(name))

    def run_schedule(self, name: str, *, id: str | None = None) -> eoq.Sent:
        return self.run(self.client.run_schedule(name, id=id))

    def purge(self, queue: str) -> int:
        return self.run(self.client.purge(queue))

    def redrive(self, queue: str, ids: Sequence[str] | None = None, **options: Any) -> Changed:
        return self.run(self.client.redrive(queue, ids, **options))

    def drop(self, queue: str, ids: Sequence[str] | None = None, **options: Any) -> Changed:
        return self.run(self.client.drop(queue, ids, **options))

    def bind(self, topic: str, queue: str, headers: Mapping[str, str] | None = None) -> None:
        self.run(self.client.bind(topic, queue, headers))

    def unbind(self, topic: str, queue: str) -> None:
        self.run(self.client.unbind(topic, queue))

    def topics(self) -> list[Fields]:
        return self.run(self.client.topics())

    def schedule(self, name: str, queue: str, body: object = b"", **options: Any) -> float | None:
        return self.run(self.client.schedule(name, queue, body, **options))

    def unschedule(self, name: str) -> None:
        self.run(self.client.unschedule(name))

    def schedules(self) -> list[Fields]:
        return self.run(self.client.schedules())

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        return self.run(self.client.ask(op, **fields))

    def close(self) -> None:
        self.run(self.client.close())


class _Transaction:
    """An asyncio transaction for a ``with`` block."""

    def __init__(self, face: AsyncFace, transaction: eoq.AsyncTransaction) -> None:
        self._face = face
        self._transaction = transaction

    def __enter__(self) -> AnyTransaction:
        return self._face.run(self._transaction.__aenter__())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._face.run(self._transaction.__aexit__(kind, error, trace))
