"""Spans of OpenTelemetry: in a process of their own, since its provider is global and cannot be removed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import clean_environment

TRACED = """
import asyncio, sqlite3, sys
from contextlib import closing
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import eoq
from eoq.testing import private_daemon

spans = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(spans))
trace.set_tracer_provider(provider)
tracer = trace.get_tracer("application")
folder = sys.argv[1]


def taken(kind):
    found = [span for span in spans.get_finished_spans() if span.kind is kind]
    spans.clear()
    return found


def ids(context):
    return context.trace_id, context.span_id


def carries(message, span):
    version, trace_id, span_id, flags = message.headers["traceparent"].split("-")
    return (int(trace_id, 16), int(span_id, 16)) == ids(span.context)


with private_daemon() as daemon:
    client = daemon.client

    # A send is a producer span, a child of the application's; its context is in the headers.
    with tracer.start_as_current_span("order") as order:
        sent = client.send("q", {"a": 1}, id="a")
    (span,) = taken(SpanKind.PRODUCER)
    assert (span.name, span.parent.span_id) == ("send q", order.context.span_id)
    assert span.attributes["messaging.system"] == "eoq" and span.attributes["messaging.message.id"] == "a"
    assert span.attributes["messaging.destination.name"] == "q"
    # The handler runs in a consumer span, which is linked to it.
    seen = []

    def handle(message):
        seen.append(trace.get_current_span().get_span_context())
        assert carries(message, span) and message.headers["content-type"] == "application/json"
        message.ack(send=[eoq.Outgoing("next", queue="next", id="n")])

    client.work("q", handle, until_empty=True)
    (consumer,) = taken(SpanKind.CONSUMER)
    assert consumer.name == "process q" and consumer.context == seen[0]
    assert ids(consumer.links[0].context) == ids(span.context) == ids(consumer.parent)
    assert consumer.attributes["eoq.attempt"] == 1
    # What it has sent with the ack carries its span on.
    (message,) = client.receive("next")
    assert carries(message, consumer)
    # A repeated send has another trace, and is a duplicate all the same.
    assert client.send("q", {"a": 1}, id="a").duplicate
    taken(SpanKind.PRODUCER)

    # The caller's own header stays, and a handler of its message is linked to that.
    given = "00-" + "1" * 32 + "-" + "2" * 16 + "-01"
    client.send("given", "x", headers={"traceparent": given, "tracestate": "a=b"})
    (message,) = client.receive("given")
    assert message.headers == {"traceparent": given, "tracestate": "a=b"}
    message.release()

    # A handler that fails, in an inbox.
    def fail(tx, message):
        raise eoq.Reject("no account")

    spans.clear()
    with eoq.Inbox(folder + "/app.db") as inbox:
        client.work("given", fail, inbox=inbox, until_empty=True)
    (consumer,) = taken(SpanKind.CONSUMER)
    assert consumer.status.status_code is StatusCode.ERROR
    assert consumer.links[0].context.trace_id == int("1" * 32, 16)
    assert consumer.links[0].context.trace_state.get("a") == "b"

    # Many messages share one span; the application's code between the confirmations is outside.
    def bodies():
        for number in range(300):
            yield str(number)

    current = [trace.get_current_span() for _ in client.send_stream("many", bodies())]
    assert all(not one.get_span_context().is_valid for one in current)
    (span,) = taken(SpanKind.PRODUCER)
    assert all(carries(message, span) for message in client.receive("many", 1000))
    try:
        client.send_many("bad name!", ["x"])
    except eoq.InvalidRequest:
        pass
    (span,) = taken(SpanKind.PRODUCER) or [None]
    assert span is None or span.status.status_code is StatusCode.ERROR

    # An outbox and a spool carry the trace of their caller.
    with closing(sqlite3.connect(folder + "/shop.db")) as shop:
        with tracer.start_as_current_span("order") as order, shop:
            eoq.Outbox(shop).send("q", "x")
        (headers,) = shop.execute("select headers from eoq_outbox").fetchone()
    assert format(order.context.span_id, "016x") in headers

    # The asyncio client.
    async def asynchronous():
        async def handle(message):
            seen.append(trace.get_current_span().get_span_context())

        async with daemon.connect_async() as client:
            await client.send("aq", "x")
            await client.work("aq", handle, until_empty=True)

    asyncio.run(asynchronous())
    sent, handled = [span for span in spans.get_finished_spans() if span.name.endswith(" aq")]
    assert ids(handled.links[0].context) == ids(sent.context) and seen[-1] == handled.context
print("traced")
"""
UNTRACED = """
import sys
from eoq.testing import private_daemon

with private_daemon() as daemon:
    daemon.client.send("q", "x")
    assert daemon.client.work("q", lambda message: None, until_empty=True).done == 1
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
print("untraced")
"""
WITHOUT_SDK = """
import opentelemetry.trace
from eoq.testing import private_daemon

with private_daemon() as daemon:
    daemon.client.send("q", "x")
    headers = []
    daemon.client.work("q", lambda message: headers.append(message.headers), until_empty=True)
    assert headers == [{}]
print("no spans")
"""
has_sdk = pytest.mark.skipif(
    importlib.util.find_spec("opentelemetry") is None or importlib.util.find_spec("opentelemetry.sdk") is None,
    reason="opentelemetry-sdk is not installed",
)


def _run(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=clean_environment(),
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@has_sdk
@pytest.mark.slow
def test_sends_and_handlers_are_spans_of_one_trace(tmp_path: Path) -> None:
    assert _run(TRACED, tmp_path) == "traced"


@has_sdk
@pytest.mark.slow
def test_the_api_alone_makes_no_spans(tmp_path: Path) -> None:
    assert _run(WITHOUT_SDK, tmp_path) == "no spans"


@pytest.mark.slow
def test_a_program_without_opentelemetry_imports_nothing_of_it(tmp_path: Path) -> None:
    assert _run(UNTRACED, tmp_path) == "untraced"
