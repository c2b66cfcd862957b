"""The webhook receiver as a real process, over real HTTP: each delivery is stored once, even after kills."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import socket as sockets
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import pytest

import eoq
from tests.examples.conftest import EXAMPLES
from tests.examples.payloads import Webhook, webhooks
from tests.support import PATIENCE, Daemon, clean_environment, eventually, read_line_of

RECEIVER: Final = EXAMPLES / "webhook_receiver.py"
LIMIT: Final = 1024 * 1024
SECRET: Final = "it's a secret"  # noqa: S105 # of this test


@dataclass(frozen=True)
class Answer:
    """The receiver's answer to one request."""

    status: int
    text: str
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Receiver:
    """A running receiver."""

    port: int
    process: subprocess.Popen[bytes]

    def post(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Send one POST with exactly these headers and a Content-Length. Return the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("POST", "/", body, dict(headers))
            response = connection.getresponse()
            return Answer(response.status, response.read().decode(), dict(response.headers))
        finally:
            connection.close()

    def deliver(self, webhook: Webhook, **more: str) -> Answer:
        """Send one delivery as GitHub does. Return the answer."""
        return self.post(webhook.body, {**_headers(webhook), **more})

    def raw(self, data: bytes) -> sockets.socket:
        """Open a connection and send ``data`` over it."""
        connection = sockets.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        connection.sendall(data)
        return connection


def _headers(webhook: Webhook) -> dict[str, str]:
    return {
        "Content-Type": "application/json",
        "User-Agent": "GitHub-Hookshot/044aadd",
        "X-GitHub-Delivery": webhook.delivery,
        "X-GitHub-Event": webhook.event,
    }


def _signature(secret: str, body: bytes) -> str:
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def _read_all(connection: sockets.socket) -> bytes:
    data = b""
    while piece := connection.recv(64 * 1024):
        data += piece
    return data


@contextmanager
def _running(daemon: Daemon, *options: str, **environment: str) -> Iterator[Receiver]:
    errors = daemon.folder / "receiver.err"
    command = [sys.executable, str(RECEIVER), "--port", "0", "--socket", str(daemon.socket), *options]
    with errors.open("ab") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, env=clean_environment(**environment), cwd=daemon.folder
        )
    with process:
        try:
            line = read_line_of(process)
            assert line.startswith(b"listening on http://127.0.0.1:"), errors.read_text()
            yield Receiver(int(line.rpartition(b":")[2]), process)
            assert process.poll() is None, errors.read_text()
        finally:
            process.kill()
    assert "Traceback" not in errors.read_text()


@pytest.fixture
def receiver(daemon: Daemon) -> Iterator[Receiver]:
    """A receiver that checks no signatures."""
    with _running(daemon) as receiver:
        yield receiver


def _stored(daemon: Daemon) -> list[dict[str, Any]]:
    """Return all messages of the queue in the order they were stored, with bodies as bytes."""
    with eoq.connect(daemon.socket) as client:
        found = []
        while messages := client.receive("webhooks", 1000, lease=600):
            found += [{"id": m.id, "body": m.body, "headers": dict(m.headers)} for m in messages]
    return found


# ── one delivery ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_delivery_is_stored_byte_for_byte_and_its_repetition_is_a_duplicate(
    daemon: Daemon, receiver: Receiver
) -> None:
    (webhook,) = webhooks(1, 1)
    assert receiver.deliver(webhook).status == 202
    assert receiver.deliver(webhook, **{"User-Agent": "another"}).status == 200
    headers = {"content-type": "application/json", "x-github-event": webhook.event}
    assert _stored(daemon) == [{"id": webhook.delivery, "body": webhook.body, "headers": headers}]


def test_an_answered_delivery_survives_the_kill_of_receiver_and_daemon(daemon: Daemon) -> None:
    first, second = webhooks(2, 2)
    with _running(daemon) as receiver:
        assert receiver.deliver(first).status == 202
    daemon.restart()
    with _running(daemon) as receiver:
        assert receiver.deliver(first).status == 200
        assert receiver.deliver(second).status == 202
    assert [message["id"] for message in _stored(daemon)] == [first.delivery, second.delivery]


def test_the_same_delivery_id_with_another_body_is_a_conflict(daemon: Daemon, receiver: Receiver) -> None:
    first, second = webhooks(3, 2)
    assert receiver.deliver(first).status == 202
    answer = receiver.deliver(second._replace(delivery=first.delivery))
    assert answer.status == 409
    assert [message["body"] for message in _stored(daemon)] == [first.body]


@pytest.mark.first_by_default
@pytest.mark.parametrize("body", [b"", b"\x00\xff\xfe", b"x" * LIMIT], ids=["empty", "no text", "largest"])
def test_any_body_up_to_the_limit_is_stored(daemon: Daemon, receiver: Receiver, body: bytes) -> None:
    assert receiver.post(body, {"X-GitHub-Delivery": "d-1"}).status == 202
    assert _stored(daemon) == [{"id": "d-1", "body": body, "headers": {}}]


# ── signatures ──────────────────────────────────────────────────────────────────────────────────────────────


def test_only_deliveries_signed_with_the_secret_are_stored(daemon: Daemon) -> None:
    good, forged = webhooks(4, 2)
    with _running(daemon, WEBHOOK_SECRET=SECRET) as receiver:
        signed = {"X-Hub-Signature-256": _signature(SECRET, good.body)}
        assert receiver.deliver(good, **signed).status == 202
        assert receiver.deliver(forged).status == 401
        for signature in (signed["X-Hub-Signature-256"], _signature("guess", forged.body), "sha256=", "\xff", "é"):
            assert receiver.deliver(forged, **{"X-Hub-Signature-256": signature}).status == 401
    assert [message["id"] for message in _stored(daemon)] == [good.delivery]


def test_githubs_own_example_of_a_signature(daemon: Daemon) -> None:
    """Check the values with which GitHub's documentation lets implementations test themselves."""
    secret = "It's a Secret to Everybody"  # noqa: S105 # published
    signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    with _running(daemon, WEBHOOK_SECRET=secret) as receiver:
        answer = receiver.post(b"Hello, World!", {"X-GitHub-Delivery": "d-1", "X-Hub-Signature-256": signature})
    assert answer.status == 202


# ── what is refused ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_delivery_without_a_valid_id_is_refused(daemon: Daemon, receiver: Receiver) -> None:
    for delivery in ("", "x" * 201, "a\x07b", "a\xadb"):
        assert receiver.post(b"{}", {"X-GitHub-Delivery": delivery}).status == 400, delivery
    assert receiver.post(b"{}", {}).status == 400
    assert _stored(daemon) == []


@pytest.mark.first_by_default
@pytest.mark.parametrize("length", [LIMIT + 1, 8 * LIMIT])
def test_a_body_that_is_too_large_is_refused_with_an_answer(daemon: Daemon, receiver: Receiver, length: int) -> None:
    answer = receiver.post(b"x" * length, {"X-GitHub-Delivery": "d-1"})
    assert answer.status == 413
    assert "1,048,576 bytes" in answer.text
    assert _stored(daemon) == []


NO_VALID_LENGTH: Final = (
    (b"Content-Length: 99999999999999999999", b"413"),
    (b"Content-Length: -1", b"411"),
    (b"Content-Length: 1_0", b"411"),
    (b"Content-Length: 0x10", b"411"),
    ("Content-Length: ٣".encode(), b"411"),
    (b"Transfer-Encoding: chunked", b"411"),
    (b"X: y", b"411"),
    (b"Content-Length: 5", b"400"),  # and no body follows
)


def test_a_body_without_a_valid_length_is_refused(daemon: Daemon, receiver: Receiver) -> None:
    for lines, status in NO_VALID_LENGTH:
        with receiver.raw(b"POST / HTTP/1.1\r\nX-GitHub-Delivery: d-1\r\n" + lines + b"\r\n\r\n") as connection:
            connection.shutdown(sockets.SHUT_WR)
            assert _read_all(connection).startswith(b"HTTP/1.0 " + status), lines
    assert _stored(daemon) == []


def test_other_methods_and_other_protocols_are_refused(daemon: Daemon, receiver: Receiver) -> None:
    for data in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\n", b"\n", b"x" * 70_000 + b"\n"):
        with receiver.raw(data) as connection:
            connection.shutdown(sockets.SHUT_WR)
            assert not _read_all(connection).startswith(b"HTTP/1.0 2")
    assert receiver.deliver(webhooks(5, 1)[0]).status == 202


@pytest.mark.slow
def test_slow_senders_are_cut_off_and_do_not_delay_others(daemon: Daemon) -> None:
    head = b"POST / HTTP/1.1\r\nX-GitHub-Delivery: slow\r\n"
    with _running(daemon, "--timeout", "2") as receiver:
        in_body = [receiver.raw(head + b"Content-Length: 5\r\n\r\nab") for _ in range(20)]
        in_head = [receiver.raw(head) for _ in range(20)]
        assert receiver.deliver(webhooks(6, 1)[0]).status == 202
        for connection in in_body + in_head:
            with connection:
                answer = _read_all(connection)
            assert answer.startswith(b"HTTP/1.0 408") if connection in in_body else answer == b""
    assert len(_stored(daemon)) == 1


@pytest.mark.slow
def test_sending_single_bytes_does_not_extend_the_deadline(daemon: Daemon) -> None:
    head = b"POST / HTTP/1.1\r\nX-GitHub-Delivery: slow\r\nContent-Length: 100000\r\n\r\n"
    with _running(daemon, "--timeout", "2") as receiver, receiver.raw(head) as connection:
        connection.settimeout(0.2)
        begun = time.monotonic()
        answer = b""
        while not answer and time.monotonic() < begun + PATIENCE:
            with suppress(ConnectionError):  # it may have answered and closed the connection
                connection.sendall(b"x")
            with suppress(TimeoutError):
                answer = connection.recv(100)
    assert answer.startswith(b"HTTP/1.0 408")
    assert _stored(daemon) == []


def test_a_sender_that_disconnects_stores_nothing(daemon: Daemon, receiver: Receiver) -> None:
    head = b"POST / HTTP/1.1\r\nX-GitHub-Delivery: gone\r\n"
    for data in (head, head + b"Content-Length: 5\r\n\r\nab"):
        with receiver.raw(data) as connection:
            # Close at once, with a reset.
            connection.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, struct.pack("ii", 1, 0))
    assert receiver.deliver(webhooks(5, 1)[0]).status == 202
    assert len(_stored(daemon)) == 1


# ── a daemon that is away ───────────────────────────────────────────────────────────────────────────────────


def test_while_the_daemon_is_away_the_sender_is_asked_to_retry(daemon: Daemon) -> None:
    (webhook,) = webhooks(7, 1)
    daemon.kill()
    with _running(daemon) as receiver:
        answer = receiver.deliver(webhook)
        assert answer.status == 503
        assert int(answer.headers["Retry-After"]) > 0
        assert str(daemon.socket) not in answer.text
        daemon.start()
        assert receiver.deliver(webhook).status == 202


@pytest.mark.slow
def test_after_a_kill_of_the_daemon_deliveries_get_503_until_it_is_back(daemon: Daemon, receiver: Receiver) -> None:
    first, second = webhooks(8, 2)
    assert receiver.deliver(first).status == 202
    daemon.kill()
    answer = receiver.deliver(second)
    assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
    daemon.start()
    assert receiver.deliver(second).status == 202


# ── many, twice, with kills ─────────────────────────────────────────────────────────────────────────────────


def _deliver_until_stored(receiver: Receiver, webhook: Webhook) -> list[int]:
    """Deliver until the receiver has stored the webhook. Return the statuses of all answers."""
    statuses: list[int] = []

    def stored() -> bool:
        statuses.append(receiver.deliver(webhook).status)
        assert statuses[-1] in (200, 202, 503), statuses
        return statuses[-1] != 503

    eventually(stored, 60, what=f"{webhook.delivery} is stored")
    return statuses


def _wait_until_done(under_way: list[Future[list[int]]], wanted: int) -> None:
    eventually(lambda: sum(future.done() for future in under_way) >= wanted, what=f"{wanted} deliveries are answered")


@pytest.mark.slow
def test_each_delivery_sent_twice_at_once_is_stored_once_though_the_daemon_is_killed(
    daemon: Daemon, receiver: Receiver
) -> None:
    deliveries = webhooks(9, 150)
    assert all(5_000 <= len(webhook.body) <= 30_000 for webhook in deliveries)
    with ThreadPoolExecutor(16) as pool:
        under_way = [pool.submit(_deliver_until_stored, receiver, webhook) for w in deliveries for webhook in (w, w)]
        for wanted in (30, 60, 90, 120):
            _wait_until_done(under_way, wanted)
            daemon.kill()
            # Looked at while there is no daemon: it may take its time to start.
            assert not all(future.done() for future in under_way), "all were stored before the kill; send more"
            daemon.start()
        statuses = Counter(future.result()[-1] for future in under_way)
    # If the client had to repeat a send, the first answer may already be "duplicate". Then both answers are 200.
    assert statuses[202] + statuses[200] == 300
    assert 0 < statuses[202] <= 150
    stored = {message["id"]: message["body"] for message in _stored(daemon)}
    assert stored == {webhook.delivery: webhook.body for webhook in deliveries}
    with eoq.connect(daemon.socket) as client:
        (queue,) = client.ask("queues")["queues"]
    assert queue["leased"] == 150
