"""Corners of the verbs that the daemon hides by being quick."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest

import eoq
from eoq.daemon.config.settings import QueueSettings
from eoq.daemon.records import Claimed, NewMessage, Stored
from eoq.daemon.store.sqlite.store import Store
from eoq.daemon.store.sqlite.tables import queues as queue_table
from eoq.daemon.store.sqlite.tables.deliveries import EXPIRY_ROWS
from eoq.daemon.store.sqlite.tables.publishing import Put


def test_a_send_over_several_queues_is_undone_where_there_is_no_room_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_table, "MAX_QUEUES", 2)

    async def run() -> None:
        store = await Store.open(tmp_path / "eoq.db")
        try:
            messages = [NewMessage(queue, "id", b"", b"digest") for queue in ("a", "b", "c")]
            (refused,) = store.transact([lambda: store.put(1.0, messages)])
            assert isinstance(refused, eoq.QueueFull)
            # Neither a message nor a queue is left of it.
            (stored,) = store.transact([lambda: store.put(1.0, messages[1:])])
            assert not isinstance(stored, eoq.EoqError)
            (claim,) = store.transact([lambda: store.claim(1.0, "a", 10, 100)])
            assert isinstance(claim, Claimed) and claim.messages == []
        finally:
            await store.close()

    asyncio.run(run())


def test_a_claim_takes_what_stands_before_one_that_has_expired(tmp_path: Path) -> None:
    """Also where that is further back than a claim looks for those that have."""

    async def run() -> None:
        store = await Store.open(tmp_path / "eoq.db")
        try:
            messages = [NewMessage("q", f"{n}", b"", b"digest") for n in range(EXPIRY_ROWS + 100)]
            messages.append(NewMessage("q", "late", b"", b"digest", expires_at=2.0))
            store.transact([lambda: store.put(1.0, messages)])
            (claim,) = store.transact([lambda: store.claim(3.0, "q", 1000, 1 << 20)])
            assert isinstance(claim, Claimed)
            assert [message.id for message in claim.messages] == [f"{n}" for n in range(EXPIRY_ROWS + 100)]
        finally:
            await store.close()

    asyncio.run(run())


def test_sends_that_arrive_together_are_each_answered_for_themselves(tmp_path: Path) -> None:
    """Also among others, and where one of them is there already or refused."""

    async def run() -> None:
        settings = {"small": QueueSettings(max_depth=1)}
        store = await Store.open(
            tmp_path / "eoq.db", settings=lambda queue: settings.get(queue, QueueSettings()), clock=lambda: 1.0
        )

        def put(queue: str, id: str, digest: bytes = b"digest", now: float = 1.0) -> Put:
            return Put(store, now, [NewMessage(queue, id, b"", digest)])

        try:
            store.transact([put("q", "known")])
            outcomes = store.transact(
                [
                    *(put("q", "a"), put("q", "b", now=2.0), put("q", "a"), put("q", "known")),
                    lambda: store.claim(3.0, "q", 1, 100),
                    *(put("q", "c"), put("q", "b", b"another"), put("q", "d")),
                    *(put("small", "e"), put("small", "f"), put("new", "g"), put("new", "h")),
                ]
            )
            told = [
                outcome.code if isinstance(outcome, eoq.EoqError) else getattr(outcome, "duplicates", "claim")
                for outcome in outcomes
            ]
            assert told == [[], [], [0], [0], "claim", [], "id_conflict", [], [], "queue_full", [], []]
            for queue, ids in {"q": ["a", "b", "c", "d"], "small": ["e"], "new": ["g", "h"]}.items():
                (claim,) = store.transact([partial(store.claim, 3.0, queue, 100, 100)])
                assert isinstance(claim, Claimed)
                assert [message.id for message in claim.messages] == ids
                assert queue != "q" or [message.enqueued_at for message in claim.messages] == [1.0, 2.0, 1.0, 1.0]
        finally:
            await store.close()

    asyncio.run(run())


def test_sends_that_arrive_together_share_a_statement(tmp_path: Path) -> None:
    async def run() -> None:
        store = await Store.open(tmp_path / "eoq.db")
        statements: list[str] = []
        try:
            store.transact([Put(store, 1.0, [NewMessage("q", "first", b"", b"digest")])])
            puts = [Put(store, 1.0, [NewMessage("q", f"{n}", b"", b"digest")]) for n in range(8)]
            store._database.set_trace_callback(statements.append)  # private; there is no other way to see them
            assert store.transact(puts) == [Stored([], ())] * 8
            assert len([text for text in statements if "insert" in text]) == 1
        finally:
            await store.close()

    asyncio.run(run())
