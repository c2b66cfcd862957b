"""A receiver of GitHub's webhooks. It stores each delivery once, and answers when the delivery is on disk.

The message's id is the delivery's id (X-GitHub-Delivery). So a delivery that GitHub repeats is a duplicate. The body is
stored byte for byte. The event's name and the content type become headers of the message.

    WEBHOOK_SECRET=… python examples/webhook_receiver.py --port 8080 --queue webhooks
    curl http://127.0.0.1:8080/ -H 'X-GitHub-Delivery: d-1' -H 'X-GitHub-Event: ping' --data '{"zen": "…"}'
    eoq receive webhooks --ack

| status | means |
|---|---|
| 202 | the delivery is on disk |
| 200 | it was on disk before: a duplicate, or a retry of the client after the daemon was killed |
| 400 | the delivery id is missing or invalid, or the request is not a webhook |
| 401 | the signature (X-Hub-Signature-256) is missing or wrong; checked only if WEBHOOK_SECRET is set |
| 408 | the sender was too slow |
| 409 | this delivery id is stored with another body |
| 411 | the request has no Content-Length |
| 413 | the body is too large |
| 503 | the daemon is away or its disk is full; Retry-After says after how many seconds to try again |

It expects a reverse proxy on this machine that handles TLS.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import io
import os
import socket as sockets
import sys
import threading
import time
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import eoq

MAX_BODY = 1024 * 1024
"""Largest body in bytes: the limit of an eoq message."""
MAX_DRAINED = 64 * MAX_BODY
"""How many bytes of a refused body to read and discard, so that the sender can read the answer."""
DAEMON_SECONDS = 5.0
"""How long to wait for a daemon that is away. GitHub waits 10 seconds for an answer."""
RETRY_AFTER_SECONDS = 5
MAX_CONNECTIONS = 64
"""Requests at once. Further connections wait to be accepted. Together with `MAX_BODY` this limits the memory."""


class SlowSender(io.RawIOBase):
    """The reading side of a connection. One deadline applies to headers and body together."""

    def __init__(self, connection: sockets.socket, deadline: float) -> None:
        self._connection = connection
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        # A time-out of zero would make the socket non-blocking.
        self._connection.settimeout(max(self._deadline - time.monotonic(), 0.001))
        try:
            return self._connection.recv_into(buffer)
        except ConnectionError:
            return 0  # the sender has closed the connection: end of file


class Refused(Exception):
    """A request that gets an error status. ``unread`` is true if its body has not been read."""

    def __init__(self, status: HTTPStatus, why: str, *, unread: bool = False) -> None:
        super().__init__(why)
        self.status = status
        self.unread = unread


class Receiver(ThreadingHTTPServer):
    """The server, and the objects that its requests share."""

    request_queue_size = 128
    daemon_threads = True

    def __init__(
        self, address: tuple[str, int], client: eoq.Client, queue: str, secret: bytes | None, seconds: float
    ) -> None:
        super().__init__(address, Delivery)
        self.seconds = seconds
        self.client = client
        self.queue = queue
        self.secret = secret
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._free.acquire()
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()


class Delivery(BaseHTTPRequestHandler):
    """One webhook. HTTP/1.0 has one request per connection, so one deadline covers both."""

    server: Receiver

    def setup(self) -> None:
        super().setup()
        self.rfile = io.BufferedReader(SlowSender(self.connection, time.monotonic() + self.server.seconds))

    def do_POST(self) -> None:
        try:
            body = self._read_body()
            self._check_signature(body)
            duplicate = self._store(body)
        except Refused as refused:
            self._answer(refused.status, str(refused))
            if refused.unread:
                self._drain()
        else:
            self._answer(HTTPStatus.OK if duplicate else HTTPStatus.ACCEPTED, "duplicate" if duplicate else "stored")

    def _read_body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "send the body with its Content-Length", unread=True)
        if len(length) > 15 or int(length) > MAX_BODY:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body may have {MAX_BODY:,} bytes", unread=True)
        try:
            body = self.rfile.read(int(length))
        except TimeoutError as error:
            raise Refused(
                HTTPStatus.REQUEST_TIMEOUT, f"send the whole request within {self.server.seconds:g} s"
            ) from error
        if len(body) < int(length):
            raise Refused(HTTPStatus.BAD_REQUEST, "the body is shorter than its Content-Length")
        return body

    def _check_signature(self, body: bytes) -> None:
        if self.server.secret is None:
            return
        expected = "sha256=" + hmac.new(self.server.secret, body, hashlib.sha256).hexdigest()
        given = self.headers.get("X-Hub-Signature-256", "")
        # Compare bytes: compare_digest refuses text that is not ASCII, and a sender may send any text.
        if not hmac.compare_digest(expected.encode(), given.encode(errors="replace")):
            raise Refused(HTTPStatus.UNAUTHORIZED, "X-Hub-Signature-256 is missing or wrong")

    def _store(self, body: bytes) -> bool:
        """Store the delivery. Return whether it was stored before.

        Headers are part of the content, and the same id with other content is a conflict. So only headers that are
        the same in every repetition are stored.
        """
        delivery = self.headers.get("X-GitHub-Delivery")
        if not delivery:
            raise Refused(HTTPStatus.BAD_REQUEST, "X-GitHub-Delivery is missing")
        named = {"content-type": "Content-Type", "x-github-event": "X-GitHub-Event"}
        headers = {name: value for name, header in named.items() if (value := self.headers.get(header))}
        try:
            return self.server.client.send(self.server.queue, body, id=delivery, headers=headers).duplicate
        except eoq.IdConflict as error:
            raise Refused(HTTPStatus.CONFLICT, str(error)) from error
        except eoq.MessageTooLarge as error:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, str(error)) from error
        except eoq.InvalidRequest as error:
            raise Refused(HTTPStatus.BAD_REQUEST, str(error)) from error
        except eoq.EoqError as error:
            # The error names paths, so it goes to the log and not to the sender.
            self.log_error("%s", error)
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "the delivery cannot be stored now; try again") from error

    def _answer(self, status: HTTPStatus, text: str) -> None:
        body = text.encode() + b"\n"
        with suppress(OSError):  # the sender is gone, and repeats its delivery
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            if status == HTTPStatus.SERVICE_UNAVAILABLE:
                self.send_header("Retry-After", str(RETRY_AFTER_SECONDS))
            self.end_headers()
            self.wfile.write(body)

    def _drain(self) -> None:
        """Read the rest of the body. Closing with unread bytes would reset the connection before the answer arrives."""
        left = MAX_DRAINED
        with suppress(OSError):
            self.connection.shutdown(sockets.SHUT_WR)
            while left > 0 and (data := self.rfile.read1(64 * 1024)):
                left -= len(data)


def main() -> int:
    """Read the arguments. Return the exit status."""
    parser = argparse.ArgumentParser(description="Store GitHub's webhooks in a queue, each once.")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: 127.0.0.1)")
    parser.add_argument(
        "--port", type=int, default=8080, help="the port to listen on (default: 8080); 0 picks a free one"
    )
    parser.add_argument("--queue", default="webhooks", help="the queue to send to (default: webhooks)")
    parser.add_argument("--socket", help="the daemon's socket; else EOQ_SOCKET, else the user's default")
    parser.add_argument(
        "--timeout",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="time limit of a whole request (default: 10)",
    )
    arguments = parser.parse_args()
    secret = os.environ.get("WEBHOOK_SECRET")
    if not secret:
        print("WEBHOOK_SECRET is not set: signatures are not checked", file=sys.stderr)
    address = (arguments.host, arguments.port)
    key = os.fsencode(secret) if secret else None
    with (
        eoq.connect(arguments.socket, timeout=DAEMON_SECONDS) as client,
        Receiver(address, client, arguments.queue, key, arguments.timeout) as server,
    ):
        print(f"listening on http://{server.server_address[0]!s}:{server.server_address[1]}", flush=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
