"""Spans of OpenTelemetry, in programs that use it: a send is a producer span, a worker's handler a consumer span.

Whether a program uses OpenTelemetry is seen by whether it has imported its API. So nothing is imported without it, and
the cost is one look into the dictionary of modules. A trace travels in the headers ``traceparent`` and ``tracestate``
of W3C. They are no part of a message's content, so a repeated send may have others.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final, TypeVar

from .message import Delivery

T = TypeVar("T")

API: Final = "opentelemetry.trace"
"""The module that is in `sys.modules` where a program uses OpenTelemetry."""
TRACEPARENT: Final = "traceparent"
_SYSTEM: Final = "eoq"
_PROPAGATION: Final = "opentelemetry.trace.propagation.tracecontext"


def with_context(headers: Mapping[str, str] | None) -> dict[str, str]:
    """Return ``headers`` with those of the current trace, unless the caller has given one, or there is none.

    Call it only where `API` is imported.
    """
    found = dict(headers or {})
    if TRACEPARENT not in found:
        carrier: dict[str, str] = {}
        _propagator().inject(carrier)
        # A state without its parent would be of another trace.
        found = {**carrier, **found} if "tracestate" not in found else {**found, **carrier}
    return found


@contextmanager
def sending(queue: str) -> Iterator[Any]:
    """Run the block in the producer span of one send. Call it only where `API` is imported."""
    with _tracer().start_as_current_span(f"send {queue}", **_producer(queue)) as span:
        yield span


def start_sending(queue: str) -> Any:
    """Return the producer span of a send of many messages, which `within` uses and the caller ends."""
    return _tracer().start_span(f"send {queue}", **_producer(queue))


def within(span: Any, items: Iterable[T]) -> Iterator[T]:
    """Yield ``items``, each made inside ``span``. The code between them is outside."""
    use_span = sys.modules[API].use_span
    iterator = iter(items)
    while True:
        with use_span(span, end_on_exit=False, record_exception=False, set_status_on_exception=False):
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item


def failed(span: Any, error: BaseException) -> None:
    """Note the error of a send in its span, if it has one."""
    if span is not None:
        trace: Any = sys.modules[API]
        span.record_exception(error)
        span.set_status(trace.Status(trace.StatusCode.ERROR, str(error)))


@contextmanager
def handling(message: Delivery) -> Iterator[None]:
    """Run the block in the consumer span of a handler: a child of the span of the send, if known, and linked to it."""
    trace: Any = sys.modules[API]
    context = _propagator().extract(message.headers)
    sent = trace.get_current_span(context).get_span_context()
    known = sent.is_valid and TRACEPARENT in message.headers
    attributes = {
        **_attributes(message.queue, "process"),
        "messaging.message.id": message.id,
        "messaging.message.body.size": len(message.body),
        "eoq.attempt": message.attempt,
    }
    with _tracer().start_as_current_span(
        f"process {message.queue}",
        context=context if known else None,
        kind=trace.SpanKind.CONSUMER,
        links=[trace.Link(sent)] if known else [],
        attributes=attributes,
    ):
        yield


def _producer(queue: str) -> dict[str, Any]:
    trace: Any = sys.modules[API]
    return {"kind": trace.SpanKind.PRODUCER, "attributes": _attributes(queue, "send")}


def _attributes(queue: str, operation: str) -> dict[str, str]:
    return {
        "messaging.system": _SYSTEM,
        "messaging.destination.name": queue,
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
    }


def _tracer() -> Any:
    return sys.modules[API].get_tracer(_SYSTEM)


def _propagator() -> Any:
    return import_module(_PROPAGATION).TraceContextTextMapPropagator()
