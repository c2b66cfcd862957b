"""A put and the claim that waits for it, done as one, leave the file and both outcomes as a put and then a claim do."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from msgspec.structs import replace

from eoq import EoqError
from eoq.daemon.config.settings import QueueSettings, StorageSettings, defaults
from eoq.daemon.records import Claimed, DeliveryRef, NewMessage
from eoq.daemon.store.commands import (
    Claim,
    Command,
    Drop,
    Pause,
    Purge,
    Put,
    Redrive,
    RejectDelivery,
    RetryDeliveries,
    Settle,
)
from eoq.daemon.store.sqlite.store import SqliteStore

NOW: Final = 1_700_000_000.0
TABLES: Final = ("message", "queue", "failure", "counter", "delivery", "settled", "result")
FULL: Final = StorageSettings(min_free_bytes=2**53)

AnyCommand = Command[Any]
Told = list[object]


@dataclass(frozen=True)
class Case:
    """What is stored before, and what is sent while a consumer waits."""

    message: NewMessage
    before: Sequence[AnyCommand] = ()
    claimed_at: float = NOW + 0.5
    queue: str = "q"
    """The queue that the consumer waits at."""
    full: bool = False
    settings: QueueSettings = field(default_factory=QueueSettings)
    settings_before: QueueSettings = field(default_factory=QueueSettings)


def _message(id: str, **options: Any) -> NewMessage:
    return NewMessage("q", id, b"body of " + id.encode(), b"digest", **options)


def _put(id: str, **options: Any) -> AnyCommand:
    return Put(NOW - 10, (_message(id, **options),), defaults)


def _claim(limit: int = 1) -> AnyCommand:
    return Claim(NOW - 9, "q", limit, 1 << 20, defaults, "pid 1")


def _reject(seq: int, group: str | None = None) -> AnyCommand:
    return RejectDelivery(NOW - 8, DeliveryRef(seq, 2, "q", group), "no")


def _ack(seq: int) -> AnyCommand:
    return Settle(NOW - 8, [(DeliveryRef(seq, 2, "q"), b"result")], (), defaults)


KNOWN: Final = _put("known")
SETTLED: Final = (KNOWN, _claim(), _ack(2))
AS_ONE: Final = {
    "one-settled": Case(_message("a"), SETTLED),
    "one-leased": Case(_message("a"), [KNOWN, _claim()]),
    "one-dead": Case(_message("a"), [KNOWN, _claim(), _reject(2)]),
    "one-delayed": Case(_message("a"), [*SETTLED, _put("delayed", due_at=NOW + 100)]),
    "one-dropped-after-delivery": Case(
        _message("a"),
        [KNOWN, _claim(), _reject(2), Drop(NOW, "q", None, None, 0)],
    ),
    "one-dropped": Case(_message("a"), [KNOWN, Purge(NOW, "q", None)]),
    "one-expired-after-delivery": Case(
        _message("a"),
        [
            _put("late", expires_at=NOW - 8),
            _claim(),
            RetryDeliveries(NOW - 7, [DeliveryRef(2, 2, "q", expires=True)], defaults),
        ],
    ),
    "one-blocked": Case(
        _message("a"),
        [
            *(_put("first", group="g"), _put("second", group="g"), _claim(), _reject(2, "g"), _claim()),
            Redrive(NOW, "q", None, None, 0),
        ],
    ),
    "with-all": Case(_message("a", headers='{"k":"v"}', priority=-2, expires_at=NOW + 1), SETTLED),
    "a-queue-that-was-limited": Case(_message("a"), SETTLED, settings_before=QueueSettings(max_depth=9)),
}
AS_TWO: Final = {
    "a-new-queue": Case(NewMessage("new", "a", b"", b"digest"), SETTLED, queue="new"),
    "one-ready": Case(_message("a"), [KNOWN]),
    "one-ready-behind-it": Case(_message("a", priority=1), [KNOWN]),
    "one-ready-before-it": Case(_message("a", priority=-1), [KNOWN]),
    "one-expired": Case(_message("a"), [*SETTLED, _put("late", expires_at=NOW - 5)]),
    "paused": Case(_message("a"), [*SETTLED, Pause("q", True)]),
    "another-queue": Case(_message("a"), [*SETTLED, Put(NOW, (NewMessage("r", "b", b"", b"d"),), defaults)], queue="r"),
    "one-that-expires-before-the-claim": Case(_message("a", expires_at=NOW + 0.5), SETTLED),
    "a-duplicate-of-one-settled": Case(_message("known"), SETTLED),
    "a-duplicate-of-one-leased": Case(_message("known"), [KNOWN, _claim()]),
    "a-conflict": Case(NewMessage("q", "known", b"other", b"another"), SETTLED),
    "in-a-group": Case(_message("a", group="g"), SETTLED),
    "delayed": Case(_message("a", due_at=NOW + 9), SETTLED),
    "a-limited-queue": Case(_message("a"), SETTLED, settings=QueueSettings(max_depth=5)),
    "a-full-queue": Case(_message("a"), [KNOWN, _claim()], settings=QueueSettings(max_depth=1)),
    "a-full-disk": Case(_message("a"), SETTLED, full=True),
}


def _with(command: AnyCommand, settings: QueueSettings) -> AnyCommand:
    """Return ``command`` as it is made while the queues have these settings."""
    return replace(command, settings=lambda _: settings) if hasattr(command, "settings") else command


async def _outcome(
    path: Path, case: Case, together: bool
) -> tuple[list[object], dict[str, list[tuple[object, ...]]], bool]:
    """Return both outcomes, what the file holds, and whether the two commands were done as one."""
    storage = StorageSettings()
    store = await SqliteStore.open(path, storage=lambda: storage)
    try:
        # Another queue first, so that the ids of queues and the seqs of messages differ. Its watermark is its own.
        store.transact([Put(NOW, (NewMessage("first", "", b"", b""),), defaults)])
        store.transact([Claim(NOW, "first", 1, 1 << 20, defaults)])
        for command in case.before:
            (outcome,) = store.transact([_with(command, case.settings_before)])
            assert not isinstance(outcome, EoqError), outcome
        if case.full:
            storage = FULL
            store.space.check_again()  # as after 0.1 s
        put = Put(NOW, (case.message,), defaults)
        claim = Claim(case.claimed_at, case.queue, 1, 1 << 20, defaults, "pid 2")
        commands = [_with(command, case.settings) for command in (put, claim)]
        statements: list[str] = []
        store.database.trace(statements.append)
        told = store.transact(commands) if together else [store.transact([command])[0] for command in commands]
        store.database.trace(None)
        assert "rollback" not in statements, "a refusal of one rolled back the transaction of both"
        # Both go on from there in the same way: the next seq, and what is counted.
        following = [Put(NOW, (_message("next"),), defaults), Claim(NOW, "q", 9, 1 << 20, defaults)]
        told += store.transact([_with(command, case.settings) for command in following])
        more = Put(NOW, [_message(f"more{n}") for n in range(4)], defaults)
        told += store.transact([_with(more, QueueSettings(max_depth=4, when_full="drop_oldest"))])
        told = [_comparable(one) for one in told]
        files = {table: store.database.execute(f"select * from {table}").fetchall() for table in TABLES}
        return told, files, not any("order by" in statement for statement in statements)
    finally:
        await store.close()


def _comparable(told: object) -> object:
    """Return an outcome without what differs by chance: the space named in an error, a list or a tuple of ends."""
    if isinstance(told, EoqError):
        return type(told)
    return told._replace(ended=list(told.ended)) if isinstance(told, Claimed) else told


def _compare(folder: Path, case: Case) -> tuple[Told, bool]:
    one_by_one = asyncio.run(_outcome(folder / "one.db", case, together=False))
    together = asyncio.run(_outcome(folder / "two.db", case, together=True))
    assert together[:2] == one_by_one[:2]
    return together[0], together[2]


@pytest.mark.parametrize("case", AS_ONE.values(), ids=AS_ONE.keys())
@pytest.mark.first_by_default
def test_a_put_and_its_claim_are_done_as_one(tmp_path: Path, case: Case) -> None:
    told, as_one = _compare(tmp_path, case)
    assert as_one
    claim = told[1]
    assert isinstance(claim, Claimed) and [message.id for message in claim.messages] == [case.message.id]


@pytest.mark.parametrize("case", AS_TWO.values(), ids=AS_TWO.keys())
@pytest.mark.first_by_default
def test_a_put_and_a_claim_that_have_to_be_two_have_the_same_outcomes(tmp_path: Path, case: Case) -> None:
    _compare(tmp_path, case)
