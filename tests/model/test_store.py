"""Cases of the store that a daemon hides by being quick."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest
from msgspec.structs import replace

import eoq
from eoq.daemon.config.settings import QueueSettings, defaults
from eoq.daemon.portable import EndedMessage
from eoq.daemon.records import Claimed, NewMessage, Stored
from eoq.daemon.store.commands import Claim, Command, DeleteQueue, Import, Purge, Put, StoreTotals
from eoq.daemon.store.sqlite import store as store_module
from eoq.daemon.store.sqlite.deliveries.claims import EXPIRY_ROWS
from eoq.daemon.store.sqlite.store import SqliteStore
from eoq.daemon.store.sqlite.tables import queues as queue_table
from eoq.daemon.store.writer import Writer


def test_a_send_over_several_queues_is_undone_where_there_is_no_room_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_table, "MAX_QUEUES", 2)

    async def run() -> None:
        store = await SqliteStore.open(tmp_path / "eoq.db")
        try:
            messages = [NewMessage(queue, "id", b"", b"digest") for queue in ("a", "b", "c")]
            (refused,) = store.transact([Put(1.0, messages, defaults)])
            assert isinstance(refused, eoq.QueueFull)
            # Neither a message nor a queue is left of it.
            (stored,) = store.transact([Put(1.0, messages[1:], defaults)])
            assert not isinstance(stored, eoq.EoqError)
            (claim,) = store.transact([Claim(1.0, "a", 10, 100, defaults)])
            assert isinstance(claim, Claimed) and claim.messages == []
        finally:
            await store.close()

    asyncio.run(run())


def test_a_claim_takes_what_stands_before_one_that_has_expired(tmp_path: Path) -> None:
    """Also where that is further back than a claim looks for those that have."""

    async def run() -> None:
        store = await SqliteStore.open(tmp_path / "eoq.db")
        try:
            messages = [NewMessage("q", f"{n}", b"", b"digest") for n in range(EXPIRY_ROWS + 100)]
            messages.append(NewMessage("q", "late", b"", b"digest", expires_at=2.0))
            store.transact([Put(1.0, messages, defaults)])
            (claim,) = store.transact([Claim(3.0, "q", 1000, 1 << 20, defaults)])
            assert isinstance(claim, Claimed)
            assert [message.id for message in claim.messages] == [f"{n}" for n in range(EXPIRY_ROWS + 100)]
        finally:
            await store.close()

    asyncio.run(run())


def test_an_imported_id_is_known_to_the_next_send_whatever_its_order(tmp_path: Path) -> None:
    digest = "0" * 32

    async def run() -> None:
        store = await SqliteStore.open(tmp_path / "eoq.db")
        try:
            message = NewMessage("q", "m", b"", b"digest")
            store.transact([Put(1.0, [message], defaults)])  # from now on the store knows the newest id
            settled = [
                (1, EndedMessage(queue="q", id=id, digest=digest, outcome="done", settled_at=1.0)) for id in "az"
            ]
            assert store.transact([Import(1.0, settled)]) == [2]
            for id in "az":
                known = replace(message, id=id, digest=bytes.fromhex(digest))
                (stored,) = store.transact([Put(2.0, [known], defaults)])
                assert isinstance(stored, Stored) and stored.duplicates == [0]
        finally:
            await store.close()

    asyncio.run(run())


def test_sends_that_arrive_together_are_each_answered_for_themselves(tmp_path: Path) -> None:
    """Also among others, and where one of them is there already or refused."""

    async def run() -> None:
        settings = {"small": QueueSettings(max_depth=1)}
        store = await SqliteStore.open(tmp_path / "eoq.db", clock=lambda: 1.0)

        def settings_of(queue: str) -> QueueSettings:
            return settings.get(queue, QueueSettings())

        def put(queue: str, id: str, digest: bytes = b"digest", now: float = 1.0) -> Put:
            return Put(now, [NewMessage(queue, id, b"", digest)], settings_of)

        try:
            store.transact([put("q", "known")])
            outcomes = store.transact(
                [
                    *(put("q", "a"), put("q", "b", now=2.0), put("q", "a"), put("q", "known")),
                    Claim(3.0, "q", 1, 100, defaults),
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
                (claim,) = store.transact([Claim(3.0, queue, 100, 100, defaults)])
                assert isinstance(claim, Claimed)
                assert [message.id for message in claim.messages] == ids
                assert queue != "q" or [message.enqueued_at for message in claim.messages] == [1.0, 2.0, 1.0, 1.0]
        finally:
            await store.close()

    asyncio.run(run())


def test_sends_that_arrive_together_share_a_statement(tmp_path: Path) -> None:
    async def run() -> None:
        store = await SqliteStore.open(tmp_path / "eoq.db")
        statements: list[str] = []
        try:
            store.transact([Put(1.0, [NewMessage("q", "first", b"", b"digest")], defaults)])
            puts = [Put(1.0, [NewMessage("q", f"{n}", b"", b"digest")], defaults) for n in range(8)]
            store.database.trace(statements.append)
            assert store.transact(puts) == [Stored([], ())] * 8
            # The totals have their own inserts, about once a second.
            assert len([text for text in statements if "into message" in text]) == 1
        finally:
            await store.close()

    asyncio.run(run())


@pytest.mark.parametrize("gone", [False, True])
def test_counts_are_written_once_where_a_later_command_is_refused(tmp_path: Path, gone: bool) -> None:
    """The refusal undoes a part of the transaction, and not what was written to the file before it."""

    def limited(queue: str) -> QueueSettings:
        return QueueSettings(max_depth=1) if queue == "full" else QueueSettings()

    async def run() -> None:
        store = await SqliteStore.open(tmp_path / "eoq.db")
        try:
            for queue in ("full", "other"):
                store.transact([Put(1.0, [NewMessage(queue, "a", b"", b"digest")], limited)])
            if gone:
                store.transact([Purge(1.0, "other", None)])
                first: Command[object] = DeleteQueue("other", True, frozenset())
            else:
                first = StoreTotals()
            _, refused = store.transact([first, Put(1.0, [NewMessage("full", "b", b"", b"digest")], limited)])
            assert isinstance(refused, eoq.QueueFull)
            store.transact([StoreTotals()])
            (sent,) = store.database.execute("select sum(sent) from total").fetchone()
            assert sent == store.totals.all()["sent"] == 2
        finally:
            await store.close()

    asyncio.run(run())


def test_commands_that_take_long_do_not_share_a_transaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others wait for one of them only, and each has its outcome, in the order in which they were submitted."""

    async def run() -> None:
        store = await SqliteStore.open(tmp_path / "eoq.db")
        try:
            queues = ["a", "b", "c", "d"]
            puts = [Put(1.0, [NewMessage(queue, "id", b"", b"digest", due_at=9.0)], defaults) for queue in queues]
            assert len(store.transact(puts[:3], seconds=0)) == 1, "one command is run in any case"
            monkeypatch.setattr(store_module, "MOST_SECONDS", 0)
            lost: list[eoq.EoqError] = []
            writer = Writer(store, lost.append)
            done: list[tuple[str, object]] = []

            def note(queue: str, outcome: object) -> None:
                done.append((queue, outcome))

            for put in puts:
                writer.submit(put, partial(note, put.messages[0].queue))
            await writer.drain()
            assert [queue for queue, _ in done] == queues
            assert not any(isinstance(outcome, eoq.EoqError) for _, outcome in done)
            assert writer.backlog == 0
        finally:
            await store.close()

    asyncio.run(run())
