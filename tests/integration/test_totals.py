"""Totals: what each queue has stored, delivered and ended is counted once, and survives restarts and deletions."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest

import eoq
from tests.integration.clients import AnyClient
from tests.support import Daemon, eventually, running_daemon


def _nonzero(counts: dict[str, int]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count}


def _queue(client: AnyClient, name: str) -> dict[str, Any]:
    (found,) = [row for row in client.queues() if row["name"] == name]
    return found


def _totals(client: AnyClient, name: str) -> dict[str, int]:
    return _nonzero(_queue(client, name)["totals"])


def test_each_way_of_a_message_is_counted(client: AnyClient, queue: str) -> None:
    client.send_many(queue, [eoq.Outgoing(id, id=id) for id in ("a", "b", "c", "d", "e")])
    client.send(queue, "a", id="a")
    with suppress(eoq.IdConflict):
        client.send(queue, "other", id="a")
    done, again, dead, *_ = client.receive(queue, 3)
    client.ack(done)
    client.nack(again, delay=600)
    client.reject(dead)
    client.send(queue, "short", id="short", ttl=0.01)
    eventually(lambda: client.result(queue, "short"))
    client.purge(queue)
    client.drop(queue, [dead.id])
    found = _queue(client, queue)
    expected = {
        "sent": 6,
        "duplicates": 1,
        "conflicts": 1,
        "delivered": 3,
        "done": 1,
        "retried": 1,
        "dead": 1,
        "expired": 1,
        "dropped": 4,
    }
    assert _nonzero(found["totals"]) == expected
    assert found["totals"] == found["since_start"]


def test_a_settle_that_is_refused_counts_nothing_but_the_refusal(client: AnyClient, queue: str) -> None:
    client.send(queue, "1", id="a")
    client.send(f"{queue}.next", "1", id="taken")
    (message,) = client.receive(queue)
    with suppress(eoq.IdConflict):
        client.ack(message, send=[eoq.Outgoing("2", queue=f"{queue}.next", id="taken")])
    assert _totals(client, queue) == {"sent": 1, "delivered": 1}
    assert _totals(client, f"{queue}.next") == {"sent": 1, "conflicts": 1}
    client.ack(message, send=[eoq.Outgoing("2", queue=f"{queue}.next", id="new")])
    assert _totals(client, queue) == {"sent": 1, "delivered": 1, "done": 1}
    assert _totals(client, f"{queue}.next") == {"sent": 2, "conflicts": 1}


def test_a_queue_that_is_full_counts_what_it_refused(folder: Path) -> None:
    config = folder / "eoq.toml"
    config.write_text('[queues."*"]\nmax_depth = 2\n')
    with running_daemon("--config", str(config)) as daemon, eoq.connect(daemon.socket) as client:
        client.send_many("q", ["1", "2"])
        for _ in range(3):
            with suppress(eoq.QueueFull):
                client.send("q", "3")
        (row,) = client.queues()
        assert _nonzero(row["totals"]) == {"sent": 2, "refused": 3}


def test_totals_survive_a_stop_and_mostly_a_kill(daemon: Daemon, connect: Callable[..., AnyClient]) -> None:
    client = connect(daemon.socket)
    client.send_many("q", ["1", "2", "3"])
    client.receive("q")
    assert daemon.terminate() == 0
    daemon.start()
    found = _queue(client, "q")
    assert _nonzero(found["totals"]) == {"sent": 3, "delivered": 1}
    assert _nonzero(found["since_start"]) == {}
    client.send("q", "4")
    with closing(sqlite3.connect(f"file:{daemon.db}?mode=ro", uri=True)) as file:
        # A timer writes them: nothing else follows.
        eventually(lambda: file.execute("select sent from total").fetchone() == (4,))
    daemon.kill()
    daemon.start()
    assert _totals(client, "q") == {"sent": 4, "delivered": 1}


def test_a_kill_counts_what_was_being_handled_as_retried(daemon: Daemon, connect: Callable[..., AnyClient]) -> None:
    client = connect(daemon.socket)
    client.send_many("q", ["1", "2"])
    client.receive("q", 2)
    daemon.kill()
    daemon.start()
    assert _queue(client, "q")["since_start"]["retried"] == 2
    assert client.status()["since_start"]["retried"] == 2


def test_the_totals_of_a_deleted_queue_stay_in_the_sum(daemon: Daemon, connect: Callable[..., AnyClient]) -> None:
    client = connect(daemon.socket)
    client.send_many("gone", ["1", "2"])
    client.send("stays", "1")
    client.purge("gone")
    client.delete_queue("gone", forget_ids=True)
    for _ in range(2):
        assert [row["name"] for row in client.queues()] == ["stays"]
        assert _nonzero(client.status()["totals"]) == {"sent": 3, "dropped": 2}
        daemon.terminate()
        daemon.start()
    client.send("gone", "1")
    assert _totals(client, "gone") == {"sent": 1}, "a queue of the same name is another one"


def test_latencies_are_measured(daemon: Daemon, connect: Callable[..., AnyClient]) -> None:
    client = connect(daemon.socket)
    client.send("q", "1")
    (message,) = client.receive("q")
    client.ack(message)
    latencies = client.status()["latencies"]
    assert latencies["waiting"]["count"] == latencies["handling"]["count"] == 1
    assert latencies["commit"]["count"] >= 2
    assert 0 < latencies["sync"]["sum"] <= latencies["commit"]["sum"]
    assert 0 < latencies["commit"]["p50"] <= latencies["commit"]["p99"] < 60
    bound, below = latencies["handling"]["buckets"][-1]
    assert (bound < 60, below) == (True, 1)


def test_consumers_are_connections_that_have_asked(daemon: Daemon) -> None:
    with eoq.connect(daemon.socket) as looker:
        looker.send("q", "1")
        with daemon.wire() as one, daemon.wire() as other:
            one.send({"op": "receive", "queue": "q", "limit": 10})
            one.read()
            other.send({"op": "receive", "queue": "q", "wait": 60})
            eventually(lambda: looker.queues()[0]["waiting"] == 1)
            assert looker.queues()[0]["consumers"] == 2
        eventually(lambda: looker.queues()[0]["consumers"] == 0)


@pytest.mark.slow
def test_thousands_of_queues_are_listed_and_no_send_waits_for_it(daemon: Daemon) -> None:
    """Each listing is long work, and a send comes between its slices."""
    queues = 3000
    with daemon.wire() as wire, daemon.wire() as other:
        for start in range(0, queues, 500):
            wire.send(*({"op": "send", "queue": f"q{n}", "body": "x", "rid": n} for n in range(start, start + 500)))
            for _ in range(500):
                wire.read()

        def answered_before(*requests: dict[str, object]) -> int:
            """Return how many sends of another client are answered while the daemon works on these requests."""
            wire.send(*requests)
            answered = 0
            while wire.silent(0):
                assert other.ask({"op": "send", "queue": "q0", "body": "y"})["ok"]
                answered += 1
            return answered

        answered_before({"op": "metrics", "rid": 1}, {"op": "queues", "rid": 2})
        first, second = sorted((wire.read(), wire.read()), key=itemgetter("rid"))
        assert first["text"].count("eoq_queue_consumers{") == queues
        assert len(second["queues"]) == queues
        for _ in range(10):  # this process may sleep until the list is there, but not each time
            answered = answered_before({"op": "queues"})
            assert len(wire.read()["queues"]) == queues
            if answered >= 5:
                break
        else:
            raise AssertionError(f"only {answered} sends were answered meanwhile")
