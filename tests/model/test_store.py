"""What a verb that is refused leaves behind: nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import eoq
from eoq.daemon import queue_table
from eoq.daemon.rows import NewMessage
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
            assert claim.messages == []  # type: ignore[attr-defined] # it is a claim
        finally:
            await store.close()

    asyncio.run(run())
