"""A relay is killed at each point of a step, by an exit and by ``kill -9``. The next one sends each message once."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

import eoq
from tests.faults import planted_relay
from tests.faults.planted_relay import POINTS
from tests.support import PATIENCE, Daemon, clean_environment

RELAY: Final = Path(planted_relay.__file__)
MESSAGES: Final = 300
"""More than one batch."""


QUICK: Final = (("exit", "wal"), ("kill", "delete"))
"""The ends and journal modes of the default tests, which take turns. The slow tests have all of them at each point."""


@pytest.mark.parametrize(
    ("point", "how", "mode"),
    [
        pytest.param(point, how, mode, marks=() if (how, mode) == QUICK[number % 2] else pytest.mark.slow)
        for number, point in enumerate(POINTS)
        for how in ("exit", "kill")
        for mode in ("wal", "delete")
    ],
)
@pytest.mark.first_by_default
def test_a_killed_relay_loses_no_message_and_sends_none_twice(
    shared_daemon: Daemon, queue: str, tmp_path: Path, point: str, how: str, mode: str
) -> None:
    file = tmp_path / "app.db"
    with closing(sqlite3.connect(file)) as database:
        database.execute(f"pragma journal_mode = {mode}")
        box = eoq.Outbox(database)
        with database:
            ids = [box.send(queue, f"body {number}", group=str(number % 3)) for number in range(MESSAGES)]
    _die(shared_daemon, file, queue, point, how)
    with eoq.connect(shared_daemon.socket) as client:
        # Settled before the next relay starts: only the daemon's records can tell it that they arrived.
        arrived = _settle(client, queue)
        assert (arrived == []) is (POINTS.index(point) <= POINTS.index("marks are committed")) or (
            point == "the request has left"  # it may have arrived or not
        )
        asyncio.run(_relay(shared_daemon, file))
        arrived += _settle(client, queue)
    assert arrived == ids
    assert _rows(file) == (0, 0)


async def _relay(daemon: Daemon, file: Path) -> None:
    async with eoq.connect_async(daemon.socket) as client:
        assert await eoq.Relay(file, client).flush() == 0


def _die(daemon: Daemon, file: Path, queue: str, point: str, how: str) -> None:
    killed = subprocess.run(
        [sys.executable, str(RELAY), str(file), str(daemon.socket), queue, point, how],
        env=clean_environment(),
        cwd=file.parent,
        timeout=PATIENCE,
        check=False,
    )
    assert killed.returncode == (9 if how == "exit" else -9)


def _settle(client: eoq.Client, queue: str) -> list[str]:
    """Receive and ack all messages, and return their ids in the order in which they were stored."""
    settled: list[eoq.Message] = []
    while messages := client.receive(queue, 1000):
        client.ack_many([(message, None) for message in messages])
        settled.extend(messages)
    return [message.id for message in sorted(settled, key=lambda message: message.seq)]


def _rows(file: Path) -> tuple[int, int]:
    """Return how many rows are left, and how many marks."""
    with closing(sqlite3.connect(file)) as database:
        rows: tuple[int, int] = database.execute(
            "select (select count(*) from eoq_outbox), (select count(*) from eoq_outbox_sending)"
        ).fetchone()
    return rows
