"""The server of ``GET /metrics``, on a loopback port or a Unix socket, where the configuration asks for it.

It speaks as much of HTTP/1.1 as Prometheus needs: one request on each connection. Everything else gets a short error.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from pathlib import Path
from typing import Final

from ....errors import EoqError
from ...config.model import Config, loopback_of
from ...server.sockets import listen
from .metrics import Metrics
from .text import CONTENT_TYPE

log = logging.getLogger("eoq.metrics")

MAX_HEAD: Final = 8192
"""Bytes of a request."""
MAX_CONNECTIONS: Final = 16
"""Connections at once. A further one ends the oldest: who has asked for nothing, or has gone, keeps nobody out."""
REQUEST_SECONDS: Final = 5.0
"""How long a client may take to send its request."""
REPLY_SECONDS: Final = 30.0
"""How long a client may take to read the reply."""
HOSTS: Final = re.compile(r"(?:localhost|127\.[0-9.]+|\[::1\])(?::\d+)?\Z", re.IGNORECASE)
"""The names under which a browser or Prometheus may ask for a port, so that no page of another site can."""


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: str, text: str, *headers: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.headers = headers


class MetricsServer:
    """The listener that the configuration names, if any. A path is relative to ``folder``."""

    def __init__(self, metrics: Metrics, folder: Path) -> None:
        self._metrics = metrics
        self._folder = folder
        self._server: asyncio.Server | None = None
        self._path: Path | None = None
        self._listen: str | None = None
        self._change: asyncio.Task[None] | None = None
        self._clients: dict[asyncio.Task[object], None] = {}
        """The tasks of the connections, the oldest first."""

    def follow(self, _old: Config, new: Config) -> None:
        """Listen where ``new`` says so, and nowhere else."""
        if new.metrics.listen != self._listen:
            self._listen = new.metrics.listen
            self._change = asyncio.get_running_loop().create_task(self._move(self._change))

    async def stop(self) -> None:
        """Listen no more, and end the connections."""
        if self._change is not None:
            await self._change
        self._close()

    async def _move(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await before
        self._close()
        address = self._listen
        if address is None:
            return
        try:
            port = loopback_of(address)
            if port is None:
                self._path = self._folder / address
                self._server = await asyncio.start_unix_server(self._serve, sock=listen(self._path), limit=MAX_HEAD)
            else:
                self._server = await asyncio.start_server(self._serve, *port, limit=MAX_HEAD)
        except (OSError, EoqError) as error:
            self._path = None
            log.error("the metrics are not served on %s: %s; free it, or change [metrics] listen", address, error)
        else:
            log.info("the metrics are served on %s", address)

    def _close(self) -> None:
        for client in self._clients:
            client.cancel()
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()
            self._path = None

    # ── one request ─────────────────────────────────────────────────────────────────────────────────────

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 # a server runs this as a task
        if len(self._clients) >= MAX_CONNECTIONS:
            oldest = next(iter(self._clients))
            del self._clients[oldest]
            oldest.cancel()
        self._clients[task] = None
        try:
            await self._answer(reader, writer)
            writer.close()
        except (OSError, TimeoutError, asyncio.CancelledError):
            writer.transport.abort()  # the client has gone or is too slow, or the daemon stops
        except Exception as error:  # noqa: BLE001 # whatever a scrape does, it must not end the daemon
            log.warning("the metrics could not be sent: %s", error)
            writer.transport.abort()
        finally:
            self._clients.pop(task, None)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                request = await _read_head(reader)
            _check(request, on_port=self._path is None)
        except Refused as refused:
            body = refused.text.encode() + b"\n"
            head = [f"HTTP/1.1 {refused.status}", "Content-Type: text/plain; charset=utf-8", *refused.headers]
            head += [f"Content-Length: {len(body)}", "Connection: close", "", ""]
            writer.write("\r\n".join(head).encode() + body)
        else:
            await self._write_metrics(writer, packed=_takes_gzip(request))
        async with asyncio.timeout(REPLY_SECONDS):
            await writer.drain()

    async def _write_metrics(self, writer: asyncio.StreamWriter, packed: bool) -> None:
        """Write the text in chunks, one for each slice. Without the last chunk, a client knows that it is not whole."""
        head = ["HTTP/1.1 200 OK", f"Content-Type: {CONTENT_TYPE}", "Transfer-Encoding: chunked", "Connection: close"]
        if packed:
            head.append("Content-Encoding: gzip")
        writer.write("\r\n".join([*head, "", ""]).encode())
        async with asyncio.timeout(REPLY_SECONDS), contextlib.aclosing(self._metrics.parts(packed)) as parts:
            async for part in parts:
                if writer.transport.is_closing():
                    raise ConnectionResetError("the client has gone")  # its transport would raise another error
                if part:
                    writer.write(b"%x\r\n%s\r\n" % (len(part), part))
                    await writer.drain()
        writer.write(b"0\r\n\r\n")


async def _read_head(reader: asyncio.StreamReader) -> list[str]:
    """Return the lines of a request, without its body. Raises `Refused`."""
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        raise Refused("431 Request Header Fields Too Large", f"a request has {MAX_HEAD} bytes at most") from None
    except asyncio.IncompleteReadError:
        raise Refused("400 Bad Request", "the request ended before an empty line") from None
    return raw.decode("latin-1").split("\r\n")


def _check(lines: list[str], *, on_port: bool) -> None:
    """Raise `Refused` unless a request asks for the metrics."""
    method, _, rest = lines[0].partition(" ")
    target, _, version = rest.partition(" ")
    if version != "HTTP/1.1":
        raise Refused("400 Bad Request", "the first line is no request of HTTP/1.1")
    hosts = [value.strip() for name, _, value in (line.partition(":") for line in lines[1:]) if name.lower() == "host"]
    if on_port and not all(HOSTS.match(host) for host in hosts):
        raise Refused("403 Forbidden", "ask for 127.0.0.1, [::1] or localhost, not another name of this machine")
    if target.partition("?")[0] != "/metrics":
        raise Refused("404 Not Found", "there is only /metrics")
    if method != "GET":
        raise Refused("405 Method Not Allowed", "only GET is allowed", "Allow: GET")


def _takes_gzip(lines: list[str]) -> bool:
    """Return whether a request says that its answer may be packed."""
    for name, _, value in (line.partition(":") for line in lines[1:]):
        if name.lower() == "accept-encoding":
            for one in value.lower().split(","):
                coding, _, quality = one.replace(" ", "").partition(";q=")
                if coding == "gzip" and (not quality or quality.strip("0.")):
                    return True
    return False
