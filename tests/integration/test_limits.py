"""Time to live, and the limits of queues, of the file and of the disk, with a real daemon and its configuration."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

import eoq
from tests.cases import one_in
from tests.support import PATIENCE, Daemon, Shell, eventually, running_daemon


@contextmanager
def _configured(folder: Path, text: str) -> Iterator[tuple[Daemon, eoq.Client]]:
    config = folder / "eoq.toml"
    config.write_text(text)
    with running_daemon("--config", str(config)) as daemon, eoq.connect(daemon.socket) as client:
        yield daemon, client


# ── time to live ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_message_whose_time_to_live_is_over_is_settled_as_expired(daemon: Daemon) -> None:
    with eoq.connect(daemon.socket) as client:
        client.send("q", "waits", id="waits", ttl=0.2)
        client.send("q", "delayed", id="delayed", ttl=0.2, delay=600)
        client.send("q", "lives", id="lives", ttl=600)
        for id in ("waits", "delayed"):
            result = client.result("q", id, wait=20)
            assert result is not None and result.outcome == "expired" and result.error is not None
            assert client.send("q", id, id=id).duplicate
        assert [message.id for message in client.receive("q", 10)] == ["lives"]


def test_a_leased_message_outlives_its_time_to_live_until_it_is_given_back(daemon: Daemon) -> None:
    with eoq.connect(daemon.socket) as client:
        client.send_many("q", [eoq.Outgoing(b"", id=id, ttl=2) for id in ("done", "failed")])
        client.send("q", b"", id="witness", ttl=2, delay=600)
        done, failed = client.receive("q", 2)
        assert client.result("q", "witness", wait=20) is not None  # their time to live is over as well
        done.ack("in time")
        failed.nack(delay=0)
        assert client.show("q", "done")["state"] == "done"
        assert client.show("q", "failed")["state"] == "expired"


@pytest.mark.parametrize("how", ["expired", "dropped"])
def test_what_may_have_taken_effect_is_not_called_undelivered(daemon: Daemon, folder: Path, how: str) -> None:
    """The worker is killed between its commit and its ack."""
    with eoq.connect(daemon.socket) as client, closing(sqlite3.connect(folder / "app.db")) as database:
        inbox = eoq.Inbox(database)
        for id in ("a", "never delivered"):
            client.send("q", b"", id=id, ttl=2 if how == "expired" else None)
        with eoq.connect(daemon.socket) as killed:
            (message,) = killed.receive("q", bound=True)
            killed.close()
            with pytest.raises(eoq.EoqError):
                inbox.process(message, lambda _tx, _message: None)
        assert inbox.seen("q", "a")
        if how == "dropped":
            eventually(lambda: client.show("q", "a")["state"] == "ready")
            client.purge("q")
        results = [client.result("q", id, wait=20) for id in ("a", "never delivered")]
        assert [result and result.outcome for result in results] == [how, how]
        assert [bool(result and "may have taken effect" in str(result.error)) for result in results] == [True, False]


def test_a_message_that_expired_while_the_daemon_was_down_is_not_delivered(daemon: Daemon) -> None:
    with eoq.connect(daemon.socket) as client:
        client.send("q", b"", id="short", ttl=0.05)
        client.send("q", b"", id="long")
        over = time.time() + 0.05
        daemon.kill()
        eventually(lambda: time.time() > over)
        daemon.restart()
        assert [message.id for message in client.receive("q", 10, wait=20)] == ["long"]


def test_the_settings_of_a_queue_set_a_time_to_live_and_what_follows_it(folder: Path) -> None:
    with _configured(folder, '[queues."short.*"]\nttl = 0.1\non_expiry = "dead"\n') as (_, client):
        client.send("short.q", "x", id="by the queue")
        client.send("short.q", "x", id="its own", ttl=600)
        result = client.result("short.q", "by the queue", wait=20)
        assert result is not None and result.outcome == "dead"
        # After a redrive the time to live no longer counts.
        assert client.redrive("short.q", everything=True).ids == ["by the queue"]
        assert {message.id for message in client.receive("short.q", 10)} == {"by the queue", "its own"}


def test_a_group_moves_on_when_a_message_expires(daemon: Daemon) -> None:
    with eoq.connect(daemon.socket) as client:
        client.send("q", b"", id="1", group="g", ttl=2, delay=600)
        client.send("q", b"", id="2", group="g")
        assert client.receive("q") == []
        assert [message.id for message in client.receive("q", wait=20)] == ["2"]


def test_a_live_message_is_delivered_from_behind_many_expired_ones(daemon: Daemon) -> None:
    with eoq.connect(daemon.socket) as client:
        client.pause("q")
        for _ in range(12):
            client.send_many("q", [eoq.Outgoing(b"", ttl=0.01)] * 250)
        client.send("q", b"", id="lives")
        daemon.kill()
        daemon.restart()
        client.resume("q")
        assert [message.id for message in client.receive("q", 10)] == ["lives"]


def test_the_time_to_live_of_an_outbox_row_counts_from_when_it_was_written(daemon: Daemon) -> None:
    path = daemon.folder / "app.db"
    connection = sqlite3.connect(path)
    outbox = eoq.Outbox(connection)
    with connection:
        outbox.send("q", "long", id="long", ttl=600)
        outbox.send("q", "over", id="over", ttl=30)
        connection.execute("update eoq_outbox set created_at = created_at - 60")
    assert daemon.shell().run(f"eoq relay {path} --until-empty").status == 0
    with eoq.connect(daemon.socket) as client:
        result = client.result("q", "over", wait=20)
        assert result is not None and result.outcome == "expired"
        (message,) = client.receive("q", 10)
        assert message.id == "long"
        shown = client.show("q", "long")
        assert shown["expires_at"] == pytest.approx(shown["enqueued_at"] + 540, abs=10)


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), 1e12, "5", True])
def test_a_time_to_live_out_of_bounds_is_refused(shared_daemon: Daemon, ttl: float) -> None:
    with eoq.connect(shared_daemon.socket) as client, pytest.raises(eoq.InvalidRequest, match="ttl"):
        client.send("q", b"", ttl=ttl)


# ── limits of queues ────────────────────────────────────────────────────────────────────────────────────────


def test_a_full_queue_refuses_sends_and_settling_makes_room(folder: Path) -> None:
    with _configured(folder, "[queues.q]\nmax_depth = 3\n[queues.b]\nmax_bytes = 10\n") as (daemon, client):
        client.send_many("q", [eoq.Outgoing(b"", id=str(number)) for number in range(3)])
        with pytest.raises(eoq.QueueFull, match="max_depth"):
            client.send("q", b"", id="3")
        with pytest.raises(eoq.QueueFull):
            client.send_many("q", [eoq.Outgoing(b"", id="0"), eoq.Outgoing(b"", id="3")])
        assert client.send("q", b"", id="0").duplicate  # a repeated send is answered, however full it is
        (message,) = client.receive("q")
        with pytest.raises(eoq.QueueFull):
            client.send("q", b"", id="3")  # leased messages count
        daemon.kill()
        daemon.restart()
        with pytest.raises(eoq.QueueFull):
            client.send("q", b"", id="3")
        (message,) = client.receive("q")
        message.ack(send=[eoq.Outgoing(b"", id="3", queue="q")])  # the ack makes room for it
        (message,) = client.receive("q")
        message.reject()
        client.send("q", b"", id="4")  # dead letters do not count
        client.send("b", b"12345678")
        with pytest.raises(eoq.QueueFull, match="max_bytes"):
            client.send("b", b"123")
        client.send("b", b"12")


def test_a_queue_that_drops_its_oldest_keeps_the_newest(folder: Path) -> None:
    with _configured(folder, '[queues.q]\nmax_depth = 3\nwhen_full = "drop_oldest"\n') as (_, client):
        client.send("q", b"", id="leased", priority=1)
        client.receive("q")
        client.send_many("q", [eoq.Outgoing(b"", id=str(number), priority=-number) for number in range(5)])
        assert [message["id"] for message in client.peek("q")] == ["3", "4"]
        assert client.show("q", "0")["state"] == "dropped"
        result = client.result("q", "2")
        assert result is not None and result.outcome == "dropped" and "full" in str(result.error)
        assert len(client.receive("q", 10)) == 2
        with pytest.raises(eoq.QueueFull, match="nothing older"):
            client.send("q", b"")  # all are leased


def test_a_queue_over_a_lowered_limit_drops_messages_in_steps(folder: Path) -> None:
    with _configured(folder, '[queues.q]\nwhen_full = "drop_oldest"\n') as (_, client):
        client.send_many("q", [b""] * 3000)
        (folder / "eoq.toml").write_text('[queues.q]\nmax_depth = 10\nwhen_full = "drop_oldest"\n')

        def waiting() -> int:
            client.send("q", b"")
            (state,) = client.queues()
            return int(state["ready"])

        depths = [eventually(lambda: (depth := waiting()) < 3000 and depth)]
        while depths[-1] > 10:
            depths.append(waiting())
        assert all(before - after < 1001 for before, after in pairwise(depths))
        assert len(depths) >= 3


def test_no_more_messages_are_in_flight_than_its_settings_allow(folder: Path) -> None:
    with _configured(folder, "[queues.q]\nmax_in_flight = 2\n") as (daemon, client):
        client.send_many("q", [eoq.Outgoing(b"", id=str(number)) for number in range(6)])
        first, second = client.receive("q", limit=10)
        assert client.receive("q", limit=10) == []
        with ThreadPoolExecutor(1) as thread, eoq.connect(daemon.socket) as another:
            waiting = thread.submit(another.receive, "q", 10, 60)
            eventually(lambda: daemon.ask(op="status")["waiting"] == 1)
            first.ack()
            assert [message.id for message in waiting.result(20)] == ["2"]
        second.nack(delay=600)
        assert [message.id for message in client.receive("q", limit=10)] == ["3"]


def test_deliveries_keep_to_the_rate_of_their_queue(folder: Path) -> None:
    with _configured(folder, "[queues.q]\nrate = 20\nburst = 3\n") as (_, client):
        client.send_many("q", [b""] * 20)
        start = time.monotonic()
        moments: list[float] = []
        while len(moments) < 15:
            for message in client.receive("q", limit=5, wait=20):
                message.ack()
                moments.append(time.monotonic() - start)
        # It begins with one delivery, and saves up three at most. The others come at the rate.
        for number, moment in enumerate(moments):
            assert number + 1 <= 3 + 20 * (moment + 0.05), moments
        assert 0.5 <= moments[-1] < PATIENCE
        client.send("unlimited", b"")
        assert client.receive("unlimited")


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["max_in_flight = 1", "rate = 50"])
def test_several_workers_share_the_limits_of_a_queue(folder: Path, setting: str) -> None:
    with _configured(folder, f"[queues.q]\n{setting}\n") as (daemon, client):
        ids = [str(number) for number in range(20)]
        with ThreadPoolExecutor(4) as threads:

            def work() -> list[str]:
                done = []
                with eoq.connect(daemon.socket) as another:
                    for message in another.consume("q", idle=2):
                        message.ack()
                        done.append(message.id)
                return done

            # They are there before the workers: each of those ends when nothing has come for a while.
            client.send_many("q", [eoq.Outgoing(b"", id=id) for id in ids])
            workers = [threads.submit(work) for _ in range(4)]
            done = [id for worker in workers for id in worker.result(60)]
        assert sorted(done, key=int) == ids


# ── limits of the file and of the disk ──────────────────────────────────────────────────────────────────────


def test_a_full_file_refuses_sends_and_still_settles(folder: Path) -> None:
    with _configured(folder, "[storage]\nmax_file_bytes = 2000000\n") as (_, client):
        sent = []

        def fill() -> bool:
            try:
                sent.append(client.send("q", os.urandom(50_000)).id)
            except eoq.StorageFull as error:
                assert "max_file_bytes" in str(error)
                return True
            return False

        eventually(fill)
        assert len(sent) > 10
        received = []
        while messages := client.receive("q", 100):
            received += [message.id for message in messages]
            client.ack_many([(message, None) for message in messages])
        assert received == sent
        # The settled messages have made room.
        eventually(lambda: _sends(client))


def test_the_last_space_on_the_disk_is_kept_for_settling(folder: Path) -> None:
    free = os.statvfs(folder)
    more = free.f_bavail * free.f_frsize + (1 << 40)
    with _configured(folder, "") as (daemon, client):
        client.send("q", b"", id="before")
        daemon.terminate()
        (folder / "eoq.toml").write_text(f"[storage]\nmin_free_bytes = {more}\n")
        daemon.restart()
        assert client.send("q", b"", id="before").duplicate
        with pytest.raises(eoq.StorageFull, match="min_free_bytes"):
            client.send("q", b"")
        (message,) = client.receive("q")
        message.ack()
        ran = daemon.shell().run("eoq send q hi")
        assert ran.status == 75 and "free some space" in ran.errors


def _sends(client: eoq.Client) -> bool:
    try:
        client.send("q", b"")
    except eoq.StorageFull:
        return False
    return True


@pytest.mark.parametrize(
    "setting",
    one_in(
        3,
        [
            "max_depth = 0",
            "max_bytes = -1",
            "max_in_flight = 0",
            "rate = 0",
            "rate = nan",
            "burst = 0",
            "ttl = 0",
            'on_expiry = "explode"',
            'when_full = "panic"',
            "retry_factor = 0.5",
            "retry_base = -1",
            "retry_jitter = 2",
            "max_attempts = 0",
            "max_depth = 1.5",
            'max_depth = "3"',
        ],
    ),
)
@pytest.mark.first_by_default
def test_a_setting_out_of_bounds_is_named(folder: Path, setting: str) -> None:
    config = folder / "eoq.toml"
    config.write_text(f"[queues.q]\n{setting}\n")
    ran = Shell(folder / "none", folder).run(f"eoq daemon --db {folder}/eoq.db --config {config}")
    assert ran.status == 65
    assert f"queues.q.{setting.partition(' ')[0]}" in ran.errors


def test_bindings_and_limits_follow_the_configuration(folder: Path) -> None:
    """They do so while the daemon runs, without any signal."""
    config = folder / "eoq.toml"
    with _configured(folder, "[queues.q]\nmax_in_flight = 1\n") as (daemon, client):
        client.send_many("q", [b""] * 3)
        assert len(client.receive("q", 10)) == 1
        with ThreadPoolExecutor(1) as thread, eoq.connect(daemon.socket) as another:
            waiting = thread.submit(another.receive, "q", 10, 60)
            eventually(lambda: daemon.ask(op="status")["waiting"] == 1)
            config.write_text('[queues.q]\nmax_in_flight = 2\n[[bind]]\ntopic = "t"\nqueue = "bound"\n')
            assert len(waiting.result(20)) == 1
        eventually(client.topics)
        client.send("t", "x")
        assert [message.text for message in client.receive("bound")] == ["x"]
        config.write_text("")
        eventually(lambda: not client.topics())
        client.send("t", "y")
        assert client.receive("bound") == []


def test_the_backoff_between_retries_follows_the_settings(folder: Path) -> None:
    text = "[queues.q]\nretry_first = 200\nretry_base = 400\nretry_factor = 3\nretry_cap = 500\nretry_jitter = 0\n"
    with _configured(folder, text) as (_, client):
        client.send("q", b"", id="m")
        waits = []
        for _ in range(4):
            (message,) = client.receive("q", wait=20)
            message.nack()
            shown = client.show("q", "m")
            waits.append(shown["due_at"] - shown["failed_at"])
            client.edit("q", "m", delay=0)
        assert waits == pytest.approx([200, 400, 500, 500])


@pytest.mark.slow
def test_the_copies_of_one_request_are_limited(daemon: Daemon) -> None:
    with eoq.connect(daemon.socket) as client:
        for number in range(15):
            client.bind("topic", f"q{number}")
        large = b"x" * (1024 * 1024)
        with pytest.raises(eoq.InvalidRequest, match="send fewer at once"), client.transaction() as transaction:
            for _ in range(2):
                transaction.send("topic", large)
        client.send("topic", large)
        assert [queue["ready"] for queue in client.queues()] == [1] * 15
