"""A spool while the daemon refuses messages, for now or always, of one queue or all, and when a reply is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import eoq
from eoq.daemon.services.spool import spool_queue as queues
from eoq.spool.sender import Spooled, send_or_spool
from tests.integration.relays import refusing
from tests.integration.spools import arrivals, put, reading, rejected, texts, waiting, within
from tests.support import PATIENCE, Daemon


@pytest.fixture
def client(shared_daemon: Daemon) -> Iterator[eoq.Client]:
    """A client of the file's daemon."""
    with eoq.connect(shared_daemon.socket) as client:
        yield client


def _queues(request: Mapping[str, Any]) -> set[str]:
    return {message["queue"] for message in request.get("send", ())}


def _bodies(request: Mapping[str, Any]) -> set[str]:
    return {message["body"] for message in request.get("send", ())}


def test_a_full_queue_waits_and_other_queues_go_on(
    shared_daemon: Daemon, client: eoq.Client, queue: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = f"{queue}-other"
    full = True
    for number in range(10):
        put(folder / "spool", queue, f"{number}", f"{number}")

    def refuse(request: Mapping[str, Any]) -> str | None:
        return "queue_full" if full and queue in _queues(request) else None

    async def read(socket: Path) -> None:
        nonlocal full
        async with reading(folder / "spool", socket):
            await within(lambda: "waiting, since" in caplog.text)
            put(folder / "spool", other, "x", "other")
            await within(lambda: waiting(folder / "spool", other) == [])
            assert len(waiting(folder / "spool", queue)) == 10
            full = False
            await within(lambda: waiting(folder / "spool", queue) == [])

    with refusing(shared_daemon, refuse) as socket:
        asyncio.run(read(socket))
    assert texts(arrivals(client, other, 1)) == ["other"]
    assert texts(arrivals(client, queue, 10)) == [f"{number}" for number in range(10)]


@pytest.mark.parametrize("code", ["storage_full", "overloaded", "storage_failed", "internal_error"])
@pytest.mark.first_by_default
def test_all_files_wait_while_the_daemon_refuses_everything_and_none_is_rejected(
    shared_daemon: Daemon, client: eoq.Client, queue: str, folder: Path, code: str
) -> None:
    """This is so even if ids are forgotten at once, since what was refused was not stored."""
    left = 3

    def refuse(request: Mapping[str, Any]) -> str | None:
        nonlocal left
        left -= 1
        return code if left >= 0 else None

    for number in range(10):
        put(folder / "spool", queue, f"{number}", f"{number}")

    async def read(socket: Path) -> None:
        async with reading(folder / "spool", socket, lambda _: 0.0) as reader:
            await within(lambda: (reader.counts.stored, reader.counts.rejected) == (10, 0))
            assert waiting(folder / "spool", queue) == []

    with refusing(shared_daemon, refuse) as socket:
        asyncio.run(read(socket))
    assert texts(arrivals(client, queue, 10)) == [f"{number}" for number in range(10)]


def test_a_file_refused_for_long_gets_a_new_token_before_the_next_try(
    shared_daemon: Daemon, client: eoq.Client, queue: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queues, "RENEW_SECONDS", 0.0)
    tried: list[set[str]] = []

    def refuse(request: Mapping[str, Any]) -> str | None:
        tried.append({message["id"] for message in request.get("send", ())})
        return "storage_full" if len(tried) < 3 else None

    for number in range(10):
        put(folder / "spool", queue, f"{number}", f"{number}")

    async def read(socket: Path) -> None:
        async with reading(folder / "spool", socket):
            await within(lambda: waiting(folder / "spool", queue) == [])

    with refusing(shared_daemon, refuse) as socket:
        asyncio.run(read(socket))
    assert len(set().union(*tried)) == 30
    assert texts(arrivals(client, queue, 10)) == [f"{number}" for number in range(10)]


def test_files_that_are_always_refused_are_found_among_the_others(
    shared_daemon: Daemon, client: eoq.Client, queue: str, folder: Path
) -> None:
    bad = {"3", "50", "51", "99"}
    for number in range(100):
        put(folder / "spool", queue, f"{number:02d}", f"{number}")

    async def read(socket: Path) -> None:
        async with reading(folder / "spool", socket) as reader:
            await within(lambda: (reader.counts.stored, reader.counts.rejected) == (96, 4))
            assert waiting(folder / "spool", queue) == []

    with refusing(shared_daemon, lambda request: "invalid_request" if bad & _bodies(request) else None) as socket:
        asyncio.run(read(socket))
    assert rejected(folder / "spool", queue, "03") == "invalid_request: refused by the test\n"
    good = [f"{number}" for number in range(100) if f"{number}" not in bad]
    assert texts(arrivals(client, queue, 96)) == good


async def test_files_whose_reply_was_lost_are_sent_again_under_the_same_ids(
    shared_daemon: Daemon, client: eoq.Client, queue: str, folder: Path
) -> None:
    """The first socket stores the messages and does not answer. The second is the daemon."""
    for number in range(10):
        put(folder / "spool", queue, f"{number}", f"{number}")

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_daemon, to_daemon = await asyncio.open_unix_connection(str(shared_daemon.socket))
        to_daemon.write(await reader.readline())
        await from_daemon.readline()
        to_daemon.close()
        writer.close()
        server.close()

    server = await asyncio.start_unix_server(pass_on, str(folder / "mute"))
    async with reading(folder / "spool", folder / "mute"):
        stored = await asyncio.to_thread(client.receive, queue, 10, PATIENCE)
        assert len(stored) == 10
    await asyncio.to_thread(client.ack_many, [(message, None) for message in stored])
    assert len(waiting(folder / "spool", queue)) == 10
    async with reading(folder / "spool", shared_daemon.socket) as reader:
        await within(lambda: (reader.counts.stored, reader.counts.rejected) == (10, 0))
        assert waiting(folder / "spool", queue) == []
    assert client.receive(queue) == []


# ── those that send ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
async def test_a_send_whose_reply_was_lost_is_spooled_and_stored_once(
    shared_daemon: Daemon, client: eoq.Client, queue: str, folder: Path
) -> None:
    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.close()
        from_daemon, to_daemon = await asyncio.open_unix_connection(str(shared_daemon.socket))
        to_daemon.write(await reader.readline())
        await from_daemon.readline()
        to_daemon.close()
        writer.close()

    def send() -> list[eoq.Sent | Spooled]:
        with eoq.connect(folder / "mute", timeout=3.0) as mute:
            return list(send_or_spool(mute, eoq.Spool(folder / "spool"), queue, [f"{n}" for n in range(300)]))

    server = await asyncio.start_unix_server(pass_on, str(folder / "mute"), limit=2**20)
    sent = await asyncio.to_thread(send)
    assert len(sent) == 300
    assert all(isinstance(one, Spooled) for one in sent)
    # The 250 of the first request have arrived.
    stored = await asyncio.to_thread(client.receive, queue, 1000, PATIENCE)
    assert [message.id for message in stored] == [one.id for one in sent[:250]]
    await asyncio.to_thread(client.ack_many, [(message, None) for message in stored])
    assert all(b'"tried_at":' in path.read_bytes() for path in (folder / "spool" / queue).iterdir())
    async with reading(folder / "spool", shared_daemon.socket):
        await within(lambda: waiting(folder / "spool", queue) == [])
    assert texts(await asyncio.to_thread(arrivals, client, queue, 50)) == [f"{number}" for number in range(250, 300)]


def test_without_a_daemon_a_spooled_file_has_no_time_of_a_try(folder: Path) -> None:
    """So the file may wait for any time."""
    with eoq.connect(folder / "nobody") as client:
        (left,) = send_or_spool(client, eoq.Spool(folder / "spool"), "q", ["x"])
    (file,) = (folder / "spool" / "q").iterdir()
    assert file.read_text() == f'{{"id":"{left.id}"}}\nx'
