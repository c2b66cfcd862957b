"""The hot statements use the index that 0001.sql made for them, however many messages there are (section 8).

No statement is copied here. Each command runs on a file with messages in every state, its statements are traced, and
SQLite is asked for the plan of each. The file has no statistics (``analyze`` never runs), so the plan is the same for
ten messages and for millions.
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal, get_args

import pytest
from msgspec.structs import replace

import eoq
from eoq.daemon import request_values, requests
from eoq.daemon.config.settings import QueueSettings
from eoq.daemon.records import DeliveryRef, NewMessage, OccurrencePlan
from eoq.daemon.store.commands import (
    Advance,
    Claim,
    Command,
    Drop,
    Purge,
    Put,
    Redrive,
    RejectDelivery,
    RetryDeliveries,
    Settle,
)
from eoq.daemon.store.schedule_commands import ReadDue, ScheduleAdd, StoreOccurrences
from eoq.daemon.store.sqlite.database import MANY
from eoq.daemon.store.sqlite.reader import Reader
from eoq.daemon.store.sqlite.shown import Filter
from eoq.daemon.store.sqlite.store import SqliteStore
from eoq.protocol.features import QueueOrder

NOW: Final = 1_700_000_000.0
LATER: Final = NOW + 1000
FILL: Final = 4
"""Messages in each state."""
MOST_BYTES: Final = 1 << 20
NO_PLAN: Final = ("begin", "commit", "pragma", "rollback", "savepoint", "release")
HARMLESS: Final = (
    "SCAN CONSTANT ROW",
    r"SCAN \d+ CONSTANT ROWS",  # the rows that a statement brings along
    r"SCAN \(subquery-\d+\)",
    r"SCAN (json_each|asked) VIRTUAL TABLE .*",
    "SCAN delivery",  # has one row for each claim whose messages are leased
    "SCAN delivered VIRTUAL TABLE .*",
    "SCAN ended",
)


class Traced:
    """A store whose statements can be seen. Commands are made with its ``settings``."""

    def __init__(self, store: SqliteStore) -> None:
        self.store = store
        self.settings: dict[str, QueueSettings] = {}

    def settings_of(self, queue: str) -> QueueSettings:
        """Return what is set for a queue."""
        return self.settings.get(queue, QueueSettings())

    def plan(self, *commands: Command[Any]) -> list[str]:
        """Return the steps in the plans of all statements that ``commands`` run, in one transaction."""
        statements: list[str] = []
        self.store.database.trace(statements.append)
        try:
            self.run(*commands)
        finally:
            self.store.database.trace(None)
        return [step for statement in statements for step in self.steps(statement)]

    def steps(self, statement: str) -> list[str]:
        """Return the steps in the plan of one statement."""
        if statement.strip().lower().startswith(NO_PLAN):
            return []
        return [row[3] for row in self.store.database.execute(f"explain query plan {statement}")]

    def run(self, *commands: Command[Any]) -> list[Any]:
        """Run commands in one transaction; return their outcomes, or raise the first error."""
        outcomes = self.store.transact(commands)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        return outcomes

    def put(self, *messages: NewMessage) -> Put:
        """Return the command that stores messages."""
        return Put(NOW, messages, self.settings_of)

    def settle(self, *acks: tuple[DeliveryRef, bytes | None]) -> Settle:
        """Return the command that acks deliveries."""
        return Settle(NOW, acks, (), self.settings_of)

    def claim(self, queue: str, limit: int = FILL) -> list[DeliveryRef]:
        """Claim messages of a queue."""
        (claimed,) = self.run(Claim(NOW, queue, limit, MOST_BYTES, self.settings_of))
        return [DeliveryRef(one.seq, claimed.delivery_number, queue, one.group) for one in claimed.messages]

    def claim_group(self) -> DeliveryRef:
        """Claim the first message of the group, the only one that is not blocked."""
        (delivery,) = self.claim("q", 1)
        assert delivery.group is not None
        return delivery

    def fill(self, queue: str) -> None:
        """Store messages in every state."""
        self.run(self.put(*(_message(queue, f"done{n}") for n in range(FILL))))
        self.run(self.settle(*((delivery, b"") for delivery in self.claim(queue))))
        self.run(self.put(*(_message(queue, f"dead{n}") for n in range(FILL))))
        for delivery in self.claim(queue):
            self.run(RejectDelivery(NOW, delivery, "rejected"))
        self.run(self.put(*(_message(queue, f"leased{n}") for n in range(FILL))))
        self.claim(queue)
        self.run(self.put(*(_message(queue, f"delayed{n}", due_at=LATER + n) for n in range(FILL))))
        self.run(self.put(*(_message(queue, f"in-group{n}", group="g") for n in range(FILL))))
        self.run(self.put(*(_message(queue, f"ready{n}") for n in range(FILL))))


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture
def traced(tmp_path: Path, loop: asyncio.AbstractEventLoop) -> Iterator[Traced]:
    """A store with two queues that hold messages in every state."""
    store = loop.run_until_complete(SqliteStore.open(tmp_path / "eoq.db"))
    try:
        traced = Traced(store)
        traced.fill("q")
        traced.fill("other")
        yield traced
    finally:
        loop.run_until_complete(store.close())


def _message(queue: str, id: str, *, group: str | None = None, due_at: float | None = None) -> NewMessage:
    return NewMessage(queue, id, b"body", b"digest", group=group, due_at=due_at)


def _is_walk(step: str) -> bool:
    """Return whether a step reads rows that it does not need, or sorts them."""
    if "TEMP B-TREE" in step or "AUTOMATIC" in step:
        return True
    return step.startswith("SCAN") and not any(re.fullmatch(harmless, step) for harmless in HARMLESS)


def _check(steps: list[str], *expected: str) -> None:
    for searched in expected:
        assert any(searched in step for step in steps), f"nothing is like {searched!r} in {steps}"
    walks = [step for step in steps if _is_walk(step)]
    assert not walks, f"{walks} in {steps}"


def test_a_claim_takes_the_ready_in_order_and_finds_the_watermark(traced: Traced) -> None:
    _check(
        traced.plan(Claim(NOW, "q", 10 * FILL, MOST_BYTES, traced.settings_of)),
        "INDEX message_ready (queue=? AND priority=? AND seq>?)",
        "INDEX message_ready (queue=? AND priority<?)",
        "INDEX message_ready (queue=? AND priority=?)",
        "INDEX message_ready_by_seq (queue=?)",
        "INDEX message_later (queue=?)",
        "INDEX message_dead (queue=?)",
        "INDEX outcome_given_up (queue=?)",
    )


def test_a_claim_finds_what_came_back_by_its_seq(traced: Traced) -> None:
    (delivery,) = traced.claim("q", 1)
    traced.run(RetryDeliveries(NOW, [delivery], traced.settings_of))
    steps = traced.plan(Claim(NOW, "q", 1, MOST_BYTES, traced.settings_of))
    _check(steps, "message USING INTEGER PRIMARY KEY (rowid=?)")


def test_a_put_and_its_claim_look_at_the_first_of_the_others(traced: Traced) -> None:
    traced.claim("q", 2 * FILL)
    message = _message("q", "waited-for")
    steps = traced.plan(traced.put(message), Claim(NOW, "q", 1, MOST_BYTES, traced.settings_of))
    assert not any("message USING INTEGER PRIMARY KEY (rowid=?)" in step for step in steps), (
        "it was stored, and then claimed"
    )
    _check(
        steps,
        "INDEX message_ready (queue=? AND priority=? AND seq>?)",
        "INDEX message_ready (queue=? AND priority<?)",
        "INDEX message_later (queue=?)",
        "INDEX message_dead (queue=?)",
        "INDEX outcome_given_up (queue=?)",
    )


def test_a_send_finds_the_stored_message_by_id(traced: Traced) -> None:
    message = _message("q", "ready0")
    _check(
        traced.plan(traced.put(message)),
        "known_id USING PRIMARY KEY (queue=? AND id=?)",
    )


def test_a_send_looks_only_before_itself_in_its_group(traced: Traced) -> None:
    batch = [_message("q", f"more{n}", group="g") for n in range(MANY + 1)]
    _check(
        traced.plan(traced.put(*batch)),
        "message USING INTEGER PRIMARY KEY (rowid>?)",
        "COVERING INDEX message_group (queue=? AND group=? AND state=? AND seq<?)",
    )


def test_an_ack_finds_the_next_of_its_group(traced: Traced) -> None:
    delivery = traced.claim_group()
    _check(
        traced.plan(traced.settle((delivery, None))),
        "SEARCH message USING COVERING INDEX message_group (queue=? AND group=? AND state=?)",
        "SEARCH ahead USING COVERING INDEX message_group (queue=? AND group=? AND state=?)",
    )


@pytest.mark.parametrize("results", [1, 2], ids=["one-result", "two-results"])
def test_acks_find_their_messages_by_seq(traced: Traced, results: int) -> None:
    traced.run(traced.put(*(_message("q", f"more{n}") for n in range(MANY + 1))))
    acks = [(one, b"x" * (index % results)) for index, one in enumerate(traced.claim("q", MANY + 1))]
    assert len(acks) > MANY
    steps = traced.plan(traced.settle(*acks))
    _check(steps, "message USING INTEGER PRIMARY KEY (rowid=?)")


def test_a_repeated_ack_finds_what_it_did(traced: Traced) -> None:
    (delivery,) = traced.claim("q", 1)
    repeat = replace(delivery, ended=True, group=None, queue_id=1, id="in-group0")
    traced.run(traced.settle((delivery, None)))
    steps = traced.plan(traced.settle((repeat, None)))
    _check(steps, "known_id USING PRIMARY KEY (queue=? AND id=?)", "outcome USING INTEGER PRIMARY KEY (rowid=?)")


@pytest.mark.parametrize("max_attempts", [1, 10], ids=["dead", "again"])
def test_a_retry_finds_its_message_by_seq(traced: Traced, max_attempts: int) -> None:
    traced.settings["q"] = QueueSettings(max_attempts=max_attempts)
    delivery = traced.claim_group()
    steps = traced.plan(RetryDeliveries(NOW, [delivery], traced.settings_of))
    _check(steps, "message USING INTEGER PRIMARY KEY (rowid=?)")


def test_a_reject_finds_its_message_by_seq(traced: Traced) -> None:
    delivery = traced.claim_group()
    steps = traced.plan(RejectDelivery(NOW, delivery, None))
    _check(steps, "message USING INTEGER PRIMARY KEY (rowid=?)")


def test_a_reject_finds_the_next_of_its_group(traced: Traced) -> None:
    delivery = traced.claim_group()
    steps = traced.plan(RejectDelivery(NOW, delivery, None))
    _check(steps, "SEARCH message USING COVERING INDEX message_group (queue=? AND group=? AND state=?)")


def test_the_timer_finds_what_is_due_what_has_expired_and_what_is_next(traced: Traced) -> None:
    traced.run(traced.put(replace(_message("q", "expired"), expires_at=NOW + 1)))
    _check(
        traced.plan(Advance(LATER + 1, 500, traced.settings_of)),
        "message USING INDEX message_delayed (fixed=? AND due_at<?)",
        "message USING INDEX message_delayed (fixed=?)",
        "message USING INDEX message_expiring (expires_at>? AND expires_at<?)",
        "message USING INDEX message_expiring (expires_at>?)",
    )


def test_a_claim_that_finds_an_expired_message_looks_at_few(traced: Traced) -> None:
    traced.run(traced.put(replace(_message("q", "expired"), expires_at=NOW)))
    steps = traced.plan(Claim(NOW + 1, "q", 1, MOST_BYTES, traced.settings_of))
    _check(steps, "message USING INDEX message_ready (queue=? AND priority=? AND seq>?)")


@pytest.mark.parametrize("when_full", ["refuse", "drop_oldest"])
def test_a_queue_with_a_limit_is_counted_once_and_its_oldest_found(
    traced: Traced, when_full: Literal["refuse", "drop_oldest"]
) -> None:
    traced.settings["q"] = QueueSettings(max_depth=FILL, when_full=when_full)
    with suppress(eoq.QueueFull):
        traced.run(traced.put(_message("q", "counted")))
    steps: list[str] = []
    with suppress(eoq.QueueFull):
        steps = traced.plan(traced.put(_message("q", "more")))
    _check(steps)
    assert not any("COUNT" in step or step == "message_ready (queue=?)" for step in steps)


def test_redrive_drop_and_purge_find_what_they_change(traced: Traced) -> None:
    redriven = traced.plan(Redrive(NOW, "q", ["dead0", "ready0"], None, 0))
    _check(redriven, "known_id USING PRIMARY KEY (queue=? AND id=?)", "message USING INTEGER PRIMARY KEY (rowid=?)")
    dropped = traced.plan(Drop(NOW, "q", None, LATER, 0))
    _check(dropped, "INDEX message_dead (queue=? AND seq>?)")
    purged = traced.plan(Purge(NOW, "q", None))
    _check(purged, "INDEX message_later (queue=? AND seq<?)")


def test_firing_finds_the_schedules_that_are_due_and_the_next(traced: Traced) -> None:
    for n in range(FILL):
        fields = requests.Schedule(name=f"s{n}", queue="q", every=600 + n)
        traced.run(ScheduleAdd(NOW, *request_values.new_schedule(fields, NOW), False))

    now = NOW + 602
    read = ReadDue(now, FILL, False)
    (due,) = traced.run(read)
    plans = [
        OccurrencePlan(one, [(one.next_at, [_message("q", one.definition.name)])], one._replace(seen_at=now), now + 600)
        for one in due.due
    ]
    assert plans
    _check(
        traced.plan(read, StoreOccurrences(now, plans, traced.settings_of, now + 5)),
        "schedule USING INDEX schedule_due (try_at<?)",
        "schedule USING COVERING INDEX schedule_due",
        "schedule USING INDEX schedule_seen (seen_at>?)",
        "schedule USING INDEX sqlite_autoindex_schedule_1 (name=?)",
        "schedule USING INTEGER PRIMARY KEY (rowid=?)",
    )


def test_a_start_finds_the_leases_of_the_daemon_before(
    tmp_path: Path, loop: asyncio.AbstractEventLoop, traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening makes its connection by itself, so it is traced from its first statement on."""
    statements: list[str] = []
    connect = sqlite3.connect

    def connect_traced(*args: object, **options: object) -> sqlite3.Connection:
        database: sqlite3.Connection = connect(*args, **options)  # type: ignore[call-overload] # passed on as they are
        database.set_trace_callback(statements.append)
        return database

    store = loop.run_until_complete(SqliteStore.open(tmp_path / "another.db"))
    store.transact([traced.put(_message("q", "a"))])
    store.transact([Claim(NOW, "q", 1, MOST_BYTES, traced.settings_of)])
    loop.run_until_complete(store.close())
    monkeypatch.setattr(sqlite3, "connect", connect_traced)
    store = loop.run_until_complete(SqliteStore.open(tmp_path / "another.db"))
    loop.run_until_complete(store.close())
    hot = [statement for statement in statements if re.search(r"\b(from|update) message\b", statement)]
    assert hot, statements
    steps = [step for statement in hot for step in traced.steps(statement)]
    _check(steps, "message USING INTEGER PRIMARY KEY (rowid=?)")


@pytest.mark.parametrize(
    ("state", "index"),
    [("ready", "INDEX message_ready (queue=?)"), ("dead", "INDEX message_dead (queue=?)")],
)
def test_a_peek_walks_only_its_state(
    tmp_path: Path, loop: asyncio.AbstractEventLoop, traced: Traced, state: str, index: str
) -> None:
    _check(
        loop.run_until_complete(_plan_of_reading(tmp_path, lambda reader: reader.peek("q", state, 10, Filter()))), index
    )


def test_a_result_is_found_by_id(tmp_path: Path, loop: asyncio.AbstractEventLoop, traced: Traced) -> None:
    steps = loop.run_until_complete(_plan_of_reading(tmp_path, lambda reader: reader.result("q", "done0")))
    _check(
        steps,
        "known_id USING PRIMARY KEY (queue=? AND id=?)",
        "message USING INTEGER PRIMARY KEY (rowid=?)",
        "outcome USING INTEGER PRIMARY KEY (rowid=?)",
    )


def test_a_page_of_queues_counts_by_indexes_alone(
    tmp_path: Path, loop: asyncio.AbstractEventLoop, traced: Traced
) -> None:
    steps = loop.run_until_complete(_plan_of_reading(tmp_path, lambda reader: reader.queues("a", "b", 10)))
    assert "SEARCH queue USING INDEX sqlite_autoindex_queue_1 (name>? AND name<?)" in steps
    _check_counts(steps)


@pytest.mark.parametrize("order", get_args(QueueOrder))
def test_a_ranking_counts_by_indexes_alone(
    tmp_path: Path, loop: asyncio.AbstractEventLoop, traced: Traced, order: str
) -> None:
    ranking = loop.run_until_complete(
        _plan_of_reading(tmp_path, lambda reader: reader.ranking(order, "q", 0, 10, b"{}"))
    )
    _check_counts(ranking)


def _check_counts(steps: list[str]) -> None:
    of_messages = [step for step in steps if step.startswith(("SCAN message", "SEARCH message"))]
    assert {step.split("USING ")[1].removeprefix("COVERING ") for step in of_messages} <= {
        "INTEGER PRIMARY KEY (rowid=?)",  # that of a message which is leased, or is the oldest
        "INDEX message_ready (queue=?)",
        "INDEX message_ready (queue=? AND priority=?)",
        "INDEX message_ready_by_seq (queue=?)",
        "INDEX message_later (queue=?)",
        "INDEX message_group (queue=? AND group>?)",
        "INDEX message_dead (queue=?)",
    }
    assert not [step for step in steps if step.startswith("SCAN queue") and "INDEX" not in step]


async def _plan_of_reading(folder: Path, look: Callable[[Reader], Awaitable[object]]) -> list[str]:
    reader = await Reader.open(folder / "eoq.db")
    connection = reader._connection  # private, as that of the store
    statements: list[str] = []
    try:
        await connection.set_trace_callback(statements.append)
        await look(reader)
        await connection.set_trace_callback(lambda _: None)
        steps: list[str] = []
        for statement in statements:
            rows = await connection.execute_fetchall(f"explain query plan {statement}")
            steps += [row[3] for row in rows]
        return steps
    finally:
        await reader.close()
