"""A program that changes its working folder: relative paths still mean the files that they meant before."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import eoq
from tests.support import Daemon, read_line_of, running_daemon


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """A daemon in whose folder the test begins. There is a folder ``other`` to change to."""
    with running_daemon() as daemon:
        (daemon.folder / "other").mkdir()
        monkeypatch.chdir(daemon.folder)
        yield daemon


def test_a_client_finds_its_socket_again(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    with eoq.connect("s") as client:
        client.send("q", "a")
        monkeypatch.chdir("other")
        daemon.restart()
        client.send("q", "b")
        assert client.path == daemon.socket


def test_an_asyncio_client_finds_its_socket_again(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    async def send() -> None:
        async with eoq.connect_async("s") as client:
            await client.send("q", "a")
            monkeypatch.chdir("other")
            await asyncio.to_thread(daemon.restart)
            await client.send("q", "b")

    asyncio.run(send())


def test_the_socket_of_the_environment_is_found_again(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EOQ_SOCKET", "s")
    with eoq.connect() as client:
        monkeypatch.chdir("other")
        client.send("q", "a")


def test_a_spool_stays_where_it_was(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = eoq.Spool("spool")
    spool.send("q", "a")
    monkeypatch.chdir("other")
    spool.send("q", "b")
    assert len(list((daemon.folder / "spool" / "q").iterdir())) == 2


def test_a_relay_and_an_asyncio_inbox_keep_their_file(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(sqlite3.connect(daemon.folder / "app.db")) as database:
        outbox = eoq.Outbox(database)

        async def run() -> None:
            async with eoq.connect_async(daemon.socket) as client:
                relay = eoq.Relay(Path("app.db"), client)
                inbox = eoq.AsyncInbox("app.db")
                monkeypatch.chdir("other")
                with database:
                    outbox.send("q", "a")
                assert await relay.flush() == 0
                async with inbox:
                    (message,) = await client.receive("q")

                    async def handle(_db: object, _message: eoq.AsyncMessage) -> None:
                        pass

                    await inbox.process(message, handle)

        asyncio.run(run())
        assert database.execute("select count(*) from eoq_processed").fetchone() == (1,)
    assert not list((daemon.folder / "other").iterdir())


def test_a_relative_socket_is_used_where_the_absolute_one_is_too_long(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = daemon.folder / ("d" * 100)
    deep.mkdir()
    (deep / "s").symlink_to(daemon.socket)
    monkeypatch.chdir(deep)
    with eoq.connect("s") as client:
        client.send("q", "a")


@pytest.mark.slow
def test_the_daemon_says_where_its_files_are(daemon: Daemon) -> None:
    shell = daemon.shell()
    process = shell.start("exec eoq daemon --db q.db --socket t --spool spool", stdout=subprocess.PIPE)
    try:
        assert read_line_of(process).startswith(b"ready")
        with eoq.connect("t") as client:
            status = client.ask("status")
        assert [status[name] for name in ("database", "socket", "spool")] == [
            str(daemon.folder / name) for name in ("q.db", "t", "spool")
        ]
    finally:
        process.terminate()
        process.communicate()
