"""What the benchmark needs of a peer: a program that keeps messages, and connections to it.

All peers are measured by the same code (``rows.py``), so they differ only in what stands in their own files.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

START_SECONDS = 20.0


class Absent(Exception):
    """The peer cannot be measured here. The text says what is missing."""


class Taken(NamedTuple):
    """A message that a consumer holds. ``key`` is what the peer wants back to ack it."""

    key: Any
    id: str
    body: bytes


class Connection(Protocol):
    """One client's connection. Each method returns when the peer has confirmed."""

    def send(self, body: bytes) -> None: ...
    def send_batch(self, bodies: Sequence[bytes]) -> None: ...
    def take(self, limit: int) -> list[Taken]:
        """Wait for messages, and return at most ``limit`` of them."""
        ...

    def ack(self, messages: Sequence[Taken]) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Running:
    """A peer that runs: how to connect, and which processes are its servers (none for a library)."""

    connect: Callable[[str], Connection]
    """Connect to the queue of this name. It also runs in other processes, so it can be pickled."""
    pids: tuple[int, ...] = ()
    shell: tuple[str, ...] | None = None
    """A shell command that sends one message to the queue ``shell``."""


class Peer(Protocol):
    """A peer: its name, and what it promises when it confirms a message."""

    name: str
    durability: str

    def run(self, folder: Path) -> Any:
        """Return a context manager that starts it in ``folder`` and yields `Running`. Raises `Absent`."""
        ...


@contextmanager
def server(command: Sequence[str], ready: Callable[[], bool], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the block ends. The block begins when ``ready`` returns True."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, **options
    )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise Absent(f"{command[0]} did not start")
            time.sleep(0.02)  # between two tries to connect
        yield process
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def free_port() -> int:
    """Return a TCP port of the loopback address that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def accepts(port: int) -> bool:
    """Return whether somebody accepts connections at a port of the loopback address."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
