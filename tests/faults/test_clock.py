"""A wall clock that jumps by hours, both ways: it may shift a deadline, but never lose or double a message."""

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
from tests.support import eventually

HOUR: Final = 3600.0
JUMPS: Final = (3 * HOUR, -3 * HOUR)
SLACK: Final = 2.0
"""Seconds a loaded machine may add."""


class WrongClock:
    """The wall clock of a daemon, and how wrong it is."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.set(0.0)

    def set(self, seconds: float) -> None:
        """Lets it be wrong by so much, from now on."""
        new = self.file.with_suffix(".new")
        new.write_text(f"{seconds}")
        new.rename(self.file)


@pytest.fixture
def clock(folder: Path) -> WrongClock:
    """A clock that is right."""
    return WrongClock(folder / "clock")


@pytest.fixture
def wrong(folder: Path, clock: WrongClock) -> Iterator[PlantedDaemon]:
    """A daemon that goes by ``clock``."""
    with planted_daemon(Plant(clock=str(clock.file)), folder) as daemon:
        yield daemon


@pytest.fixture
def client(wrong: PlantedDaemon) -> Iterator[eoq.Client]:
    """A client of it."""
    with eoq.connect(wrong.socket) as client:
        yield client


def test_a_delayed_message_comes_no_later_when_the_clock_jumps_ahead(client: eoq.Client, clock: WrongClock) -> None:
    start = time.monotonic()
    client.send("q", "x", id="a", delay=0.7)
    clock.set(3 * HOUR)
    assert ids_of(client.receive("q", wait=10)) == ["a"]
    assert time.monotonic() - start < 0.7 + SLACK


def test_a_clock_that_was_set_back_for_a_while_loses_no_delayed_message(
    wrong: PlantedDaemon, client: eoq.Client, clock: WrongClock
) -> None:
    """It shifts what is due, by as much as it was set back; it delivers nothing early."""
    client.send("q", "x", id="a", delay=0.3)
    clock.set(-3 * HOUR)
    client.send("q", "x", id="b", delay=0.3)
    (b,) = client.receive("q", wait=10)
    b.ack()
    assert b.id == "b"
    assert left(client, "q") == {"delayed": 1}
    clock.set(0.0)
    wrong.restart()
    assert ids_of(client.receive("q", wait=10)) == ["a"]


def test_a_clock_that_was_set_back_for_a_while_makes_no_later_message_late(
    client: eoq.Client, clock: WrongClock
) -> None:
    """The daemon goes by the clock it has now, not by when it planned to look again."""
    clock.set(-3 * HOUR)
    client.send("q", "x", id="a", delay=HOUR)
    clock.set(0.0)
    start = time.monotonic()
    client.send("q", "x", id="b", delay=0.3)
    messages = client.receive("q", 10, wait=5)
    assert time.monotonic() - start < 0.3 + SLACK
    assert sorted(ids_of(messages)) == ["a", "b"]


@pytest.mark.parametrize("jump", JUMPS)
def test_a_jump_between_two_lives_loses_no_delayed_message(
    wrong: PlantedDaemon, client: eoq.Client, clock: WrongClock, jump: float
) -> None:
    client.send("q", "x", id="soon", delay=0.2)
    client.send("q", "x", id="in an hour", delay=HOUR)
    wrong.kill()
    clock.set(jump)
    wrong.start()
    if jump > 0:  # it has been down for hours, as far as anyone can tell
        due = [client.receive("q", wait=10)[0].id, client.receive("q", wait=10)[0].id]
        assert due == ["soon", "in an hour"]
        return
    assert left(client, "q") == {"delayed": 2}
    wrong.kill()
    clock.set(2 * HOUR)
    wrong.start()
    assert sorted(client.receive("q", wait=10)[0].id for _ in range(2)) == ["in an hour", "soon"]


@pytest.mark.parametrize("jump", JUMPS)
def test_a_lease_neither_ends_early_nor_late(client: eoq.Client, clock: WrongClock, jump: float) -> None:
    client.send_many("q", [eoq.Outgoing("x", id="long"), eoq.Outgoing("x", id="short")])
    (long,) = client.receive("q", lease=30)
    (short,) = client.receive("q", lease=0.5)
    start = time.monotonic()
    clock.set(jump)
    (again,) = client.receive("q", wait=10)
    assert again.id == "short"
    assert 0.3 < time.monotonic() - start < 0.5 + SLACK
    with pytest.raises(eoq.LeaseLost):
        short.ack()
    long.extend(30)
    long.ack(result="r")
    again.ack()
    assert left(client, "q") == {}


@pytest.mark.parametrize("jump", JUMPS)
def test_a_wait_is_as_long_as_it_is(client: eoq.Client, clock: WrongClock, jump: float) -> None:
    start = time.monotonic()
    threading.Timer(0.1, clock.set, (jump,)).start()
    assert client.receive("q", wait=0.5) == []
    assert 0.4 < time.monotonic() - start < 0.5 + SLACK


@pytest.mark.parametrize("jump", JUMPS)
def test_what_was_settled_is_known_on_both_sides_of_a_jump(
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
def test_order_is_that_of_storing_whatever_the_clock_said(client: eoq.Client, clock: WrongClock, jump: float) -> None:
    sent = []
    for number in range(20):
        clock.set(jump * (number % 3))
        sent.append(client.send("q", "x", id=f"{number}", group="g" if number % 2 else None).id)
    assert ids_of(settle_all(client, "q"))[0] == "0"
    assert sent == sorted(sent, key=int)


def test_everything_at_once_under_a_jumping_clock_happens_once(
    wrong: PlantedDaemon, client: eoq.Client, clock: WrongClock
) -> None:
    """Sends, delays, retries and kills, while the clock jumps all the time."""
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
    wrong.restart()  # the clock is ahead of everything that was delayed

    def drained() -> bool:
        settled.extend(ids_of(settle_all(client, "q")))
        return not left(client, "q")

    eventually(drained, what="all is settled")
    assert sorted(settled) == sorted(sent)


def _settle_or_nack(client: eoq.Client, rng: random.Random) -> list[str]:
    settled = []
    for message in client.receive("q", 3):
        with suppress(eoq.LeaseLost):
            if rng.random() < 0.3:
                message.nack(delay=rng.choice((0.0, 0.01)))
            else:
                message.ack()
                settled.append(message.id)
    return settled
