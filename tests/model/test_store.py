"""Corners of the verbs that the daemon hides by being quick."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import eoq
from eoq.daemon import queue_table
from eoq.daemon.delivering import EXPIRY_ROWS
from eoq.daemon.rows import Claim, NewMessage
from eoq.daemon.store import Store


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
            assert isinstance(claim, Claim) and claim.messages == []
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
            assert isinstance(claim, Claim)
            assert [message.id for message in claim.messages] == [f"{n}" for n in range(EXPIRY_ROWS + 100)]
        finally:
            await store.close()

    asyncio.run(run())
