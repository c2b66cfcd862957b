"""Each occurrence is stored once, and in time, whatever the clock does and whenever the daemon is killed.

The real scheduler and store, with a clock that the test owns. Hypothesis adds schedules, lets time pass, sets the wall
clock by hours both ways, kills the daemon, lets it be down, and has its queues refuse. What is stored is compared with
the occurrences as they can be counted by hand.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eoq.daemon import request_values, requests
from eoq.daemon.broker.broker import Broker
from eoq.daemon.broker.events import Events
from eoq.daemon.config.model import Config
from eoq.daemon.config.settings import StorageSettings, defaults
from eoq.daemon.records import DueSchedules, NewMessage, OccurrencePlan
from eoq.daemon.rules.schedule_rules import GRACE, Definition
from eoq.daemon.services import scheduler
from eoq.daemon.services.scheduler import LONGEST_TIMER, REFUSED_SECONDS, STEP, Scheduler
from eoq.daemon.session import Session
from eoq.daemon.store.commands import Command, Put, R
from eoq.daemon.store.schedule_commands import ReadDue, ScheduleShow, StoreOccurrences
from eoq.daemon.store.sqlite.store import SqliteStore
from eoq.errors import EoqError, IdConflict, InvalidRequest, NotFound, QueueFull
from eoq.ids import new_id
from eoq.protocol.codec import Fields, encode
from tests.model.hands import ManualClock

PATIENCE: Final = 5000
HOUR: Final = 3600.0
MESSAGES: Final = """
    select queue.name, message.id, message.enqueued_at
    from message
    join queue on queue.number = message.queue
    order by message.seq
    """


class Daemon:
    """A scheduler and its store, without a socket. Whatever is submitted is committed before the next."""

    def __init__(self, path: Path, clock: ManualClock, config: Config | None = None) -> None:
        self.clock = clock
        self.config = config or Config()
        self.told: list[str] = []
        """Queues in which messages arrived, once for each occurrence."""
        self._full = False
        self._path = path
        self._loop = asyncio.new_event_loop()
        self.running = False
        self.start()

    def start(self) -> None:
        self._submitted: list[tuple[Command[Any], Callable[[Any], None]]] = []
        self.store = self._loop.run_until_complete(SqliteStore.open(self._path, storage=self._storage))
        events = Events()
        events.on_stored.append(lambda queue, _count: self.told.append(queue))
        self.broker = Broker(self, self.clock, life="e", events=events)
        self.scheduler = Scheduler(self, self.broker.clock, self.broker.publisher, defaults)
        self.running = True
        self.scheduler.apply(self.config)
        self.rest()

    def _storage(self) -> StorageSettings:
        return StorageSettings(min_free_bytes=2**53) if self._full else StorageSettings()

    @property
    def full(self) -> bool:
        """Whether the disk has no room for sends, so that every occurrence is refused."""
        return self._full

    @full.setter
    def full(self, full: bool) -> None:
        self._full = full
        self.store.space.check_again()

    def kill(self) -> None:
        self.clock.forget()
        self.running = False
        self._loop.run_until_complete(self.store.close())

    def close(self) -> None:
        if self.running:
            self.kill()
        self._loop.close()

    def submit(self, command: Command[R], done: Callable[[R | EoqError], None], durable: bool = True) -> None:
        """Take a command of the scheduler, in place of the writer."""
        self._submitted.append((command, done))

    def rest(self) -> None:
        """Commits, answers and fires what is due, until nothing is under way."""
        for _ in range(PATIENCE):
            if self._submitted:
                batch, self._submitted = self._submitted, []
                outcomes = self.store.transact([command for command, _ in batch])
                for (_, done), outcome in zip(batch, outcomes, strict=True):
                    done(outcome)
            elif self.running and self.clock.waits:
                self.clock.fire()
            else:
                return
        raise AssertionError("it never comes to rest")

    def pass_time(self, seconds: float) -> None:
        """Time passes; if the daemon runs, it is never late."""
        target = self.clock.monotonic() + seconds
        while self.running and (due := self.clock.next_due()) is not None and due <= target:
            self.clock.move_to(due)
            self.rest()
        self.clock.move_to(target)

    def ask(self, op: str, **fields: Any) -> Fields:
        """One request; raises what it is refused with."""
        replies: list[Fields | EoqError] = []
        self.scheduler.handle(Session(), requests.decode(encode({"op": op, **fields})), replies.append)
        self.rest()
        (reply,) = replies
        if isinstance(reply, EoqError):
            raise reply
        return reply

    def messages(self, queue: str = "q") -> list[str]:
        """The ids in a queue, in the order they were stored."""
        return [id for name, id, _ in self.rows() if name == queue]

    def rows(self) -> list[tuple[str, str, float]]:
        """Queue, id and the time of storing of all messages."""
        with closing(sqlite3.connect(self._path)) as database:
            return database.execute(MESSAGES).fetchall()

    def forget(self) -> None:
        """All messages are settled, and their records forgotten."""
        self.store.database.execute("delete from message")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def daemon(tmp_path: Path, clock: ManualClock) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path / "eoq.db", clock)
    yield daemon
    daemon.close()


def _id(name: str, at: float) -> str:
    return f"{name}@{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _at(id: str) -> float:
    return datetime.fromisoformat(id.partition("@")[2]).timestamp()


# ── the model ───────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Kind:
    """A schedule whose occurrences can be counted by hand: every so many seconds."""

    fields: Fields
    every: int

    def between(self, after: float, until: float, start: float) -> list[int]:
        first = int(start) + self.every if "every" in self.fields else 0
        at = max(first, first + (int(after) - first) // self.every * self.every)
        return [found for found in range(at, int(until) + 1, self.every) if found > after]

    def has(self, at: float, start: float) -> bool:
        """Return whether this is a time of the series. It also goes back before its start, if the clock does."""
        first = int(start) if "every" in self.fields else 0
        return (int(at) - first) % self.every == 0


KINDS: Final = [
    Kind({"every": 7}, 7),
    Kind({"every": 600}, 600),
    Kind({"cron": "*/20 * * * *", "timezone": "Europe/Berlin"}, 1200),
    Kind({"cron": "@hourly"}, 3600),
]
STEPS: Final = st.one_of(
    st.tuples(st.just("pass"), st.sampled_from([0.5, 3.25, 20.0, 61.0, 500.0, 4000.0])),
    st.tuples(st.just("jump"), st.sampled_from([-0.5, -20.0, -59.0, -61.0, -HOUR, -5.25 * HOUR, 1.5, 70.0, 5 * HOUR])),
    st.tuples(st.just("down"), st.sampled_from([0.0, 0.0, 30.0, 100.0, 2 * HOUR])),
    st.tuples(st.just("full"), st.sampled_from([5.0, 50.0, 300.0])),
)


@dataclass
class Run:
    """A daemon, and what it owes."""

    daemon: Daemon
    kinds: dict[str, Kind]
    started: float
    owed: set[str] = field(default_factory=set)
    """Ids of occurrences whose time passed while it ran and nothing was in its way."""

    def check(self) -> None:
        ids = [id for _, id, _ in self.daemon.rows()]
        assert len(ids) == len(set(ids))
        missing = self.owed - set(ids)
        assert not missing
        for id in ids:
            name = id.partition("@")[0]
            assert self.kinds[name].has(_at(id), self.started), "no occurrence"

    def do(self, step: str, seconds: float) -> None:
        clock = self.daemon.clock
        if step == "jump":
            clock.jump(seconds)
        elif step == "down":
            self.daemon.kill()
            self.daemon.pass_time(seconds)
            self.daemon.start()
        elif step == "full":
            self.daemon.full = True
            self.daemon.pass_time(seconds)
            self.daemon.full = False
            self.daemon.pass_time(REFUSED_SECONDS)
        else:
            before = clock.wall()
            self.daemon.pass_time(seconds)
            for name, kind in self.kinds.items():
                # The timer may not know of a jump for so long; then what came meanwhile is stored all the same.
                due = kind.between(before, clock.wall() - LONGEST_TIMER, self.started)
                self.owed.update(_id(name, at) for at in due)


def _start(folder: str, catch_up: Sequence[str | None]) -> Run:
    daemon = Daemon(Path(folder) / "eoq.db", ManualClock())
    kinds = {f"s{n}": kind for n, kind in enumerate(KINDS) if catch_up[n] is not None}
    for (name, kind), rule in zip(kinds.items(), filter(None, catch_up), strict=True):
        daemon.ask("schedule_add", name=name, queue="q", catch_up=rule, body=name, **kind.fields)
    return Run(daemon, kinds, daemon.clock.wall())


# None: without this schedule, so that the others do not wake at its occurrences.
rules = st.tuples(*(st.sampled_from([None, "last", "all", "none"]) for _ in KINDS))


def _check_run(catch_up: Sequence[str | None], steps: Sequence[tuple[str, float]]) -> None:
    with tempfile.TemporaryDirectory(prefix="eoq-schedule-") as folder:
        run = _start(folder, catch_up)
        try:
            for step, seconds in steps:
                run.do(step, seconds)
                run.check()
        finally:
            run.daemon.close()


@pytest.mark.slow
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(rules, st.lists(STEPS, max_size=12))
def test_what_passes_while_it_runs_is_stored_once(
    catch_up: Sequence[str | None], steps: list[tuple[str, float]]
) -> None:
    _check_run(catch_up, steps)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(rules, st.lists(STEPS, max_size=25))
def test_what_passes_while_it_runs_is_stored_once_at_length(
    catch_up: Sequence[str | None], steps: list[tuple[str, float]]
) -> None:
    _check_run(catch_up, steps)


@pytest.mark.slow
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(rules, st.lists(STEPS.filter(lambda step: step[0] != "jump" or step[1] > -20.0), max_size=12))
def test_nothing_is_stored_twice_though_all_ids_are_forgotten(
    catch_up: Sequence[str | None], steps: list[tuple[str, float]]
) -> None:
    """Where the clock is not set back by more than a minute, what has come so far is known without the ids."""
    with tempfile.TemporaryDirectory(prefix="eoq-schedule-") as folder:
        run = _start(folder, catch_up)
        seen: list[str] = []
        back = 0.0
        try:
            for step, seconds in steps:
                back -= min(seconds, 0.0)
                if back > GRACE:
                    break
                run.do(step, seconds)
                seen += [id for _, id, _ in run.daemon.rows()]
                run.daemon.forget()
                assert len(seen) == len(set(seen))
        finally:
            run.daemon.close()


# ── one by one ──────────────────────────────────────────────────────────────────────────────────────────────


def test_occurrences_are_stored_at_their_very_time_and_receivers_are_woken(daemon: Daemon, clock: ManualClock) -> None:
    start = clock.wall()
    assert daemon.ask("schedule_add", name="s", queue="q", every=10) == {"changed": True, "next_at": start + 10}
    daemon.pass_time(35)
    assert daemon.rows() == [("q", _id("s", start + n), start + n) for n in (10, 20, 30)]
    assert daemon.told == ["q"] * 3


@pytest.mark.parametrize("catch_up", ["last", "all", "none"])
def test_what_comes_right_after_a_jump_is_in_time(daemon: Daemon, clock: ManualClock, catch_up: str) -> None:
    daemon.ask("schedule_add", name="s", queue="q", cron="@hourly", catch_up=catch_up)
    hour = clock.wall() // HOUR * HOUR + 10 * HOUR
    clock.jump(hour - 1 - clock.wall())
    daemon.pass_time(LONGEST_TIMER + 1)
    assert daemon.messages()[-1:] == [_id("s", hour)]


@pytest.mark.parametrize("catch_up", ["last", "none"])
@pytest.mark.first_by_default
def test_what_comes_right_after_the_clock_is_set_back(daemon: Daemon, clock: ManualClock, catch_up: str) -> None:
    daemon.ask("schedule_add", name="s", queue="q", cron="@hourly", catch_up=catch_up)
    hour = clock.wall() // HOUR * HOUR + 10 * HOUR
    clock.jump(24 * HOUR)
    daemon.pass_time(100)
    clock.jump(hour - 1 - clock.wall())
    daemon.pass_time(LONGEST_TIMER + 1)
    assert daemon.messages()[-1:] == [_id("s", hour)]
    daemon.pass_time(24 * HOUR)
    assert len(daemon.messages()) in (24, 25)
    assert len(set(daemon.messages())) == len(daemon.messages())


@pytest.mark.parametrize("ran", [0, 25], ids=["not begun", "begun"])
def test_an_interval_goes_on_after_the_clock_is_set_back(daemon: Daemon, clock: ManualClock, ran: int) -> None:
    """The first start of a machine may be a day ahead. When its clock is corrected, no day passes in silence."""
    daemon.ask("schedule_add", name="s", queue="q", every=10)
    daemon.pass_time(ran)
    before = len(daemon.messages())
    clock.jump(-24 * HOUR)
    daemon.pass_time(LONGEST_TIMER + 30)
    new = daemon.messages()[before:]
    assert len(new) >= 5
    assert len(set(new)) == len(new)
    daemon.pass_time(100)
    assert len(daemon.messages()) - before - len(new) in (10, 11)
    clock.jump(24 * HOUR)  # the clock was wrong for a moment only: nothing is sent twice
    daemon.pass_time(100)
    assert len(set(daemon.messages())) == len(daemon.messages())


def test_a_start_far_ahead_stays_when_the_clock_is_set_back(daemon: Daemon, clock: ManualClock) -> None:
    start = int(clock.wall()) + 3 * int(HOUR)
    daemon.ask("schedule_add", name="s", queue="q", every=10, at=start)
    clock.jump(-24 * HOUR)
    daemon.pass_time(LONGEST_TIMER + 30)
    assert daemon.messages() == []
    assert daemon.ask("schedule_show", name="s")["schedule"]["next_at"] == start


@pytest.mark.parametrize("limit", ["PLAN_SECONDS", "STEP"])
def test_many_that_were_set_back_or_are_due_are_planned_in_steps(
    daemon: Daemon, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    """One step plans only a few, so that others need not wait. The next step follows at once."""
    monkeypatch.setattr(scheduler, limit, 1 if limit == "STEP" else 0)
    names = [f"s{n}" for n in range(5)]
    for name in names:
        daemon.ask("schedule_add", name=name, queue="q", cron="@hourly")
    clock.jump(-24 * HOUR)
    daemon.pass_time(LONGEST_TIMER + 1)
    hour = (clock.wall() // HOUR + 1) * HOUR
    assert {daemon.ask("schedule_show", name=name)["schedule"]["next_at"] for name in names} == {hour}
    daemon.pass_time(hour - clock.wall() + 1)
    assert sorted(daemon.messages()) == [_id(name, hour) for name in names]


def test_a_ttl_is_not_moved_by_a_jump_that_was_before(daemon: Daemon, clock: ManualClock) -> None:
    """The broker moves times to live with the clock: of what was stored before it was set, and of nothing else."""
    start = clock.wall()
    daemon.ask("schedule_add", name="s", queue="q", every=1000, ttl=5000)
    clock.jump(1005)
    daemon.pass_time(LONGEST_TIMER)
    daemon.broker.clock.wall()
    daemon.rest()
    with closing(sqlite3.connect(daemon.store.database.path)) as database:
        assert database.execute("select id, expires_at + (select set_by from clock) from message").fetchall() == [
            (_id("s", start + 1000), start + 6000)
        ]


def test_one_added_later_does_not_wait_for_the_timer_of_another(daemon: Daemon) -> None:
    daemon.ask("schedule_add", name="slow", queue="q", every=1000)
    daemon.ask("schedule_add", name="quick", queue="q", every=1)
    daemon.pass_time(1)
    assert len(daemon.messages()) == 1


def test_the_message_is_as_it_was_said(daemon: Daemon, clock: ManualClock) -> None:
    content = {"body_base64": "AP8=", "headers": {"b": "2", "a": "1"}, "priority": 3, "group": "g"}
    daemon.ask("schedule_add", name="s", queue="q", every=1, **content)
    assert daemon.ask("schedule_show", name="s")["schedule"]["message"] == content
    daemon.pass_time(1)
    with closing(sqlite3.connect(daemon.store.database.path)) as database:
        row = database.execute('select body, headers, priority, "group", digest from message').fetchone()
    sent = requests.Message(**content, id="x")  # type: ignore[arg-type] # its fields have several types
    assert row == (b"\0\xff", '{"a":"1","b":"2"}', 3, "g", request_values.new_message("q", sent, 0, new_id).digest)


def test_a_full_queue_gets_its_occurrence_later(daemon: Daemon, clock: ManualClock) -> None:
    start = clock.wall()
    daemon.ask("schedule_add", name="s", queue="q", every=3000)
    daemon.ask("schedule_add", name="none", queue="q", every=3000, catch_up="none")
    daemon.full = True
    daemon.pass_time(3050)
    assert "min_free_bytes" in daemon.ask("schedule_show", name="s")["schedule"]["error"]
    daemon.pass_time(100)
    daemon.full = False
    daemon.pass_time(REFUSED_SECONDS)
    assert daemon.messages() == [_id("s", start + 3000)]
    assert "error" not in daemon.ask("schedule_show", name="s")["schedule"]
    daemon.pass_time(3000)
    assert daemon.messages()[1:] == [_id("s", start + 6000), _id("none", start + 6000)]


def test_an_id_that_is_taken_is_skipped(daemon: Daemon, clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    start = clock.wall()
    daemon.ask("schedule_add", name="s", queue="q", every=10)
    taken = NewMessage("q", _id("s", start + 10), b"other", b"digest")
    daemon.store.transact([Put(start, [taken], defaults)])
    daemon.pass_time(15)
    shown = daemon.ask("schedule_show", name="s")["schedule"]
    assert (shown["last_at"], shown["next_at"]) == (None, start + 20)
    assert "with other content" in shown["error"]
    assert "skipped" in caplog.text
    daemon.pass_time(5)
    assert daemon.messages()[1:] == [_id("s", start + 20)]


def test_a_backlog_is_stored_in_steps_and_whole(
    daemon: Daemon, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    start = clock.wall()
    for name in "ab":
        daemon.ask("schedule_add", name=name, queue=name, every=60, catch_up="all")
    daemon.kill()
    daemon.pass_time(60 * 1005)
    daemon.start()
    assert daemon.messages("a") == [_id("a", start + 60 * n) for n in range(6, 1006)]
    assert len(daemon.messages("b")) == 1000 > STEP
    assert f"from {_id('a', start + 60)} until {_id('a', start + 360)}" in caplog.text


def test_a_transaction_that_fails_leaves_the_occurrence_to_the_next(daemon: Daemon, clock: ManualClock) -> None:
    """The message and the plan are undone together, wherever it fails; then it is stored once."""
    start = clock.wall()
    daemon.ask("schedule_add", name="s", queue="q", every=10)
    clock.forget()
    clock.move_to(clock.monotonic() + 10)

    (due,) = daemon.store.transact([ReadDue(clock.wall(), STEP, False)])
    assert isinstance(due, DueSchedules)
    (schedule,) = due.due
    message = request_values.scheduled_message(schedule.definition, int(start + 10))
    then = schedule._replace(next_at=int(start + 20))
    plan = OccurrencePlan(schedule, [(int(start + 10), [message])], then, start + 20)
    fire = StoreOccurrences(clock.wall(), [plan], defaults, start + 15)

    def fire_and_fail() -> None:
        daemon.store.methods[StoreOccurrences](fire)
        raise sqlite3.OperationalError("disk I/O error")

    with pytest.raises(sqlite3.OperationalError):
        daemon.store.database.transaction(fire_and_fail, durable=True)
    assert daemon.messages() == []
    (shown,) = daemon.store.transact([ScheduleShow("s")])
    assert shown == schedule
    for _ in range(2):
        # The second time the schedule is another than the one that was planned.
        daemon.store.transact([fire])
        assert daemon.messages() == [_id("s", start + 10)]


def test_firing_goes_on_when_the_disk_refuses(daemon: Daemon, caplog: pytest.LogCaptureFixture) -> None:
    daemon.ask("schedule_add", name="s", queue="q", every=10)
    tries = random.Random(1)

    def sometimes(method: Callable[[Any], object], command: Command[Any]) -> object:
        if tries.random() < 0.5:
            raise sqlite3.OperationalError("disk I/O error")
        return method(command)

    for kind in (ReadDue, StoreOccurrences):
        daemon.store.methods[kind] = partial(sometimes, daemon.store.methods[kind])
    daemon.pass_time(609)  # the last occurrence, at 600, has time to be tried again
    assert len(daemon.messages()) == 60
    assert "trying again" in caplog.text


# ── adding and removing ─────────────────────────────────────────────────────────────────────────────────────


def test_the_same_again_changes_nothing(daemon: Daemon, clock: ManualClock) -> None:
    add: Callable[..., Fields] = partial(daemon.ask, "schedule_add", name="s", queue="q")
    first = add(every=10, body="x", headers={"a": "1", "b": "2"})
    daemon.pass_time(3)
    again = add(every=10, body_base64="eA==", headers={"b": "2", "a": "1"})
    assert again == {"changed": False, "next_at": first["next_at"]}
    assert add(cron=" @daily", replace=True)["changed"]
    assert not add(cron="@daily ", timezone="UTC", headers={})["changed"]


def test_another_definition_needs_to_be_told_to_replace(daemon: Daemon, clock: ManualClock) -> None:
    start = clock.wall()
    daemon.ask("schedule_add", name="s", queue="q", every=10)
    daemon.pass_time(4)
    for other in ({"every": 20}, {"body": "x"}, {"catch_up": "all"}, {"queue": "p"}, {"at": start + 1}):
        with pytest.raises(IdConflict):
            daemon.ask("schedule_add", **{"name": "s", "queue": "q", "every": 10, **other})
    body = daemon.ask("schedule_add", name="s", queue="q", every=10, body="x", replace=True)
    assert body == {"changed": True, "next_at": start + 10}, "its occurrences are the same as before"
    rule = daemon.ask("schedule_add", name="s", queue="q", every=20, body="x", replace=True)
    assert rule == {"changed": True, "next_at": start + 24}
    daemon.pass_time(25)
    assert daemon.messages() == [_id("s", start + 24)]


def test_what_is_removed_sends_nothing_more(daemon: Daemon, clock: ManualClock) -> None:
    daemon.ask("schedule_add", name="s", queue="q", every=10)
    daemon.pass_time(12)
    assert daemon.ask("schedule_remove", name="s") == {}
    daemon.pass_time(100)
    assert len(daemon.messages()) == 1
    with pytest.raises(NotFound):
        daemon.ask("schedule_remove", name="s")
    with pytest.raises(NotFound):
        daemon.ask("schedule_show", name="s")
    assert daemon.ask("schedules") == {"schedules": []}
    daemon.pass_time(LONGEST_TIMER)
    assert clock.next_due() is None, "without a schedule there is nothing to wake up for"


def test_there_is_a_limit(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eoq.daemon.store.sqlite.tables.schedules.MAX_SCHEDULES", 2)
    for name in "ab":
        daemon.ask("schedule_add", name=name, queue="q", every=10)
    with pytest.raises(QueueFull):
        daemon.ask("schedule_add", name="c", queue="q", every=10)
    assert daemon.ask("schedule_add", name="a", queue="q", every=10)["changed"] is False


@pytest.mark.slow
@pytest.mark.parametrize("set_back", [False, True])
def test_a_time_zone_that_goes_away_holds_up_its_schedule_alone(
    daemon: Daemon, clock: ManualClock, set_back: bool
) -> None:
    for name, catch_up in (("gone", "all"), ("stays", "none")):
        daemon.ask("schedule_add", name=name, queue=name, cron="@hourly", timezone="Europe/Berlin", catch_up=catch_up)
    clock.jump(2 * HOUR)
    daemon.pass_time(60)
    daemon.store.database.execute("update schedule set timezone = 'Gone/Away' where name = 'gone'")
    if set_back:
        clock.jump(-2 * HOUR)
    daemon.pass_time(3 * HOUR)
    assert (len(daemon.messages("gone")), len(daemon.messages("stays"))) == (2, 3)
    assert "Gone/Away" in daemon.ask("schedule_show", name="gone")["schedule"]["error"]
    daemon.store.database.execute("update schedule set timezone = 'Europe/Berlin' where name = 'gone'")
    daemon.pass_time(HOUR)
    assert (len(daemon.messages("gone")), len(daemon.messages("stays"))) == (4 if set_back else 6, 4)


def test_requests_are_answered_when_the_daemon_stops(daemon: Daemon) -> None:
    replies: list[Fields | EoqError] = []
    for n in range(3):
        request = {"op": "schedule_add", "name": f"s{n}", "queue": "q", "every": 10}
        daemon.scheduler.handle(Session(), requests.decode(encode(request)), replies.append)
    daemon.scheduler.stop()
    daemon.rest()
    assert len(replies) == 3
    daemon.pass_time(100)
    assert daemon.messages() == []


# ── the configuration ───────────────────────────────────────────────────────────────────────────────────────


def _config(*schedules: dict[str, Any]) -> Config:
    return Config(schedule=[requests.Schedule(**{"queue": "q", **fields}) for fields in schedules])


def _names(daemon: Daemon) -> dict[str, str]:
    return {row["name"]: row["origin"] for row in daemon.ask("schedules")["schedules"]}


def test_the_configuration_is_what_there_is(daemon: Daemon, clock: ManualClock) -> None:
    start = clock.wall()
    daemon.ask("schedule_add", name="own", queue="q", every=500)
    daemon.config = _config({"name": "a", "every": 10}, {"name": "b", "cron": "@daily"})
    daemon.kill()
    daemon.start()
    assert _names(daemon) == {"a": "config", "b": "config", "own": "client"}
    daemon.pass_time(12)
    daemon.kill()
    daemon.config = _config({"name": "a", "every": 10, "body": "new"})
    daemon.start()
    assert _names(daemon) == {"a": "config", "own": "client"}
    daemon.pass_time(8)
    assert daemon.messages() == [_id("a", start + 10), _id("a", start + 20)], "it goes on as before"
    daemon.scheduler.apply(_config())
    daemon.rest()
    assert _names(daemon) == {"own": "client"}


def test_what_the_configuration_declares_is_changed_there(daemon: Daemon) -> None:
    daemon.ask("schedule_add", name="a", queue="q", every=10)
    daemon.scheduler.apply(_config({"name": "a", "every": 10}))
    daemon.rest()
    assert _names(daemon) == {"a": "config"}
    assert daemon.ask("schedule_add", name="a", queue="q", every=10)["changed"] is False
    with pytest.raises(InvalidRequest, match="configuration"):
        daemon.ask("schedule_add", name="a", queue="q", every=20, replace=True)
    with pytest.raises(InvalidRequest, match="configuration"):
        daemon.ask("schedule_remove", name="a")


def test_a_configuration_of_too_many_is_not_taken_by_half(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("eoq.daemon.store.sqlite.tables.schedules.MAX_SCHEDULES", 2)
    daemon.ask("schedule_add", name="own", queue="q", every=500)
    daemon.scheduler.apply(_config({"name": "a", "every": 10}, {"name": "b", "every": 10}))
    daemon.rest()
    assert _names(daemon) == {"own": "client"}
    assert "could not be stored" in caplog.text
    daemon.ask("schedule_remove", name="own")
    daemon.pass_time(REFUSED_SECONDS)
    assert _names(daemon) == {"a": "config", "b": "config"}, "it is tried again"


def test_definitions_are_values() -> None:
    schedule = requests.Schedule(name="s", queue="q", every=10, at=7.9, body="x")
    definition, first_at = request_values.new_schedule(schedule, 0.0)
    assert first_at == 7
    assert isinstance(definition, Definition)
    assert definition.timing.at == 7
    assert request_values.content_of(definition) == {"body": "x"}
