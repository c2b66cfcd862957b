"""Each part of the store works alone, on a file of its own, with only the parts it is made of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from eoq.daemon.config.settings import QueueSettings, StorageSettings, defaults
from eoq.daemon.measures import Histogram
from eoq.daemon.portable import BindingLine, EndedMessage, Entry, LiveMessage
from eoq.daemon.portable import Queue as PausedQueue
from eoq.daemon.records import Binding, Deleted, DeliveryRef, Edited, FarResult, NewMessage, OccurrencePlan, Remembered
from eoq.daemon.rules.schedule_rules import Definition, Timing
from eoq.daemon.store.commands import (
    Advance,
    Bind,
    CancelMessage,
    Claim,
    Command,
    DeleteIdleQueues,
    DeleteQueue,
    Drop,
    EditMessage,
    Forget,
    Import,
    ListBindings,
    NoteClock,
    OnceBegin,
    OnceFinish,
    OnceForget,
    OnceRelease,
    OnceRunning,
    Pause,
    Purge,
    Put,
    R,
    ReadRemembered,
    Redrive,
    RejectDelivery,
    RetryDeliveries,
    Settle,
    ShiftTimes,
    StoreRemembered,
    TakeResults,
    Unbind,
)
from eoq.daemon.store.schedule_commands import ReadDue, ScheduleAdd, ScheduleList, ScheduleRemove, StoreOccurrences
from eoq.daemon.store.sqlite.batching import Batching
from eoq.daemon.store.sqlite.database import Database
from eoq.daemon.store.sqlite.deliveries.acks import Acks
from eoq.daemon.store.sqlite.deliveries.claims import Claims
from eoq.daemon.store.sqlite.deliveries.far_results import FarResults
from eoq.daemon.store.sqlite.deliveries.leased import Leased
from eoq.daemon.store.sqlite.deliveries.lives import Lives
from eoq.daemon.store.sqlite.deliveries.record_retention import RecordRetention
from eoq.daemon.store.sqlite.deliveries.recovery import Recovery
from eoq.daemon.store.sqlite.deliveries.remembered import RememberedIds
from eoq.daemon.store.sqlite.deliveries.returns import Returns
from eoq.daemon.store.sqlite.deliveries.settled import Settled
from eoq.daemon.store.sqlite.sending import seqs
from eoq.daemon.store.sqlite.sending.imports import Imports
from eoq.daemon.store.sqlite.sending.puts import Puts
from eoq.daemon.store.sqlite.sending.seqs import Seqs
from eoq.daemon.store.sqlite.sending.setups import Setups
from eoq.daemon.store.sqlite.space import Space
from eoq.daemon.store.sqlite.store import SqliteStore
from eoq.daemon.store.sqlite.tables.changes import MessageChanges
from eoq.daemon.store.sqlite.tables.clock import ClockNotes
from eoq.daemon.store.sqlite.tables.contents import Content, Contents
from eoq.daemon.store.sqlite.tables.dead_letters import DeadLetters
from eoq.daemon.store.sqlite.tables.deletion import Deletion
from eoq.daemon.store.sqlite.tables.groups import Groups
from eoq.daemon.store.sqlite.tables.messages import Ending, Messages
from eoq.daemon.store.sqlite.tables.once import OnceKeys
from eoq.daemon.store.sqlite.tables.queues import Queues
from eoq.daemon.store.sqlite.tables.schedules import Schedules
from eoq.daemon.store.sqlite.tables.timers import Timers
from eoq.daemon.store.sqlite.tables.topics import Bindings
from eoq.daemon.store.sqlite.totals import Totals
from eoq.daemon.store.writer import Writer
from eoq.errors import EoqError, IdConflict, InvalidRequest, LeaseLost, NotFound, QueueFull, StorageFull

NOW: Final = 1_700_000_000.0


class Parts:
    """The parts that others are made of."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.queues = Queues(database)
        self.lives = Lives(database)
        self.leased = Leased(database, self.lives)
        self.clock_notes = ClockNotes(database)
        self.groups = Groups(database, self.leased, self.clock_notes)
        self.contents = Contents(database)
        self.settled = Settled(database)
        self.totals = Totals(database, self.queues)
        self.seqs = Seqs(database)
        self.messages = Messages(database, self.queues, self.groups, self.contents, self.settled, self.totals)
        self.storage = StorageSettings()
        self.space = Space(database, lambda: self.storage)
        self.puts = Puts(
            database,
            self.queues,
            self.messages,
            self.groups,
            self.contents,
            self.leased,
            self.seqs,
            self.space,
            self.clock_notes,
            self.totals,
        )

    def put(
        self, *ids: str, group: str | None = None, due_at: float | None = None, expires_at: float | None = None
    ) -> None:
        """Store messages in the queue `q`."""
        messages = [
            NewMessage("q", id, b"body", b"digest", group=group, due_at=due_at, expires_at=expires_at) for id in ids
        ]
        self.puts.put(Put(NOW, messages, defaults))

    def claims(self) -> Claims:
        """Return the part that leases messages."""
        return Claims(
            *(self.database, self.queues, self.messages, self.leased),
            *(self.puts, self.clock_notes, self.totals, Histogram()),
        )

    def returns(self) -> Returns:
        """Return the part that gives them back."""
        return Returns(
            self.database, self.messages, self.groups, self.leased, self.lives, self.clock_notes, self.totals
        )

    def acks(self) -> Acks:
        """Return the part that settles them."""
        return Acks(
            self.database,
            self.queues,
            self.groups,
            self.contents,
            self.leased,
            self.lives,
            self.settled,
            self.puts,
            self.totals,
            Histogram(),
        )

    def timers(self) -> Timers:
        """Return the part that makes messages ready, expires them and forgets them."""
        return Timers(self.database, self.queues, self.messages, self.leased, self.clock_notes)

    def claim(self, limit: int = 10) -> list[DeliveryRef]:
        """Lease messages of the queue `q`."""
        claimed = self.claims().claim(Claim(NOW, "q", limit, 1 << 20, defaults))
        number = claimed.delivery_number
        return [
            DeliveryRef(one.seq, number, "q", one.group, len(one.body), queue_id=claimed.queue_id, id=one.id)
            for one in claimed.messages
        ]

    def retention(self) -> RecordRetention:
        return RecordRetention(self.database, self.messages, self.settled, self.clock_notes)

    def states(self) -> dict[str, str]:
        """Return the state of each message by its id."""
        return dict(
            self.database.execute(
                """
                select id, iif(state = 'ready' and leased(seq), 'leased', state) from message
                union all
                select id, outcome from settled
                """
            ).fetchall()
        )


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture
def database(tmp_path: Path, loop: asyncio.AbstractEventLoop) -> Iterator[Database]:
    database = loop.run_until_complete(Database.open(tmp_path / "eoq.db"))
    yield database
    loop.run_until_complete(database.close())


@pytest.fixture
def parts(database: Database) -> Parts:
    return Parts(database)


def test_a_database_undoes_what_parts_keep_in_memory_in_the_reverse_order(database: Database) -> None:
    undone: list[str] = []

    def change() -> None:
        database.on_rollback(lambda: undone.append("outer"))
        with pytest.raises(ValueError, match="inner"), database.savepoint():
            database.on_rollback(lambda: undone.append("first"))
            database.on_rollback(lambda: undone.append("second"))
            database.execute("insert into queue (name) values ('gone')")
            raise ValueError("inner")
        database.execute("insert or ignore into queue (name) values ('kept')")

    database.transaction(change, durable=True)
    assert undone == ["second", "first"]
    assert database.execute("select name from queue").fetchall() == [("kept",)]

    def fail() -> None:
        change()
        raise ValueError("outer")

    with pytest.raises(ValueError, match="outer"):
        database.transaction(fail, durable=False)
    assert undone == ["second", "first", "second", "first", "outer"]
    assert database.execute("select name from queue").fetchall() == [("kept",)]


def test_a_commit_that_does_not_wait_for_the_disk_does_not_write_the_log_back(database: Database) -> None:
    """SQLite says nothing if the sync of the log fails that it makes before. So there must be nothing to sync then."""

    def fill() -> None:
        database.execute("create table if not exists filler (body)")
        for _ in range(1200):
            database.execute("insert into filler values (zeroblob(4000))")

    database.transaction(lambda: None, durable=True)
    before = database.path.stat().st_size
    for _ in range(3):
        database.transaction(fill, durable=False)
        assert database.path.stat().st_size == before
    database.transaction(lambda: database.execute("insert into filler values (1)"), durable=True)
    assert database.path.stat().st_size > before


def test_space_names_what_is_lacking(parts: Parts) -> None:
    assert parts.space.lacking(0) is None
    parts.storage = StorageSettings(min_free_bytes=2**53)
    parts.space.check_again()
    assert "min_free_bytes" in (parts.space.lacking(0) or "")
    parts.storage = StorageSettings()
    assert parts.space.lacking(0) is None, "while it lacks space it looks each time"


def test_queues_forget_a_name_that_was_rolled_back(parts: Parts) -> None:
    with pytest.raises(ValueError, match="undo"), parts.database.savepoint():
        parts.queues.make("q")
        raise ValueError("undo")
    assert parts.queues.known_id("q") is None
    assert parts.queues.find("q") is None
    with pytest.raises(NotFound):
        parts.queues.pause(Pause("q", False))
    assert parts.queues.pause(Pause("q", True))
    assert not parts.queues.pause(Pause("q", True))
    assert parts.queues.is_paused(parts.queues.require("q"))


def test_contents_are_counted_once_and_follow_the_transaction(parts: Parts) -> None:
    parts.put("a", "b")
    queue_id = parts.queues.require("q")
    parts.contents.add(queue_id, 1, 1)
    assert not parts.contents, "nothing is counted before it is asked for"
    assert parts.contents.of(queue_id) == Content(2, 8)
    with pytest.raises(ValueError, match="undo"), parts.database.savepoint():
        parts.contents.add(queue_id, 5, 50)
        raise ValueError("undo")
    assert parts.contents.of(queue_id) == Content(2, 8)


def test_groups_let_only_the_first_be_delivered(parts: Parts) -> None:
    parts.put("a", "b", group="g")
    parts.put("other", group="h")
    assert parts.states() == {"a": "ready", "b": "blocked", "other": "ready"}
    queue_id = parts.queues.require("q")
    parts.database.execute("update message set state = 'dead' where id = 'a'")
    parts.groups.unblock(NOW, queue_id, "g")
    assert parts.states()["b"] == "ready"
    parts.database.execute("update message set state = 'ready' where id = 'a'")
    parts.groups.line_up(NOW, queue_id, "g")
    assert (parts.states()["a"], parts.states()["b"]) == ("ready", "blocked")


def test_messages_that_expire_end_as_their_queue_says(parts: Parts) -> None:
    parts.put("a", "b")
    queue_id = parts.queues.require("q")
    first, second = (Ending(seq, queue_id, id, None, 4, "ready") for seq, id in ((1, "a"), (2, "b")))
    (end,) = parts.messages.expire(NOW, [first], defaults)
    assert (end.queue, end.id, end.outcome) == ("q", "a", "expired")
    (end,) = parts.messages.expire(NOW, [second], lambda _: QueueSettings(on_expiry="dead"))
    assert end.outcome == "dead"
    assert parts.states() == {"a": "expired", "b": "dead"}


def test_seqs_are_never_given_twice(parts: Parts) -> None:
    parts.put("a", "b")
    assert parts.seqs.next == 3
    killed = Seqs(parts.database)
    killed.start()
    assert killed.next > 3, "after a kill the rest of a block is left out"
    parts.seqs.stop()
    stopped = Seqs(parts.database)
    stopped.start()
    assert stopped.next == 3
    with pytest.raises(ValueError, match="undo"), parts.database.savepoint():
        stopped.take(seqs.BLOCK + 1)
        raise ValueError("undo")
    assert stopped.take(1) == 3, "no client knows of those that were undone"
    again = Seqs(parts.database)
    again.start()
    assert again.next > 3


def test_puts_store_all_or_none(parts: Parts) -> None:
    parts.put("a")
    assert parts.puts.put(Put(NOW, [NewMessage("q", "a", b"body", b"digest")], defaults)).duplicates == [0]
    messages = [NewMessage("q", "b", b"", b""), NewMessage("q", "a", b"other", b"another")]
    with pytest.raises(IdConflict):
        parts.puts.put(Put(NOW, messages, defaults))
    with pytest.raises(QueueFull):
        parts.puts.put(Put(NOW, messages[:1], lambda _: QueueSettings(max_depth=1)))
    parts.storage = StorageSettings(min_free_bytes=2**53)
    parts.space.check_again()
    with pytest.raises(StorageFull):
        parts.puts.put(Put(NOW, messages[:1], defaults))
    assert parts.states() == {"a": "ready"}


def test_deliveries_are_fenced_by_their_number(parts: Parts) -> None:
    parts.put("a", "b")
    returns = parts.returns()
    first, second = parts.claim()
    assert returns.retry(RetryDeliveries(NOW, [first], defaults, error="no")) == [True]
    (again,) = parts.claim()
    assert (again.seq, again.number) == (first.seq, 2)
    assert returns.retry(RetryDeliveries(NOW, [first], defaults)) == [False]
    with pytest.raises(LeaseLost):
        returns.reject(RejectDelivery(NOW, first, "no"))
    returns.reject(RejectDelivery(NOW, second, "no"))
    assert parts.states() == {"a": "leased", "b": "dead"}
    recovery = Recovery(
        parts.database, parts.queues, parts.messages, parts.groups, parts.contents, parts.lives, parts.totals
    )
    recovery.recover(NOW, lambda _: QueueSettings(max_attempts=2), clean=False)
    assert parts.states() == {"a": "dead", "b": "dead"}


def test_acks_settle_all_or_none(parts: Parts) -> None:
    parts.put("a", "b")
    acks = parts.acks()
    first, second = parts.claim()
    lost = DeliveryRef(second.seq, 7, "q")
    with pytest.raises(LeaseLost):
        acks.settle(Settle(NOW, [(first, b"r"), (lost, None)], [], defaults))
    assert parts.states() == {"a": "leased", "b": "leased"}
    following = NewMessage("q", "next", b"", b"")
    settle = Settle(NOW, [(first, b"r"), (second, None)], [following], defaults)
    assert acks.settle(settle).duplicates == []
    assert acks.settle(settle).duplicates == [], "a repeated settle is answered as the first"
    assert parts.states() == {"a": "done", "b": "done", "next": "ready"}


def test_timers_move_messages_on(parts: Parts) -> None:
    parts.put("late", due_at=NOW + 10)
    timers = parts.timers()
    assert timers.advance(Advance(NOW, 10, defaults)).next_at == NOW + 10
    timers.shift(ShiftTimes(5, NOW, 0.0, ""))
    assert timers.advance(Advance(NOW + 10, 10, defaults)).next_at == NOW + 15
    assert timers.advance(Advance(NOW + 15, 10, defaults)).ready == {"q": 1}
    acks = parts.acks()
    (delivery,) = parts.claim()
    acks.settle(Settle(NOW, [(delivery, None)], [], defaults))
    assert parts.states() == {"late": "done"}


@pytest.mark.parametrize("sent", ["before", "after"])
def test_a_delivery_says_by_the_clock_of_now_when_its_time_to_live_ends(parts: Parts, sent: str) -> None:
    """A forwarder takes this moment to the next machine."""
    if sent == "before":
        parts.put("mortal", expires_at=NOW + 10)
    parts.timers().shift(ShiftTimes(3600, NOW + 3600, 0.0, ""))
    if sent == "after":
        parts.put("mortal", expires_at=NOW + 3610)
    claimed = parts.claims().claim(Claim(NOW + 3601, "q", 10, 1000, defaults))
    assert [message.expires_at for message in claimed.messages] == [NOW + 3610]


def test_a_clock_that_is_set_changes_no_message(parts: Parts) -> None:
    """However many wait, no other request waits for that."""
    parts.put("late", due_at=NOW + 10)
    statements: list[str] = []
    parts.database.trace(statements.append)
    parts.timers().shift(ShiftTimes(-5, NOW, 0.0, ""))
    parts.database.trace(None)
    assert statements and not any("message" in statement or "once" in statement for statement in statements)


def test_a_shift_that_is_rolled_back_moves_nothing(parts: Parts) -> None:
    parts.put("late", due_at=NOW + 10)

    def shift() -> None:
        parts.timers().shift(ShiftTimes(5, NOW, 0.0, ""))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        parts.database.transaction(shift, durable=False)
    assert parts.timers().advance(Advance(NOW, 10, defaults)).next_at == NOW + 10


def _settle_at(parts: Parts, now: float, *ids: str) -> None:
    parts.put(*ids)
    parts.acks().settle(Settle(now, [(delivery, b"result") for delivery in parts.claim(len(ids))], [], defaults))


def _forget_in_steps(retention: RecordRetention, now: float, settings: QueueSettings, hurry: bool = False) -> list[int]:
    """Run a round of steps of 10 ids. Return how many records each has deleted."""
    gone: list[int] = []
    after = None
    while not gone or after is not None:
        step = retention.forget(Forget(now, after, 10, lambda _: settings, hurry))
        gone.append(step.rows)
        after = step.after
    return gone


def test_forgetting_passes_all_ids_in_steps(parts: Parts) -> None:
    _settle_at(parts, NOW, *(f"{n}" for n in range(25)))
    parts.put("stays")
    forget = partial(_forget_in_steps, parts.retention())
    assert forget(NOW + 5, QueueSettings(retention=10)) == [0], "none can be old enough"
    assert forget(NOW + 5.5, QueueSettings(retention=0)) == [0], "the queue was passed a moment ago"
    assert forget(NOW + 5.5, QueueSettings(retention=10, result_retention=3), hurry=True) == [0, 0, 0]
    assert parts.database.execute("select count(*) from result").fetchone() == (0,)
    assert forget(NOW + 20, QueueSettings(retention=10)) == [10, 10, 5]
    assert parts.states() == {"stays": "ready"}
    assert parts.database.execute("select id from known_id").fetchall() == [("stays",)]


def test_a_queue_is_passed_when_its_oldest_record_may_be_old_enough(parts: Parts) -> None:
    _settle_at(parts, NOW, *"abcde")
    _settle_at(parts, NOW + 8, *(f"{n}" for n in range(60)))
    forget = partial(_forget_in_steps, parts.retention(), settings=QueueSettings(retention=10), hurry=True)
    assert forget(NOW + 9) == [0, 0], "the first step learns of 50 records, the next of the others"
    assert sum(forget(NOW + 12)) == 5
    assert forget(NOW + 15) == [0]
    assert sum(forget(NOW + 19)) == 60


def test_a_record_that_was_settled_while_the_clock_was_ahead_is_forgotten_in_time(parts: Parts) -> None:
    _settle_at(parts, NOW + 1000, "ahead")
    forget = partial(_forget_in_steps, parts.retention(), settings=QueueSettings(retention=10), hurry=True)
    assert forget(NOW + 1000) == [0]
    _settle_at(parts, NOW, "a")  # the clock was put right
    assert forget(NOW) == [0]
    assert forget(NOW + 11) == [1]


def test_a_result_that_comes_back_late_is_kept(parts: Parts) -> None:
    parts.put("late", "back", "plain")
    late, back, plain = parts.claim(3)
    parts.acks().settle(Settle(NOW, [(late, None), (back, None)], [], defaults, forwarded="away", awaits=True))
    parts.acks().settle(Settle(NOW, [(plain, None)], [], defaults, forwarded="away"))
    results = FarResults(parts.database, parts.queues)
    assert results.take(TakeResults("q", [FarResult("back", "done", b"paid", None)])).ended
    forgetting = parts.retention()

    def forget(now: float) -> int:
        settings = QueueSettings(retention=10, result_retention=1)
        return forgetting.forget(Forget(now, None, 10, lambda _: settings, True)).rows

    assert forget(NOW + 5) == 0
    outcomes = "select far_outcome, result from result order by seq"
    assert parts.database.execute(outcomes).fetchall() == [("awaited", None), ("done", b"paid")]
    assert results.take(TakeResults("q", [FarResult("late", "done", b"at last", None)])).ended
    assert forget(NOW + 20) == 3
    assert parts.database.execute(outcomes).fetchall() == []


def test_dead_letters_that_are_too_old_or_too_many_are_dropped(parts: Parts) -> None:
    parts.put(*"abcde")
    for delivery in parts.claim():
        parts.returns().reject(RejectDelivery(NOW + delivery.seq, delivery, "no"))
    forgetting = parts.retention()
    step = forgetting.forget(Forget(NOW + 13, None, 10, lambda _: QueueSettings(dead_retention=10), True))
    assert [(one.queue, one.number, one.setting) for one in step.letters] == [("q", 2, "dead_retention")]
    assert [end.id for end in step.ended] == ["a", "b"]
    step = forgetting.forget(Forget(NOW + 13, None, 10, lambda _: QueueSettings(max_dead=1), True))
    assert [(one.queue, one.number, one.setting) for one in step.letters] == [("q", 2, "max_dead")]
    assert parts.states() == {"a": "dropped", "b": "dropped", "c": "dropped", "d": "dropped", "e": "dead"}


def test_what_is_remembered_moves_with_a_clock_that_was_set(parts: Parts) -> None:
    """The moment until which ids may be forgotten is stored as a wait is, and read with the clock of then."""
    remembered = RememberedIds(parts.database, parts.clock_notes)
    assert remembered.read(ReadRemembered()) is None
    noted = Remembered((("mail", 60.0), ("*", 100.0)), NOW - 50)
    remembered.store(StoreRemembered(noted))
    assert remembered.read(ReadRemembered()) == noted
    parts.clock_notes.store(NOW + 1000, 500, "one", 1000)
    assert remembered.read(ReadRemembered()) == Remembered(noted.retentions, NOW + 950)
    remembered.store(StoreRemembered(Remembered(noted.retentions, None)))
    assert remembered.read(ReadRemembered()) == Remembered(noted.retentions, None)


@pytest.mark.parametrize(
    ("boot", "now", "elapsed", "shift", "uncounted"),
    [
        pytest.param("one", NOW + 100, 600, 0, 0, id="stopped for 100 s"),
        pytest.param("one", NOW + 100, 500.2, 99.8, 99.8, id="set forward while stopped"),
        pytest.param("one", NOW - 100, 600, -200, 0, id="set back while stopped"),
        pytest.param("two", NOW - 1800, 20, -1800, 0, id="the machine starts half an hour behind"),
        pytest.param("two", 20, 20, 20 - NOW, 0, id="the machine starts in 1970"),
        pytest.param("two", NOW + 100, 20, 0, 100, id="how long the machine was off is unknown"),
        pytest.param("", NOW + 100, 600, 0, 100, id="a system that does not tell its start"),
    ],
)
def test_a_clock_that_was_set_is_told_from_time_that_passed(
    parts: Parts, boot: str, now: float, elapsed: float, shift: float, uncounted: float
) -> None:
    """A wait takes what was left of it, and no record is older than the time that surely passed."""
    parts.put("late", due_at=NOW + 1000)
    timers = parts.timers()
    assert timers.note_clock(NoteClock(NOW, 500, "one" if boot else "", True)).seconds == 0
    assert timers.note_clock(NoteClock(now, elapsed, boot, True)).seconds == pytest.approx(shift)
    assert timers.advance(Advance(now, 10, defaults)).next_at == pytest.approx(NOW + 1000 + shift)
    assert ClockNotes(parts.database).uncounted_since(now - 1) == pytest.approx(uncounted)
    assert ClockNotes(parts.database).uncounted_since(now) == 0


@pytest.mark.slow
def test_jumps_of_the_clock_are_added_up_when_they_are_many(parts: Parts) -> None:
    notes = ClockNotes(parts.database)
    for number in range(1000):
        notes.set_forward(NOW + number, 2)
    assert parts.database.execute("select count(*) from clock_jump").fetchone()[0] <= 101
    assert notes.uncounted_since(NOW - 1) == 2000
    assert notes.uncounted_since(NOW + 989) == 20


def test_dead_letters_are_redriven_dropped_and_queues_purged(parts: Parts) -> None:
    parts.put("a", "b")
    dead_letters = DeadLetters(
        *(parts.database, parts.queues, parts.messages, parts.groups, parts.contents, parts.leased, parts.puts)
    )
    for delivery in parts.claim():
        parts.returns().reject(RejectDelivery(NOW, delivery, "no"))
    assert dead_letters.redrive(Redrive(NOW, "q", ["a", "missing"], None, 0)).ids == ["a"]
    assert dead_letters.drop(Drop(NOW, "q", None, NOW + 1, 0)).ids == ["b"]
    step = dead_letters.purge(Purge(NOW, "q", None))
    assert (step.ids, step.after) == (["a"], None)
    assert parts.states() == {"a": "dropped", "b": "dropped"}


def test_one_message_is_edited_and_cancelled_unless_it_is_leased(parts: Parts) -> None:
    parts.put("a", "b")
    changes = MessageChanges(
        *(parts.database, parts.queues, parts.messages, parts.contents, parts.leased, parts.settled),
        *(parts.space, parts.clock_notes),
    )
    assert changes.edit(EditMessage(NOW, "q", "b", b"other", 5, NOW + 60, True)) == Edited("delayed", False)
    (delivery,) = parts.claim()
    with pytest.raises(InvalidRequest, match="leased"):
        changes.edit(EditMessage(NOW, "q", "a", b"other", None, None, False))
    leased = changes.cancel(CancelMessage(NOW, "q", "a"))
    assert (leased.state, leased.changed, leased.delivery) == (
        "leased",
        True,
        (delivery.seq, delivery.number, delivery.queue_id),
    )
    assert not changes.cancel(CancelMessage(NOW, "q", "a")).changed
    assert [end.id for end in changes.cancel(CancelMessage(NOW, "q", "b")).ended] == ["b"]
    assert parts.states() == {"a": "leased", "b": "cancelled"}
    with pytest.raises(NotFound):
        changes.cancel(CancelMessage(NOW, "q", "missing"))


def test_a_queue_is_deleted_once_nothing_is_left_of_it(parts: Parts) -> None:
    parts.put("a")
    deletion = Deletion(
        *(parts.database, parts.queues, parts.settled, parts.contents, parts.leased),
        *(parts.retention(), parts.totals),
    )
    with pytest.raises(InvalidRequest, match="has messages"):
        deletion.delete(DeleteQueue("q", True, frozenset()))
    parts.acks().settle(Settle(NOW, [(ref, None) for ref in parts.claim()], [], defaults))
    with pytest.raises(InvalidRequest, match="remembers"):
        deletion.delete(DeleteQueue("q", False, frozenset()))
    assert deletion.delete_idle(DeleteIdleQueues(0, 10, frozenset())).rows == 0
    with pytest.raises(InvalidRequest, match="bound"):
        deletion.delete(DeleteQueue("q", True, frozenset({"q"})))
    assert deletion.delete(DeleteQueue("q", True, frozenset())) == Deleted(True, 1, True)
    assert deletion.delete(DeleteQueue("q", True, frozenset())) == Deleted(False, 0, True)


def test_imports_store_what_is_new_all_or_none(parts: Parts) -> None:
    bindings = Bindings(parts.database, parts.queues)
    setups = Setups(parts.database, parts.queues, bindings, Schedules(parts.database, parts.puts, parts.totals))
    retention = parts.retention()
    imports = Imports(
        *(parts.database, parts.queues, parts.groups, parts.contents, parts.leased, parts.seqs),
        *(parts.space, parts.clock_notes, retention, setups),
    )
    entries: list[tuple[int, Entry]] = [
        (2, LiveMessage(queue="q", id="a", body="x", enqueued_at=NOW)),
        (3, EndedMessage(queue="q", id="b", digest="00" * 16, outcome="done", settled_at=NOW)),
        (4, PausedQueue(queue="q", paused=True)),
        (5, BindingLine(topic="orders", queue="q")),
    ]
    assert imports.store(Import(NOW, entries)) == 4
    assert imports.store(Import(NOW, entries)) == 0
    assert parts.states() == {"a": "ready", "b": "done"}
    forget = partial(_forget_in_steps, retention, settings=QueueSettings(retention=10), hurry=True)
    assert forget(NOW + 1) == [0]
    old = EndedMessage(queue="q", id="old", digest="00" * 16, outcome="done", settled_at=NOW - 100)
    assert imports.store(Import(NOW + 1, [(2, old)])) == 1
    assert forget(NOW + 2) == [1], "what was imported may be older than all before"
    other: list[tuple[int, Entry]] = [
        (2, LiveMessage(queue="q", id="c", body="x", enqueued_at=NOW)),
        (3, LiveMessage(queue="q", id="a", body="y", enqueued_at=NOW)),
    ]
    with pytest.raises(IdConflict, match="line 3"):
        imports.store(Import(NOW, other))
    assert parts.states() == {"a": "ready", "b": "done"}


def test_trouble_of_the_storage_is_listed_while_it_lasts_and_logged_once_a_minute(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    trouble = database.trouble
    for number in range(3):
        trouble.report("lock", f"locked by {number}")
    trouble.report("log", "the log grows")
    assert trouble.found == ["locked by 2", "the log grows"]
    trouble.report("lock", None)
    assert trouble.found == ["the log grows"]
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [
        *("locked by 0", "the log grows")
    ]


def test_bindings_refuse_what_contradicts_them(parts: Parts) -> None:
    bindings = Bindings(parts.database, parts.queues)
    orders = Binding("orders", "mail", {"risk": "high"})
    assert bindings.bind(Bind(orders, [])) == [orders]
    with pytest.raises(InvalidRequest):
        bindings.bind(Bind(Binding("more", "orders", {}), []))
    assert bindings.list_all(ListBindings()) == [orders]
    assert bindings.unbind(Unbind("orders", "mail")) == []
    with pytest.raises(NotFound):
        bindings.unbind(Unbind("orders", "mail"))


def test_once_keys_have_one_caller(database: Database) -> None:
    once = OnceKeys(database, ClockNotes(database))
    assert once.begin(OnceBegin(NOW, "k", "one", "f")).mine
    assert not once.begin(OnceBegin(NOW, "k", "two", "f")).mine
    with pytest.raises(IdConflict):
        once.begin(OnceBegin(NOW, "k", "two", "another"))
    assert once.running(OnceRunning()) == [("k", "one")]
    once.release(OnceRelease("k", "two"))
    once.finish(OnceFinish("k", "one", 0, b"output", 6, NOW + 1))
    with pytest.raises(LeaseLost):
        once.finish(OnceFinish("k", "two", 0, b"", 0, None))
    found = once.begin(OnceBegin(NOW, "k", "two", None))
    assert (found.state, found.mine, found.output) == ("done", False, b"output")
    assert once.forget(OnceForget(NOW + 2, 10)) == 1


def test_schedules_store_a_planned_occurrence_once(parts: Parts) -> None:
    schedules = Schedules(parts.database, parts.puts, parts.totals)
    definition = Definition("s", "q", Timing(None, None, 60, None), "last", "{}")
    added = schedules.add(ScheduleAdd(NOW, definition, int(NOW + 60), False))
    assert added.next_at == NOW + 60
    assert schedules.read_due(ReadDue(NOW, 10, False)).next_due_at == NOW + 60
    (due,) = schedules.read_due(ReadDue(NOW + 60, 10, False)).due
    then = due._replace(seen_at=NOW + 60, next_at=int(NOW + 120))
    plan = OccurrencePlan(due, [(int(NOW + 60), [NewMessage("q", "s@1", b"", b"")])], then, NOW + 120)
    fire = StoreOccurrences(NOW + 60, [plan], defaults, NOW + 65)
    fired = schedules.store_occurrences(fire)
    assert (len(fired.stored), fired.next_due_at, fired.refused) == (1, NOW + 120, False)
    assert schedules.store_occurrences(fire).stored == [], "the schedule is another than the one that was planned"
    (shown,) = schedules.list_all(ScheduleList())
    assert (shown.last_at, shown.next_at) == (NOW + 60, NOW + 120)
    schedules.remove(ScheduleRemove("s"))
    assert schedules.list_all(ScheduleList()) == []


def test_batching_answers_each_command_for_itself(parts: Parts) -> None:
    claims = parts.claims()
    methods: dict[type[Command[Any]], Callable[[Any], object]] = {Put: parts.puts.put, Claim: claims.claim}
    batching = Batching(parts.queues, parts.puts, claims, parts.totals, methods)

    def put(id: str, digest: bytes = b"d") -> Command[object]:
        return Put(NOW, [NewMessage("q", id, b"", digest)], defaults)

    claim = Claim(NOW, "q", 10, 1 << 20, defaults)
    outcomes = batching.run([put("a"), put("b"), put("a"), put("b", b"other"), claim, put("c"), claim])
    told = [one.code if isinstance(one, EoqError) else type(one).__name__ for one in outcomes]
    assert told == ["Stored", "Stored", "Stored", "id_conflict", "Claimed", "Stored", "Claimed"]
    assert parts.states() == {"a": "leased", "b": "leased", "c": "leased"}


def test_the_writer_answers_each_command_with_its_own_outcome(tmp_path: Path) -> None:
    async def run() -> None:
        store = await SqliteStore.open(tmp_path / "eoq.db")
        writer = Writer(store, lambda error: None)
        loop = asyncio.get_running_loop()

        def ask(command: Command[R]) -> asyncio.Future[R | EoqError]:
            answered: asyncio.Future[R | EoqError] = loop.create_future()
            writer.submit(command, answered.set_result)
            return answered

        try:
            paused, removed = ask(Pause("q", True)), ask(ScheduleRemove("none"))
            await writer.drain()
            assert await paused is True
            assert isinstance(await removed, NotFound)
        finally:
            await store.close()

    asyncio.run(run())
