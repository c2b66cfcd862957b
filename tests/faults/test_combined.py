"""All features together on the way of one message, with kills: its effect is there once."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

import eoq
from tests.support import Daemon, eventually, running_daemon

CONFIG = """
[queues."pay.*"]
max_attempts = 2
max_in_flight = 2
max_depth = 100
rate = 200
burst = 10
retry_first = 0.1

[[relay]]
path = "shop.db"

[[bind]]
topic = "payments"
queue = "pay.eu"
headers = { region = "eu" }

[[bind]]
topic = "payments"
queue = "pay.all"
"""


@contextmanager
def _shop(folder: Path) -> Iterator[Daemon]:
    (folder / "eoq.toml").write_text(CONFIG)
    with running_daemon("--config", str(folder / "eoq.toml")) as daemon:
        yield daemon


def _orders(path: Path, count: int) -> None:
    """Write orders to the outbox, to a topic, with delay, priority, group and time to live. Roll back every third."""
    with closing(sqlite3.connect(path)) as database:
        outbox = eoq.Outbox(database)
        for number in range(count):
            with suppress(OSError), database:
                outbox.send(
                    "payments",
                    {"order": number},
                    id=f"order-{number}",
                    headers={"region": "eu" if number % 2 else "us"},
                    priority=number % 3,
                    group=f"account-{number % 4}",
                    delay=0.2 + number % 2 / 10,
                    ttl=3600,
                )
                if number % 3 == 2:
                    raise OSError("the application gives up")


@pytest.mark.slow
def test_each_feature_works_with_every_other(folder: Path) -> None:
    count = 24
    committed = [n for n in range(count) if n % 3 != 2]
    with _shop(folder) as daemon:
        _orders(folder / "shop.db", count)
        with eoq.connect(daemon.socket) as client, eoq.Inbox(folder / "ledger.db") as inbox:
            eventually(lambda: client.topics())
            daemon.kill()  # some may be sent by now
            daemon.restart()
            eventually(lambda: sum(_counts(client, "pay.all").values()) == len(committed))

            def book(tx: sqlite3.Connection, message: eoq.Message) -> str:
                tx.execute("create table if not exists effect (queue, id, at)")
                tx.execute("insert into effect values (?, ?, ?)", (message.queue, message.id, time.time()))
                return "booked"

            # All fail until they are dead. Half of them have their effect by then, since only the ack is lost.
            for queue in ("pay.eu", "pay.all"):
                while counts := {state: n for state, n in _counts(client, queue).items() if state != "dead"}:
                    for message in client.receive(queue, 10, wait=0.5):
                        if int(message.json()["order"]) % 2:
                            with suppress(eoq.LeaseLost):
                                _process_and_lose_the_ack(inbox, message, book)
                        with suppress(eoq.LeaseLost):
                            message.nack(error="no")
                    assert counts
            daemon.kill()
            daemon.restart()
            for queue in ("pay.eu", "pay.all"):
                dead = client.peek(queue, "dead", limit=100)
                assert all(len(client.show(queue, m["id"])["history"]) == 2 for m in dead)
                assert len(client.redrive(queue, everything=True).ids) == len(dead)
                order: dict[str, list[int]] = {}
                while any(_counts(client, queue).values()):
                    for message in client.receive(queue, 10, wait=0.5):
                        order.setdefault(str(message.group), []).append(int(message.json()["order"]))
                        inbox.process(message, book)
                assert all(numbers == sorted(numbers) for numbers in order.values())
        with closing(sqlite3.connect(folder / "ledger.db")) as database:
            effects = database.execute("select queue, id from effect").fetchall()
    expected = [("pay.all", f"order-{n}") for n in committed] + [("pay.eu", f"order-{n}") for n in committed if n % 2]
    assert sorted(effects) == sorted(expected)


def _process_and_lose_the_ack(inbox: eoq.Inbox, message: eoq.Message, book: object) -> None:
    class LosesAcks:
        """A client whose connection ends before the ack."""

        def ack(self, *_: object) -> None:
            raise eoq.LeaseLost("the ack was lost")

    inbox.process(replace(message, settler=LosesAcks()), book)  # type: ignore[arg-type] # it has what is used


def _counts(client: eoq.Client, queue: str) -> dict[str, int]:
    states = ("ready", "leased", "delayed", "blocked", "dead")
    return next(
        ({state: row[state] for state in states if row[state]} for row in client.queues() if row["name"] == queue), {}
    )
