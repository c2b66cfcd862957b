"""Relays for the tests: a real `eoq relay`, and a wire on which a daemon seems to refuse what a test wants."""

from __future__ import annotations

import asyncio
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

Refuse: TypeAlias = Callable[[Mapping[str, Any]], str | None]
"""The code of the error to answer a request with, or None where the daemon may answer it."""


class RelayProcess:
    """A real `eoq relay` that runs. What it said stands in ``errors``, up to now or as a whole once it has ended."""

    def __init__(self, process: subprocess.Popen[bytes], errors: Path) -> None:
        self.process = process
        self._errors = errors

    @property
    def said(self) -> str:
        return self._errors.read_text(errors="replace")

    def stop(self, seconds: float = PATIENCE) -> int:
        """SIGTERM; its exit status."""
        self.process.terminate()
        return self.process.wait(seconds)


@contextmanager
def relaying(daemon: Daemon, *files: Path, socket: Path | None = None) -> Iterator[RelayProcess]:
    """A real `eoq relay` of the files. At the end it must stop when told to, without a traceback."""
    errors = daemon.folder / f"relay-{threading.get_ident()}-{len(list(daemon.folder.iterdir()))}.err"
    command = f"exec eoq relay {' '.join(map(str, files))} --socket {socket or daemon.socket} 2> >(tee {errors} >&2)"
    process = daemon.shell().start(command, stderr=subprocess.PIPE)
    assert process.stderr is not None
    relay = RelayProcess(process, errors)
    try:
        readable, _, _ = select.select([process.stderr], [], [], PATIENCE)
        assert readable, "it said nothing"
        process.stderr.readline()
        # What it says from now on is read from its file; a pipe that nobody reads would stop it.
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
    """How many rows of an outbox are not sent and not set aside."""
    with closing(sqlite3.connect(file, timeout=30)) as database:
        return int(database.execute("select count(*) from eoq_outbox where error is null").fetchone()[0])


def bodies(client: eoq.Client, queue: str, count: int) -> list[str]:
    """The next ``count`` messages of a queue, acked."""
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
    """A socket before the daemon's, on which requests are refused as ``refuse`` says. The rest passes."""
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
