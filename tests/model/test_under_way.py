"""What happens while a commit is under way: waits end, connections end, other clients send requests."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from eoq.daemon import requests
from eoq.daemon.broker.broker import Broker
from eoq.daemon.broker.events import Events
from eoq.daemon.config.settings import QueueSettings
from eoq.daemon.services.once import OnceService
from eoq.daemon.session import Fields, Session
from eoq.daemon.store.commands import Command
from eoq.daemon.store.sqlite.store import SqliteStore
from eoq.errors import EoqError
from tests.model.hands import ManualClock


class SlowDaemon:
    """A daemon without a socket. The test moves its clock, and runs its commits."""

    def __init__(self, path: Path) -> None:
        self.clock = ManualClock()
        self.settings = QueueSettings()
        self._submitted: list[tuple[Command[Any], Callable[[Any], None]]] = []
        self._loop = asyncio.new_event_loop()
        self.store = self._loop.run_until_complete(SqliteStore.open(path, settings=lambda _: self.settings))
        self.broker = Broker(self, self.clock, life="e", events=Events(), settings=lambda _: self.settings)
        self.once = OnceService(self, self.clock)

    def close(self) -> None:
        self._loop.run_until_complete(self.store.close())
        self._loop.close()

    def submit(self, command: Command[Any], done: Callable[[Any], None], durable: bool = True) -> None:
        """Take a command from the broker, as the writer does."""
        self._submitted.append((command, done))

    def commit(self) -> None:
        """Commit the commands that were submitted until now, and answer them."""
        batch, self._submitted = self._submitted, []
        outcomes = self.store.transact([command for command, _ in batch])
        for (_, done), outcome in zip(batch, outcomes, strict=True):
            done(outcome)

    def rest(self) -> None:
        """Commit until nothing is under way."""
        while self._submitted:
            self.commit()

    def wait(self, seconds: float) -> None:
        """Let time pass and fire the timers that are due. Nothing is committed."""
        until = self.clock.monotonic() + seconds
        while (due := self.clock.next_due()) is not None and due <= until:
            self.clock.move_to(due)
            self.clock.fire()
        self.clock.move_to(until)

    def ask(self, session: Session, **fields: object) -> list[Fields | EoqError]:
        """Send a request. Its reply is in the returned list as soon as there is one."""
        request = requests.decode(json.dumps(fields).encode())
        handlers = {**self.broker.handlers, **self.once.handlers}
        replies: list[Fields | EoqError] = []
        handlers[type(request)](session, request, replies.append)
        return replies

    def end(self, session: Session) -> None:
        """End a connection."""
        session.close()


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[SlowDaemon]:
    daemon = SlowDaemon(tmp_path / "eoq.db")
    try:
        yield daemon
    finally:
        daemon.close()


def _once(slow: SlowDaemon, session: Session, token: str, **more: object) -> list[Fields | EoqError]:
    return slow.ask(session, **{"op": "once", "key": "k", "token": token, **more})


# ── once ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_wait_for_a_key_that_ends_while_the_store_is_asked_again_is_answered(slow: SlowDaemon) -> None:
    runner = Session()
    _once(slow, runner, "runner")
    waiting = _once(slow, Session(), "late", wait=1)
    slow.rest()
    _once(slow, runner, "runner", op="once_release")
    another = _once(slow, Session(), "another")
    slow.commit()  # the caller that waits asks the store again, too late
    slow.wait(2)
    assert waiting == []
    slow.rest()
    assert another == [{"state": "run"}]
    assert waiting == [{"state": "running"}]


def test_a_wait_for_a_key_counts_from_its_request(slow: SlowDaemon) -> None:
    _once(slow, Session(), "runner")
    waiting = _once(slow, Session(), "waits", wait=1)
    slow.wait(2)
    slow.rest()
    assert waiting == [{"state": "running"}]


@pytest.mark.parametrize("come_back_first", [True, False])
def test_a_runner_that_comes_back_while_its_first_connection_ends_stays_the_only_one(
    slow: SlowDaemon, come_back_first: bool
) -> None:
    first, second = Session(), Session()
    _once(slow, first, "mine")
    slow.rest()
    if come_back_first:
        back = _once(slow, second, "mine")
        slow.end(first)
    else:
        slow.end(first)
        back = _once(slow, second, "mine")
    slow.rest()
    assert back == [{"state": "run"}]
    other = _once(slow, Session(), "other")
    slow.rest()
    assert other == [{"state": "running"}]
    slow.end(second)
    again = _once(slow, Session(), "other")
    slow.rest()
    assert again == [{"state": "run"}]


def test_a_key_is_open_when_all_connections_of_its_runner_have_ended_in_any_order(slow: SlowDaemon) -> None:
    first, second, third = Session(), Session(), Session()
    for session in (first, second, third):
        _once(slow, session, "mine")
    slow.end(second)
    slow.commit()
    slow.end(first)
    slow.rest()
    other = _once(slow, Session(), "other")
    slow.rest()
    assert other == [{"state": "running"}]
    slow.end(third)
    slow.rest()
    other = _once(slow, Session(), "other")
    slow.rest()
    assert other == [{"state": "run"}]


def test_a_release_that_the_disk_refused_is_not_repeated_once_the_runner_is_back(slow: SlowDaemon) -> None:
    first, second = Session(), Session()
    _once(slow, first, "mine")
    slow.rest()
    slow.end(first)
    ((_, done),) = slow._submitted
    slow._submitted = []
    done(EoqError("the disk is full"))
    back = _once(slow, second, "mine")
    slow.rest()
    assert back == [{"state": "run"}]
    slow.wait(60)
    slow.rest()
    other = _once(slow, Session(), "other")
    slow.rest()
    assert other == [{"state": "running"}]


def test_all_callers_that_wait_for_a_key_are_answered_whatever_reply_the_first_gets(slow: SlowDaemon) -> None:
    runner, first = Session(), Session()
    _once(slow, runner, "runner")
    running = _once(slow, first, "first", fingerprint="b", wait=60)
    fingerprints = ["a", None, "b", "c", "a", None, "b"]
    waiting = [_once(slow, Session(), f"{n}", fingerprint=f, wait=60) for n, f in enumerate(fingerprints)]
    slow.rest()
    _once(slow, runner, "runner", op="once_release")
    slow.rest()
    assert running == [{"state": "run"}]
    _once(slow, first, "first", op="once_done", output="x")
    slow.rest()
    done = {"state": "done", "status": 0, "output_bytes": 1, "output": "x"}
    told = [reply.code if isinstance(reply, EoqError) else reply for (reply,) in waiting]
    assert told == ["id_conflict" if fingerprint in ("a", "c") else done for fingerprint in fingerprints]


def test_callers_that_wait_for_a_key_keep_their_order(slow: SlowDaemon) -> None:
    sessions = [Session() for _ in range(5)]
    waiting = [_once(slow, session, f"{n}", wait=60) for n, session in enumerate(sessions)]
    for number, session in enumerate(sessions):
        slow.rest()
        assert [len(replies) for replies in waiting] == [1] * (number + 1) + [0] * (4 - number)
        slow.end(session)


# ── receiving from a queue with limits ──────────────────────────────────────────────────────────────────────


def _receive(slow: SlowDaemon, wait: float = 0, limit: int = 1) -> list[Fields | EoqError]:
    return slow.ask(Session(), op="receive", queue="q", wait=wait, limit=limit)


def _send(slow: SlowDaemon, count: int) -> None:
    slow.ask(Session(), op="send_many", queue="q", messages=[{"body": ""}] * count)


def _count(replies: list[Fields | EoqError]) -> int:
    """Return how many messages the one reply has."""
    (reply,) = replies
    assert isinstance(reply, dict)
    return len(reply["messages"])


def test_a_raised_rate_applies_to_receivers_that_wait(slow: SlowDaemon) -> None:
    slow.settings = QueueSettings(rate=1 / 512)
    _send(slow, 2)
    assert _receive(slow) == []
    slow.rest()
    waiting = _receive(slow, wait=60)
    slow.rest()
    slow.settings = QueueSettings(rate=0.5)
    slow.broker.receivers.wake_all()
    slow.wait(3)
    slow.rest()
    assert _count(waiting) == 1


def test_an_alarm_that_rings_slightly_too_early_is_set_again(slow: SlowDaemon) -> None:
    """Real timers do that. A delivery that the rate allows a moment later must wake a receiver, too."""
    slow.settings = QueueSettings(rate=1)
    _send(slow, 2)
    first = _receive(slow)
    slow.rest()
    waiting = _receive(slow, wait=60)
    slow.rest()
    assert _count(first) == 1
    due = slow.clock.next_due()
    assert due is not None
    slow.clock.move_to(due - 0.5e-6)
    slow.clock.creeps = 1e-6
    slow.clock.fire()
    slow.clock.creeps = 0.0
    slow.wait(1)
    slow.rest()
    assert _count(waiting) == 1


def test_receivers_that_wait_at_an_empty_queue_with_a_rate_let_the_daemon_sleep(slow: SlowDaemon) -> None:
    slow.settings = QueueSettings(rate=64)
    slow.broker.start()
    waiting = [_receive(slow, wait=3000) for _ in range(4)]
    for _ in range(8):
        slow.rest()
        slow.wait(1 / 64)
    assert (slow.clock.next_due() or 0) - slow.clock.monotonic() > 50
    _send(slow, 4)
    for _ in range(8):
        slow.rest()
        slow.wait(1 / 64)
    slow.rest()
    assert [_count(replies) for replies in waiting] == [1] * 4


@pytest.mark.parametrize("settings", [QueueSettings(max_in_flight=3), QueueSettings(rate=1, burst=3)])
@pytest.mark.parametrize("wait", [0, 60])
def test_a_receive_gets_what_a_claim_under_way_leaves(slow: SlowDaemon, settings: QueueSettings, wait: float) -> None:
    slow.settings = settings
    _receive(slow)
    slow.rest()
    slow.wait(10)  # a rate may have saved up
    slow.ask(Session(), op="send_many", queue="q", messages=[{"body": "x" * 1_000_000}] * 3)
    slow.rest()
    first, second, third = (_receive(slow, wait, limit=10) for _ in range(3))
    slow.rest()
    assert (_count(first), _count(second)) == (2, 1)
    assert third == [] if wait else _count(third) == 0


def test_a_receive_is_answered_where_a_claim_under_way_finds_nothing(slow: SlowDaemon) -> None:
    slow.settings = QueueSettings(max_in_flight=1)
    waiting = _receive(slow, wait=60)
    at_once = [_receive(slow) for _ in range(3)]
    slow.rest()
    assert waiting == []
    assert [_count(replies) for replies in at_once] == [0, 0, 0]


@pytest.mark.slow
def test_many_leases_are_given_back_quickly_however_many_receivers_wait(slow: SlowDaemon) -> None:
    worker = Session()
    for _ in range(20):
        _send(slow, 1000)
        slow.ask(worker, op="receive", queue="q", limit=1000, bound=True)
    slow.rest()
    waiting = [_receive(slow, wait=60) for _ in range(4000)]
    slow.rest()
    assert slow.broker.leased == 20_000
    used = time.process_time()
    slow.end(worker)
    assert time.process_time() - used < 0.5  # a hundredth of that, where no lease looks through all receivers
    slow.rest()
    assert sum(_count(replies) for replies in waiting) == 4000
