"""Whatever is there: a message handed over leaves the file, and both sides, as a put and then a claim would."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from eoq import EoqError
from eoq.daemon.config.settings import QueueSettings, StorageSettings
from eoq.daemon.records import Claimed, DeliveryRef, NewMessage
from eoq.daemon.store.sqlite.batching import Claim
from eoq.daemon.store.sqlite.store import Store
from eoq.daemon.store.sqlite.tables.publishing import Put

NOW: Final = 1_700_000_000.0
TABLES: Final = ("message", "queue", "failure", "counter")
FULL: Final = StorageSettings(min_free_bytes=2**53)

Verb = Callable[[], object]
Told = list[object]


@dataclass(frozen=True)
class Case:
    """What is there before, and what is sent while somebody waits."""

    message: NewMessage
    before: Sequence[Callable[[Store], Verb]] = ()
    taken_at: float = NOW + 0.5
    queue: str = "q"
    """Where the other waits."""
    full: bool = False
    settings: QueueSettings = field(default_factory=QueueSettings)
    settings_before: QueueSettings = field(default_factory=QueueSettings)


def _message(id: str, **options: Any) -> NewMessage:
    return NewMessage("q", id, b"body of " + id.encode(), b"digest", **options)


def _put(id: str, **options: Any) -> Callable[[Store], Verb]:
    return lambda store: Put(store, NOW - 10, (_message(id, **options),))


def _take(limit: int = 1) -> Callable[[Store], Verb]:
    return lambda store: Claim(store, NOW - 9, "q", limit, 1 << 20, "pid 1")


def _reject(seq: int, group: str | None = None) -> Callable[[Store], Verb]:
    return lambda store: lambda: store.reject(NOW - 8, DeliveryRef(seq, 1, "q", group), "no")


def _ack(seq: int) -> Callable[[Store], Verb]:
    return lambda store: lambda: store.settle(NOW - 8, [(DeliveryRef(seq, 1, "q"), b"result")], ())


KNOWN: Final = _put("known")
SETTLED: Final = (KNOWN, _take(), _ack(2))
HANDED_OVER: Final = {
    "one-settled": Case(_message("a"), SETTLED),
    "one-leased": Case(_message("a"), [KNOWN, _take()]),
    "one-dead": Case(_message("a"), [KNOWN, _take(), _reject(2)]),
    "one-delayed": Case(_message("a"), [*SETTLED, _put("delayed", due_at=NOW + 100)]),
    "one-given-up": Case(
        _message("a"),
        [KNOWN, _take(), _reject(2), lambda store: lambda: store.drop(NOW, "q", ids=None, failed_before=None, after=0)],
    ),
    "one-dropped": Case(_message("a"), [KNOWN, lambda store: lambda: store.purge(NOW, "q", None)]),
    "one-expired-in-the-end": Case(
        _message("a"),
        [
            _put("late", expires_at=NOW - 8),
            _take(),
            lambda store: lambda: store.retry(NOW - 7, [DeliveryRef(2, 1, "q", expires=True)]),
        ],
    ),
    "one-blocked": Case(
        _message("a"),
        [
            *(_put("first", group="g"), _put("second", group="g"), _take(), _reject(2, "g"), _take()),
            lambda store: lambda: store.redrive(NOW, "q", ids=None, failed_before=None, after=0),
        ],
    ),
    "with-all": Case(_message("a", headers='{"k":"v"}', priority=-2, expires_at=NOW + 1), SETTLED),
    "a-queue-that-was-limited": Case(_message("a"), SETTLED, settings_before=QueueSettings(max_depth=9)),
}
NOT_HANDED_OVER: Final = {
    "a-new-queue": Case(NewMessage("new", "a", b"", b"digest"), SETTLED, queue="new"),
    "one-ready": Case(_message("a"), [KNOWN]),
    "one-ready-behind-it": Case(_message("a", priority=1), [KNOWN]),
    "one-ready-before-it": Case(_message("a", priority=-1), [KNOWN]),
    "one-expired": Case(_message("a"), [*SETTLED, _put("late", expires_at=NOW - 5)]),
    "paused": Case(_message("a"), [*SETTLED, lambda store: lambda: store.pause("q", True)]),
    "another-queue": Case(
        _message("a"), [*SETTLED, lambda store: Put(store, NOW, (NewMessage("r", "b", b"", b"d"),))], queue="r"
    ),
    "expired-meanwhile": Case(_message("a", expires_at=NOW + 0.5), SETTLED),
    "a-duplicate-of-one-settled": Case(_message("known"), SETTLED),
    "a-duplicate-of-one-leased": Case(_message("known"), [KNOWN, _take()]),
    "a-conflict": Case(NewMessage("q", "known", b"other", b"another"), SETTLED),
    "in-a-group": Case(_message("a", group="g"), SETTLED),
    "delayed": Case(_message("a", due_at=NOW + 9), SETTLED),
    "a-limited-queue": Case(_message("a"), SETTLED, settings=QueueSettings(max_depth=5)),
    "a-full-queue": Case(_message("a"), [KNOWN, _take()], settings=QueueSettings(max_depth=1)),
    "a-full-disk": Case(_message("a"), SETTLED, full=True),
}


async def _outcome(
    path: Path, case: Case, together: bool
) -> tuple[list[object], dict[str, list[tuple[object, ...]]], bool]:
    """What both were told, what is in the file, and whether it was done as one."""
    storage = StorageSettings()
    settings = case.settings_before
    store = await Store.open(path, settings=lambda _: settings, storage=lambda: storage)
    try:
        # Another queue first, so that the numbers of queue and message are not the same; its watermark is its own.
        store.transact([Put(store, NOW, (NewMessage("first", "", b"", b""),))])
        store.transact([Claim(store, NOW, "first", 1, 1 << 20, None)])
        for verb in case.before:
            (outcome,) = store.transact([verb(store)])
            assert not isinstance(outcome, EoqError), outcome
        settings = case.settings
        if case.full:
            storage = FULL
            store._space_known_at = float("-inf")  # private: the disk is looked at again, as it is after 0.1 s
        verbs: list[Verb] = [
            Put(store, NOW, (case.message,)),
            Claim(store, case.taken_at, case.queue, 1, 1 << 20, "pid 2"),
        ]
        statements: list[str] = []
        store._database.set_trace_callback(statements.append)  # private; there is no other way to see them
        told = store.transact(verbs) if together else [store.transact([verb])[0] for verb in verbs]
        store._database.set_trace_callback(None)
        assert "rollback" not in statements, "one refusal cost all their transaction"
        # Both go on from there in the same way: the next place in the file, what is counted.
        told += store.transact([Put(store, NOW, (_message("next"),)), Claim(store, NOW, "q", 9, 1 << 20, None)])
        settings = QueueSettings(max_depth=4, when_full="drop_oldest")
        told += store.transact([lambda: store.put(NOW, [_message(f"more{n}") for n in range(4)])])
        told = [_plainly(one) for one in told]
        files = {table: store._database.execute(f"select * from {table}").fetchall() for table in TABLES}
        return told, files, not any("update message" in statement for statement in statements)
    finally:
        await store.close()


def _plainly(told: object) -> object:
    """An error says how much room there was, which changes; and what has ended is a list or a tuple."""
    if isinstance(told, EoqError):
        return type(told)
    return told._replace(ended=list(told.ended)) if isinstance(told, Claimed) else told


def _compare(folder: Path, case: Case) -> tuple[Told, bool]:
    one_by_one = asyncio.run(_outcome(folder / "one.db", case, together=False))
    together = asyncio.run(_outcome(folder / "two.db", case, together=True))
    assert together[:2] == one_by_one[:2]
    return together[0], together[2]


@pytest.mark.parametrize("case", HANDED_OVER.values(), ids=HANDED_OVER.keys())
def test_it_is_done_as_one(tmp_path: Path, case: Case) -> None:
    told, as_one = _compare(tmp_path, case)
    assert as_one
    claim = told[1]
    assert isinstance(claim, Claimed) and [message.id for message in claim.messages] == [case.message.id]


@pytest.mark.parametrize("case", NOT_HANDED_OVER.values(), ids=NOT_HANDED_OVER.keys())
def test_it_is_done_as_two(tmp_path: Path, case: Case) -> None:
    _compare(tmp_path, case)
