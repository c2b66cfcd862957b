"""The hot statements use the index that 0001.sql made for them, however many messages there are (section 8).

No statement is copied here: each verb is performed for real on a file with messages in every state, what it runs is
traced on the connection that runs it, and SQLite is then asked for the plan of each statement on that connection.
SQLite has no statistics of the file (nobody runs ``analyze``), so the plan is the same for ten and for millions.
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, Literal

import pytest
from msgspec.structs import replace

import eoq
from eoq.daemon import requests
from eoq.daemon.config.settings import QueueSettings
from eoq.daemon.records import ClaimedMessage, DeliveryRef, NewMessage
from eoq.daemon.schedule_rules import Definition
from eoq.daemon.store.sqlite.batching import Claim
from eoq.daemon.store.sqlite.database import MANY
from eoq.daemon.store.sqlite.reader import Filter, Reader
from eoq.daemon.store.sqlite.store import Store
from eoq.daemon.store.sqlite.tables.publishing import Put
from eoq.daemon.store.sqlite.tables.schedules import Sent

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
    "SCAN json_each .*",
    "SCAN message USING (COVERING )?INDEX message_leased",  # holds nothing but what is looked for
)


class Traced:
    """A store whose statements can be asked for. Its connection is private; there is no other way to the plans."""

    def __init__(self, store: Store, settings: dict[str, QueueSettings]) -> None:
        self.store = store
        self.settings = settings
        self._database: sqlite3.Connection = store._database

    def plan(self, *verbs: Callable[[], object]) -> list[str]:
        """The steps in the plans of all statements that ``verbs`` run, in one transaction."""
        statements: list[str] = []
        self._database.set_trace_callback(statements.append)
        try:
            _do(self.store, *verbs)
        finally:
            self._database.set_trace_callback(None)
        return [step for statement in statements for step in self.steps(statement)]

    def steps(self, statement: str) -> list[str]:
        """The steps in the plan of one statement."""
        if statement.strip().lower().startswith(NO_PLAN):
            return []
        return [row[3] for row in self._database.execute(f"explain query plan {statement}")]


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture
def traced(tmp_path: Path, loop: asyncio.AbstractEventLoop) -> Iterator[Traced]:
    """A store with two queues that hold messages in every state."""
    settings: dict[str, QueueSettings] = {}
    store = loop.run_until_complete(
        Store.open(tmp_path / "eoq.db", settings=lambda queue: settings.get(queue, QueueSettings()))
    )
    try:
        _fill(store, "q")
        _fill(store, "other")
        yield Traced(store, settings)
    finally:
        loop.run_until_complete(store.close())


def _fill(store: Store, queue: str) -> None:
    _put(store, [_message(queue, f"done{n}") for n in range(FILL)])
    taken = _claim(store, queue)
    _do(store, lambda: store.settle(NOW, [(held, b"") for held in taken], []))
    _put(store, [_message(queue, f"dead{n}") for n in range(FILL)])
    for held in _claim(store, queue):
        _do(store, partial(store.reject, NOW, held, "rejected"))
    _put(store, [_message(queue, f"leased{n}") for n in range(FILL)])
    _claim(store, queue)
    _put(store, [_message(queue, f"delayed{n}", due_at=LATER + n) for n in range(FILL)])
    _put(store, [_message(queue, f"in-group{n}", group="g") for n in range(FILL)])
    _put(store, [_message(queue, f"ready{n}") for n in range(FILL)])


def _message(queue: str, id: str, *, group: str | None = None, due_at: float | None = None) -> NewMessage:
    return NewMessage(queue, id, b"body", b"digest", group=group, due_at=due_at)


def _put(store: Store, messages: list[NewMessage]) -> None:
    _do(store, lambda: store.put(NOW, messages))


def _do(store: Store, *verbs: Callable[[], object]) -> None:
    for outcome in store.transact(verbs):
        if isinstance(outcome, Exception):
            raise outcome


def _claim(store: Store, queue: str, limit: int = FILL) -> list[DeliveryRef]:
    taken: list[ClaimedMessage] = []
    _do(store, lambda: taken.extend(store.claim(NOW, queue, limit, MOST_BYTES).messages))
    return [DeliveryRef(message.seq, message.delivery_number, queue, message.group) for message in taken]


def _claim_group(store: Store) -> DeliveryRef:
    """The one message of the group that is not blocked: the first that is ready."""
    (held,) = _claim(store, "q", 1)
    assert held.group is not None
    return held


def _is_walk(step: str) -> bool:
    """Whether a step looks at rows that nobody asked for, or sorts them."""
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
        traced.plan(lambda: traced.store.claim(NOW, "q", FILL, MOST_BYTES)),
        "INDEX message_ready (queue=?)",
        "INDEX message_ready (queue=? AND priority=?)",
        "INDEX message_ready_by_seq (queue=?)",
        "INDEX message_leased (queue=?)",
        "INDEX message_later (queue=?)",
        "INDEX message_dead (queue=?)",
        "INDEX message_given_up (queue=?)",
        "message USING INTEGER PRIMARY KEY (rowid=?)",
    )


def test_a_message_that_is_handed_over_looks_at_the_first_of_the_others(traced: Traced) -> None:
    _claim(traced.store, "q", 2 * FILL)
    message = _message("q", "waited-for")
    steps = traced.plan(Put(traced.store, NOW, (message,)), Claim(traced.store, NOW, "q", 1, MOST_BYTES, None))
    assert not any("INTEGER PRIMARY KEY" in step for step in steps), "it was stored, and then claimed"
    _check(
        steps,
        "INDEX message_ready (queue=?)",
        "INDEX message_leased (queue=?)",
        "INDEX message_later (queue=?)",
        "INDEX message_dead (queue=?)",
        "INDEX message_given_up (queue=?)",
    )


def test_a_send_finds_the_stored_message_by_id(traced: Traced) -> None:
    message = _message("q", "ready0")
    _check(traced.plan(lambda: traced.store.put(NOW, [message])), "INDEX message_by_id (queue=? AND id=?)")


def test_a_send_looks_only_before_itself_in_its_group(traced: Traced) -> None:
    batch = [_message("q", f"more{n}", group="g") for n in range(MANY + 1)]
    _check(
        traced.plan(lambda: traced.store.put(NOW, batch)),
        "message USING INTEGER PRIMARY KEY (rowid>?)",
        "COVERING INDEX message_group (queue=? AND group=? AND state=? AND seq<?)",
    )


def test_an_ack_finds_the_next_of_its_group(traced: Traced) -> None:
    held = _claim_group(traced.store)
    _check(
        traced.plan(lambda: traced.store.settle(NOW, [(held, None)], [])),
        "SEARCH message USING COVERING INDEX message_group (queue=? AND group=? AND state=?)",
        "SEARCH ahead USING COVERING INDEX message_group (queue=? AND group=? AND state=?)",
    )


@pytest.mark.parametrize("results", [1, 2], ids=["one-result", "two-results"])
def test_acks_find_their_messages_by_place(traced: Traced, results: int) -> None:
    _put(traced.store, [_message("q", f"more{n}") for n in range(MANY + 1)])
    acks = [(held, b"x" * (index % results)) for index, held in enumerate(_claim(traced.store, "q", MANY + 1))]
    assert len(acks) > MANY
    steps = traced.plan(lambda: traced.store.settle(NOW, acks, []))
    _check(steps, "message USING INTEGER PRIMARY KEY (rowid=?)")


def test_a_repeated_ack_finds_what_it_did(traced: Traced) -> None:
    (held,) = _claim(traced.store, "q", 1)
    repeat = replace(held, ended=True, group=None)
    _do(traced.store, lambda: traced.store.settle(NOW, [(held, None)], []))
    steps = traced.plan(lambda: traced.store.settle(NOW, [(repeat, None)], []))
    _check(steps, "message USING INTEGER PRIMARY KEY (rowid=?)")


@pytest.mark.parametrize("max_attempts", [1, 10], ids=["dead", "again"])
def test_a_retry_finds_its_message_by_place(traced: Traced, max_attempts: int) -> None:
    traced.settings["q"] = QueueSettings(max_attempts=max_attempts)
    held = _claim_group(traced.store)
    steps = traced.plan(lambda: traced.store.retry(NOW, [held]))
    _check(steps, "message USING INTEGER PRIMARY KEY (rowid=?)")


def test_a_reject_finds_its_message_by_place(traced: Traced) -> None:
    held = _claim_group(traced.store)
    steps = traced.plan(lambda: traced.store.reject(NOW, held, None))
    _check(steps, "message USING INTEGER PRIMARY KEY (rowid=?)")


def test_a_reject_finds_the_next_of_its_group(traced: Traced) -> None:
    held = _claim_group(traced.store)
    steps = traced.plan(lambda: traced.store.reject(NOW, held, None))
    _check(steps, "SEARCH message USING COVERING INDEX message_group (queue=? AND group=? AND state=?)")


def test_the_timer_finds_what_is_due_what_has_expired_and_what_is_next(traced: Traced) -> None:
    _put(traced.store, [replace(_message("q", "expired"), expires_at=NOW + 1)])
    _check(
        traced.plan(lambda: traced.store.advance(LATER + 1, 500)),
        "message USING INDEX message_delayed (due_at<?)",
        "message USING INDEX message_delayed",
        "message USING INDEX message_expiring (expires_at<?)",
        "message USING INDEX message_expiring (expires_at>?)",
    )


def test_a_claim_that_finds_an_expired_message_looks_at_few(traced: Traced) -> None:
    _put(traced.store, [replace(_message("q", "expired"), expires_at=NOW, priority=1)])
    steps = traced.plan(lambda: traced.store.claim(NOW + 1, "q", 1, MOST_BYTES))
    _check(steps, "message USING INDEX message_ready (queue=?)")


@pytest.mark.parametrize("when_full", ["refuse", "drop_oldest"])
def test_a_queue_with_a_limit_is_counted_once_and_its_oldest_found(
    traced: Traced, when_full: Literal["refuse", "drop_oldest"]
) -> None:
    traced.settings["q"] = QueueSettings(max_depth=FILL, when_full=when_full)
    with suppress(eoq.QueueFull):
        _put(traced.store, [_message("q", "counted")])
    steps: list[str] = []
    with suppress(eoq.QueueFull):
        steps = traced.plan(lambda: traced.store.put(NOW, [_message("q", "more")]))
    _check(steps)
    assert not any("COUNT" in step or step == "message_ready (queue=?)" for step in steps)


def test_steering_finds_what_it_changes(traced: Traced) -> None:
    redriven = traced.plan(lambda: traced.store.redrive(NOW, "q", ids=["dead0", "ready0"], failed_before=None, after=0))
    _check(redriven, "INDEX message_by_id (queue=? AND id=?)")
    dropped = traced.plan(lambda: traced.store.drop(NOW, "q", ids=None, failed_before=LATER, after=0))
    _check(dropped, "INDEX message_dead (queue=? AND seq>?)")
    purged = traced.plan(lambda: traced.store.purge(NOW, "q", None))
    _check(purged, "INDEX message_later (queue=? AND seq<?)")


def test_firing_finds_the_schedules_that_are_due_and_the_next(traced: Traced) -> None:
    for n in range(FILL):
        fields = requests.Schedule(name=f"s{n}", queue="q", every=600 + n)
        definition = requests.new_schedule(fields, NOW)
        _do(traced.store, partial(traced.store.schedule_add, NOW, definition, False))

    def send(now: float, definition: Definition, at: int) -> Sent:
        messages = [requests.scheduled_message(definition, at)]
        return Sent(messages, traced.store.put(now, messages))

    fire = partial(traced.store.schedule_fire, NOW + 602, send)
    _check(
        traced.plan(fire),
        "schedule USING INDEX schedule_due (try_at<?)",
        "schedule USING COVERING INDEX schedule_due",
        "schedule USING INDEX schedule_seen (seen_at>?)",
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

    store = loop.run_until_complete(Store.open(tmp_path / "another.db"))
    loop.run_until_complete(store.close())
    monkeypatch.setattr(sqlite3, "connect", connect_traced)
    store = loop.run_until_complete(Store.open(tmp_path / "another.db"))
    loop.run_until_complete(store.close())
    hot = [statement for statement in statements if re.search(r"\b(from|update) message\b", statement)]
    assert hot, statements
    steps = [step for statement in hot for step in traced.steps(statement)]
    _check(steps, "message USING INDEX message_leased")


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
    _check(steps, "INDEX message_by_id (queue=? AND id=?)")


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
