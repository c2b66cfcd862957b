"""Waiting requests: their order, their timers, and how little it costs when clients leave."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import pytest

from eoq.daemon.broker.wait_list import Waiter, WaitList
from eoq.daemon.session import Session
from tests.model.hands import ManualClock

MOST_SECONDS: Final = 5.0
"""For 100,000 waiters: at least ten times what it takes. If each looked through the others, it would take hours."""


class Waits:
    """A list, and what it tells."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.expired: list[Waiter] = []
        self.emptied: list[object] = []
        self.list: WaitList[Waiter] = WaitList(
            self.clock, self.expired.append, lambda waiter: self.emptied.append(waiter.key)
        )

    def join(
        self, key: str = "q", session: Session | None = None, name: object = None, *, first: bool = False
    ) -> Waiter:
        waiter = Waiter(session=session or Session(), reply=lambda _: None, key=key, name=name)
        self.list.join(waiter, first=first)
        return waiter


@pytest.fixture
def waits() -> Waits:
    return Waits()


def test_waiters_of_a_key_are_in_the_order_in_which_they_joined(waits: Waits) -> None:
    first, other, second = waits.join(), waits.join("other"), waits.join()
    before = waits.join(first=True)
    assert list(waits.list.line("q")) == [before, first, second]
    assert list(waits.list.line("other")) == [other]
    assert list(waits.list.line("none")) == []
    assert waits.list.count == 4
    assert [waits.list.pop_first("q") for _ in range(4)] == [before, first, second, None]
    assert waits.list.all_waiters() == [other]


def test_a_waiter_leaves_once_and_the_last_one_empties_its_line(waits: Waits) -> None:
    first, second = waits.join(), waits.join()
    assert waits.list.leave(first)
    assert not waits.list.leave(first)
    assert not first.joined and second.joined
    assert waits.emptied == []
    assert waits.list.leave(second)
    assert waits.emptied == ["q"]
    assert waits.list.count == 0


def test_the_time_of_a_waiter_is_over_unless_it_has_left(waits: Waits) -> None:
    left, popped, stays = waits.join(), waits.join(), waits.join()
    for waiter in (left, popped, stays):
        waits.list.start_timer(waiter, 5.0)
    waits.list.leave(left)
    assert waits.list.pop_first("q") is popped
    waits.clock.move_to(waits.clock.monotonic() + 5.0)
    while waits.clock.waits:
        waits.clock.fire()
    assert waits.expired == [popped, stays], "the time of a waiter that was taken out goes on"


def test_waiters_are_found_by_name(waits: Waits) -> None:
    one, two = waits.join(name="a"), waits.join("other", name="a")
    waits.join(name="b")
    waits.join()
    assert waits.list.named("a") == [one, two]
    waits.list.leave(one)
    assert waits.list.named("a") == [two]
    assert waits.list.named("none") == []


def test_waiters_leave_with_their_connection(waits: Waits) -> None:
    closing, open_session = Session(), Session()
    mine = [waits.join(key, closing) for key in ("q", "other")]
    waits.list.start_timer(mine[0], 5.0)
    stays = waits.join(session=open_session)
    closing.close()
    assert closing.closed
    assert not any(waiter.joined for waiter in mine)
    assert waits.list.all_waiters() == [stays]
    assert waits.emptied == ["other"]
    assert waits.clock.next_due() is None


def _leave(waits: Waits, waiters: list[Waiter]) -> None:
    for waiter in waiters:
        waits.list.leave(waiter)


def _pop(waits: Waits, waiters: list[Waiter]) -> None:
    for _ in waiters:
        waits.list.pop_first("q")


def _cancel(waits: Waits, waiters: list[Waiter]) -> None:
    for waiter in waiters:
        (found,) = waits.list.named(waiter.name)
        waits.list.leave(found)


def _close(waits: Waits, waiters: list[Waiter]) -> None:
    for waiter in waiters:
        waiter.session.close()


@pytest.mark.slow
@pytest.mark.parametrize("end", [_leave, _pop, _cancel, _close])
@pytest.mark.parametrize("one_connection", [False, True])
@pytest.mark.parametrize("many", [30_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_many_waiters_leave_in_little_time(
    waits: Waits, end: Callable[[Waits, list[Waiter]], None], one_connection: bool, many: int
) -> None:
    """In an order that takes from the front, from the middle and from the end."""
    session = Session() if one_connection else None
    waiters = [waits.join(session=session, name=number) for number in range(many)]
    waiters = waiters[::2] + waiters[:0:-2]
    used = time.process_time()
    end(waits, waiters)
    assert time.process_time() - used < MOST_SECONDS * many / 100_000
    assert waits.list.count == 0
