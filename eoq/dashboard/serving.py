"""The dashboard as a server: it listens on loopback until it is stopped."""

from __future__ import annotations

import asyncio
import signal
import socket as sockets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import uvicorn

from ..client.aio import connect_async
from ..errors import InvalidRequest
from .gate import LOOPBACK, Gate
from .site import make_site
from .watch import Watch

PATIENCE: Final = 5.0
"""Seconds that a daemon may be away before the dashboard says so."""
CONNECTIONS: Final = 64
"""Connections and requests at once."""
HEAD: Final = 16_384
"""Bytes of the head of a request."""


async def serve(socket: str | None, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve the dashboard of the daemon on ``socket`` until SIGINT or SIGTERM.

    ``port`` 0 is any free one. ``ready`` is called with the URL, which has the token. Raises `InvalidRequest` where
    ``host`` is not loopback, or the port cannot be opened.
    """
    listener = listen(host, port)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    async with connect_async(socket, timeout=PATIENCE) as client, connect_async(socket, timeout=PATIENCE) as looking:
        watch = Watch(looking)
        gate = Gate(make_site(client, watch))
        server = _Server(_settings(gate))
        ends = asyncio.create_task(server.end_after(stopped, watch))
        asking = asyncio.create_task(watch.run())
        try:
            ready(f"http://{_shown(host)}:{listener.getsockname()[1]}/?token={gate.token}")
            await server.serve(sockets=[listener])
        finally:
            for task in (ends, asking):
                task.cancel()
            await asyncio.gather(ends, asking, return_exceptions=True)


class _Server(uvicorn.Server):
    """The server, without its own handling of signals, which would raise them once more at the end."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the handlers as they are: `serve` has installed its own."""
        yield

    async def end_after(self, stopped: asyncio.Event, watch: Watch) -> None:
        """End the streams, and let the server end."""
        await stopped.wait()
        watch.end()
        self.should_exit = True


def _settings(app: Gate) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        h11_max_incomplete_event_size=HEAD,
        timeout_graceful_shutdown=2,
    )


def listen(host: str, port: int) -> sockets.socket:
    """Open a port of loopback. Raises `InvalidRequest` for any other host, and where the port cannot be opened."""
    if host not in LOOPBACK:
        raise InvalidRequest(
            f"the dashboard is served on this machine only ({', '.join(LOOPBACK)}), not on {host!r}; from another "
            f"machine, use a tunnel: ssh -L 8080:127.0.0.1:PORT THIS-MACHINE"
        )
    address = "127.0.0.1" if host == "localhost" else host
    family = sockets.AF_INET6 if ":" in address else sockets.AF_INET
    try:
        return sockets.create_server((address, port), family=family)
    except OSError as error:
        raise InvalidRequest(f"the port {port} of {host} cannot be opened ({error.strerror}); choose another") from None


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
