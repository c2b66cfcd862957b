"""Relays for the tests: a real `eoq relay`, and a socket on which requests are refused as a test wants."""

from __future__ import annotations

import asyncio
import itertools
import json
import select
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import eoq
from tests.support import PATIENCE, Daemon, kill_group

_count = itertools.count()
Refuse: TypeAlias = Callable[[Mapping[str, Any]], str | None]
"""Returns the code of the error to answer a request with, or None if the daemon may answer it."""


class RelayProcess:
    """A real `eoq relay` that runs. Its standard error is also written to the file ``errors``."""

    def __init__(self, process: subprocess.Popen[bytes], errors: Path) -> None:
        self.process = process
        self._errors = errors

    @property
    def said(self) -> str:
        return self._errors.read_text(errors="replace")

    def stop(self, seconds: float = PATIENCE) -> int:
        """Send SIGTERM, and return the exit status."""
        self.process.terminate()
        return self.process.wait(seconds)


@contextmanager
def relaying(daemon: Daemon, *files: Path | str, socket: Path | None = None) -> Iterator[RelayProcess]:
    """Run a real `eoq relay` of the files. At the end it must stop on SIGTERM, without a traceback."""
    errors = daemon.folder / f"relay-{next(_count)}.err"
    command = f"exec eoq relay {' '.join(map(str, files))} --socket {socket or daemon.socket} 2> >(tee {errors} >&2)"
    process = daemon.shell().start(command, stderr=subprocess.PIPE)
    assert process.stderr is not None
    relay = RelayProcess(process, errors)
    try:
        readable, _, _ = select.select([process.stderr], [], [], PATIENCE)
        assert readable, "it printed nothing"
        process.stderr.readline()
        # From now on the test reads the file. The pipe must be read too, or the relay would block.
        drain = threading.Thread(target=process.stderr.read, daemon=True)
        drain.start()
        yield relay
        if process.poll() is None:
            assert relay.stop() == 0, relay.said
        drain.join(PATIENCE)
        assert "Traceback" not in relay.said, relay.said
    finally:
        kill_group(process)
        process.wait()
        process.stderr.close()


def waiting(file: Path) -> int:
    """Return how many rows of an outbox are neither sent nor set aside."""
    with closing(sqlite3.connect(file, timeout=30)) as database:
        return int(database.execute("select count(*) from eoq_outbox where error is null").fetchone()[0])


def bodies(client: eoq.Client, queue: str, count: int) -> list[str]:
    """Receive and ack ``count`` messages of a queue, and return their bodies."""
    found: list[str] = []
    while len(found) < count:
        messages = client.receive(queue, count - len(found), PATIENCE)
        assert messages, f"only {found} came"
        for message in messages:
            found.append(message.text)
            message.ack()
    return found


@contextmanager
def refusing(daemon: Daemon, refuse: Refuse) -> Iterator[Path]:
    """Serve a socket that refuses requests as ``refuse`` says, and passes the others on to the daemon."""
    path = daemon.folder / "refusing"

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            from_daemon, to_daemon = await asyncio.open_unix_connection(str(daemon.socket), limit=2**26)
            while line := await reader.readline():
                request = json.loads(line)
                if (code := refuse(request)) is not None:
                    error = {"code": code, "message": "refused by the test"}
                    writer.write(json.dumps({"rid": request["rid"], "ok": False, "error": error}).encode() + b"\n")
                else:
                    to_daemon.write(line)
                    writer.write(await from_daemon.readline())
            to_daemon.close()
        writer.close()

    async def serve() -> None:
        async with await asyncio.start_unix_server(pass_on, str(path), limit=2**26):
            started.set()
            await stopped.wait()

    started = threading.Event()
    loop = asyncio.new_event_loop()
    stopped = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert started.wait(PATIENCE)
        yield path
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
