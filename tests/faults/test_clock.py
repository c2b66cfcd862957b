"""Test wall clocks that jump by hours: a jump may shift a deadline, but never lose or double a message."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest

import eoq
from tests.faults.daemons import PlantedDaemon, ids_of, left, planted_daemon, settle_all
from tests.faults.planted_daemon import Plant
from tests.support import PATIENCE, eventually

HOUR: Final = 3600.0
JUMPS: Final = (3 * HOUR, -3 * HOUR)
SLACK: Final = PATIENCE
"""Seconds that a busy machine may add. A jump that shifts a wait shifts it by hours."""


class WrongClock:
    """The wall clock of a daemon, with an error that the test sets."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.set(0.0)

    def set(self, seconds: float) -> None:
        """Set the error of the clock."""
        new = self.file.with_suffix(".new")
        new.write_text(f"{seconds}")
        new.rename(self.file)


@pytest.fixture
def clock(folder: Path) -> WrongClock:
    """Return a clock without error."""
    return WrongClock(folder / "clock")


@pytest.fixture
def wrong(folder: Path, clock: WrongClock) -> Iterator[PlantedDaemon]:
    """Run a daemon with ``clock`` as its wall clock."""
    with planted_daemon(Plant(clock=str(clock.file)), folder) as daemon:
        yield daemon


@pytest.fixture
def client(wrong: PlantedDaemon) -> Iterator[eoq.Client]:
    """Return a client of that daemon."""
    with eoq.connect(wrong.socket) as client:
        yield client


@pytest.mark.first_by_default
@pytest.mark.parametrize("jump", JUMPS)
@pytest.mark.parametrize("asked", [True, False], ids=["request after the jump", "idle"])
def test_a_wait_takes_the_time_it_had_left(client: eoq.Client, clock: WrongClock, jump: float, asked: bool) -> None:
    """A delayed message is neither early nor hours late, whether or not a request follows the jump."""
    client.send("q", "x", id="nack")
    (message,) = client.receive("q")
    start = time.monotonic()
    client.send("q", "x", id="delay", delay=0.7)
    message.nack(delay=0.9)
    client.send("q", "x", id="an hour", delay=HOUR)
    clock.set(jump)
    delays = {"delay": 0.7, "nack": 0.9}
    if asked:
        client.send("q", "x", id="after", delay=0.3)
        delays["after"] = 0.3
    for _ in range(len(delays)):  # in any order: a busy machine may have let all of them become due
        (one,) = client.receive("q", wait=SLACK, lease=600)
        assert delays.pop(one.id) - 0.05 < time.monotonic() - start < SLACK
    assert left(client, "q") == {"delayed": 1, "leased": 3 if asked else 2}


@pytest.mark.parametrize("jump", JUMPS)
def test_a_ttl_is_not_changed_by_a_jump(client: eoq.Client, clock: WrongClock, jump: float) -> None:
    start = time.monotonic()
    client.send("q", "x", id="short", ttl=0.7)
    client.send("q", "x", id="long", ttl=HOUR)
    clock.set(jump)
    result = client.result("q", "short", wait=SLACK)
    assert result is not None and result.outcome == "expired"
    assert 0.65 < time.monotonic() - start < 0.7 + SLACK
    assert ids_of(client.receive("q", 10)) == ["long"]


@pytest.mark.parametrize("jump", JUMPS)
def test_a_key_stays_done_after_a_jump(client: eoq.Client, clock: WrongClock, jump: float) -> None:
    runs: list[int] = []

    def run() -> bytes:
        runs.append(1)
        return b"done"

    client.once("key", run, ttl=HOUR)
    clock.set(jump)
    assert client.once("key", run, ttl=HOUR) == b"done"
    assert len(runs) == 1


def test_at_means_the_time_of_the_clock(client: eoq.Client, clock: WrongClock) -> None:
    """A message with ``at`` is delivered when the clock shows that time, even if the clock was set."""
    client.send("q", "x", id="at", at=time.time() + HOUR)
    client.send("q", "x", id="delay", delay=HOUR)
    clock.set(3 * HOUR)
    client.ask("status")
    assert ids_of(client.receive("q", 10, wait=SLACK)) == ["at"]


def test_many_small_corrections_do_not_shift_a_delay(client: eoq.Client, clock: WrongClock) -> None:
    start = time.monotonic()
    client.send("q", "x", id="a", delay=0.5)
    for step in range(20):
        clock.set(-0.01 * step)
        client.ask("status")
    assert ids_of(client.receive("q", wait=SLACK)) == ["a"]
    assert time.monotonic() - start < 0.7 + SLACK


@pytest.mark.first_by_default
@pytest.mark.parametrize("jump", JUMPS)
def test_a_wait_takes_the_time_it_had_left_after_a_jump_while_the_daemon_is_down(
    wrong: PlantedDaemon, client: eoq.Client, clock: WrongClock, jump: float
) -> None:
    client.send("q", "x", id="soon", delay=0.2)
    client.send("q", "x", id="in an hour", delay=HOUR)
    before = client.ask("show", queue="q", id="in an hour")["message"]["due_at"]
    wrong.kill()
    clock.set(jump)
    wrong.start()
    assert ids_of(client.receive("q", wait=SLACK)) == ["soon"]
    assert left(client, "q") == {"delayed": 1, "leased": 1}
    after = client.ask("show", queue="q", id="in an hour")["message"]["due_at"]
    assert abs(after - before - jump) < SLACK
    assert "the clock was set by" in wrong.said


@pytest.mark.first_by_default
@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
def test_an_id_is_not_forgotten_when_a_clock_that_was_behind_is_set(
    wrong: PlantedDaemon, client: eoq.Client, clock: WrongClock, stopped: bool
) -> None:
    """A machine without a clock of its own starts days behind, and has the right time some seconds later."""
    clock.set(-8 * 24 * HOUR)
    wrong.restart()
    client.send("q", "x", id="a")
    client.receive("q")[0].ack(result="r")
    if stopped:
        wrong.terminate()
    clock.set(0.0)
    if not stopped:
        client.ask("status")
        client.send("other", "x")
        wrong.terminate()
    for _ in range(2):  # a round of retention begins at each start
        wrong.start()
        client.send("other", "x")
        assert client.send("q", "x", id="a").duplicate is True
        assert client.result("q", "a") == eoq.Result("done", b"r")
        wrong.terminate()
    wrong.start()


@pytest.mark.parametrize("jump", JUMPS)
def test_a_lease_ends_neither_early_nor_late(client: eoq.Client, clock: WrongClock, jump: float) -> None:
    client.send_many("q", [eoq.Outgoing("x", id="long"), eoq.Outgoing("x", id="short")])
    (long,) = client.receive("q", lease=600)
    start = time.monotonic()
    (short,) = client.receive("q", lease=0.5)
    clock.set(jump)
    (again,) = client.receive("q", wait=SLACK, lease=600)
    assert again.id == "short"
    assert 0.45 < time.monotonic() - start < 0.5 + SLACK
    with pytest.raises(eoq.LeaseLost):
        short.ack()
    long.extend(600)
    long.ack(result="r")
    again.ack()
    assert left(client, "q") == {}


@pytest.mark.parametrize("jump", JUMPS)
def test_a_receive_waits_as_long_as_asked(client: eoq.Client, clock: WrongClock, jump: float) -> None:
    start = time.monotonic()
    setting = threading.Timer(0.1, clock.set, (jump,))
    setting.start()
    assert client.receive("q", wait=0.5) == []
    assert 0.4 < time.monotonic() - start < 0.5 + SLACK
    setting.join()  # its folder is removed behind this test


@pytest.mark.first_by_default
@pytest.mark.parametrize("jump", JUMPS)
def test_a_settled_message_stays_known_after_a_jump(
    wrong: PlantedDaemon, client: eoq.Client, clock: WrongClock, jump: float
) -> None:
    client.send("q", "x", id="a")
    client.receive("q")[0].ack(result="r")
    clock.set(jump)
    for _ in range(2):
        assert client.send("q", "x", id="a").duplicate is True
        assert client.result("q", "a") == eoq.Result("done", b"r")
        assert client.receive("q") == []
        wrong.restart()


@pytest.mark.parametrize("jump", JUMPS)
def test_messages_are_delivered_in_the_order_of_storing_whatever_the_clock(
    client: eoq.Client, clock: WrongClock, jump: float
) -> None:
    sent = []
    for number in range(20):
        clock.set(jump * (number % 3))
        sent.append(client.send("q", "x", id=f"{number}", group="g" if number % 2 else None).id)
    assert ids_of(settle_all(client, "q"))[0] == "0"
    assert sent == sorted(sent, key=int)


@pytest.mark.slow
def test_every_message_is_settled_once_under_a_jumping_clock(
    wrong: PlantedDaemon, client: eoq.Client, clock: WrongClock
) -> None:
    """Send, delay, retry and kill while the clock keeps jumping."""
    rng = random.Random(7)
    sent: list[str] = []
    settled: list[str] = []
    for number in range(120):
        clock.set(rng.choice((0.0, 1.0, -1.0)) * rng.uniform(0, 5 * HOUR))
        delay = rng.choice((None, None, 0.01))
        sent.append(client.send("q", "x", id=f"{number}", delay=delay).id)
        settled += _settle_or_nack(client, rng)
        if number in (40, 80):
            wrong.restart()
    clock.set(6 * HOUR)
    wrong.restart()  # the clock is past every delay

    def drained() -> bool:
        settled.extend(ids_of(settle_all(client, "q")))
        return not left(client, "q")

    eventually(drained, what="every message is settled")
    assert sorted(settled) == sorted(sent)


def _settle_or_nack(client: eoq.Client, rng: random.Random) -> list[str]:
    """Receive a few messages, and ack or nack each by chance. Return the ids of those that were acked."""
    settled = []
    for message in client.receive("q", 3):
        with suppress(eoq.LeaseLost):
            if rng.random() < 0.3:
                message.nack(delay=rng.choice((0.0, 0.01)))
            else:
                message.ack()
                settled.append(message.id)
    return settled
