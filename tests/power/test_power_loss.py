"""Loss of power: what was written after the last fsync is gone or torn, and what was confirmed is there (G1).

``tests/power`` makes the files as they may be afterwards; ``python -m tests.power`` does so as often as one likes. That
the log was on disk before each confirmation is seen with strace, and without strace by the store's settings.
"""

from __future__ import annotations

import asyncio
import random
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

import eoq
from eoq.daemon.store.sqlite.store import SqliteStore
from tests.faults.daemons import PlantedDaemon, ids_of, planted_daemon, settle_all, show
from tests.faults.planted_daemon import Plant
from tests.power.cuts import (
    LOSSES,
    QUEUE,
    Loss,
    Moment,
    check_cut,
    copy_without_index,
    dropped,
    garbled,
    is_whole,
    live,
    log_of,
    lose,
    written_length,
)
from tests.support import PATIENCE, Wire, eventually, short_folder

FULL: Final = 2
"""``pragma synchronous``: every commit waits for the disk."""
SYNCED: Final = re.compile(r"(f(data)?sync\(\d+<.*-wal>|<\.\.\. f(data)?sync resumed).*= 0$")
"""The log is on disk. For a call on a thread strace may show the begin and the end on separate lines."""
MOST_SENDS: Final = 300
"""How many megabytes are sent at most until the log has begun again."""
MORE_PARTS: Final = tuple(n / 16 for n in range(16))
"""Parts of the life of a daemon after which the slow tests cut the power as well."""

Life = tuple[Path, list[Moment]]


@pytest.fixture(scope="module")
def life() -> Iterator[Life]:
    """Return the folder of a daemon that was killed, and the moments of its confirmations."""
    with short_folder() as folder:
        yield folder, live(folder, random.Random(1))


# ── the files afterwards ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.first_by_default
@pytest.mark.parametrize("part", [0.9, *(pytest.param(p, marks=pytest.mark.slow) for p in (0.3, *MORE_PARTS))])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_what_was_confirmed_is_there(life: Life, folder: Path, loss: Loss, part: float) -> None:
    lived, moments = life
    moment = moments[int(part * len(moments))]
    found = check_cut(lived, moments, moment, loss, int(part * 100), folder)
    assert found == Counter(confirmed=len(moment.sent) + len(moment.acked), lost=0, doubled=0, damaged=0)


def test_one_byte_less_than_at_the_confirmation_loses_something(life: Life) -> None:
    """This shows that the tests above would notice a confirmation that is sent too early."""
    lived, moments = life
    # The daemon may have written something of its own between a confirmation and the look at its log.
    assert any(_loses(lived, moments[at - 1], moments[at]) for at in range(-2, -7, -1))


def _loses(lived: Path, before: Moment, moment: Moment) -> bool:
    """Return whether something of a moment is lost where the log is one byte shorter."""
    with short_folder() as folder:
        lose(lived, replace(moment, length=moment.length - 1), dropped, 0, folder)
        with planted_daemon(folder=folder) as daemon, eoq.connect(daemon.socket) as client:
            lost = [id for id in moment.sent - before.sent if show(client, QUEUE, id) is None]
            undone = [id for id in moment.acked - before.acked if (show(client, QUEUE, id) or {})["state"] != "done"]
    return bool(lost or undone)


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss", [garbled, pytest.param(dropped, marks=pytest.mark.slow)], ids=lambda loss: loss.__name__
)
def test_a_log_that_began_again_holds_what_was_confirmed_since(folder: Path, loss: Loss) -> None:
    """A checkpoint has moved the old log into the file, and the new log overwrites it."""
    sent: list[str] = []
    with planted_daemon(folder=folder) as daemon, eoq.connect(daemon.socket) as client:
        length = -1
        while log_of(folder).stat().st_size > length and len(sent) < MOST_SENDS:
            length = log_of(folder).stat().st_size
            sent.append(client.send(QUEUE, bytes([len(sent) % 256]) * 1024 * 1024).id)
        sent += [client.send(QUEUE, b"since then").id for _ in range(20)]
        daemon.kill()
        data = log_of(folder).read_bytes()
        assert written_length(data) < len(data), "the log has not begun again"
        with short_folder() as copy:
            copy_without_index(folder, copy)
            log_of(copy).write_bytes(loss(data, written_length(data), random.Random(1)))
            _check_all_there(copy, sent)


def _check_all_there(folder: Path, sent: list[str]) -> None:
    with planted_daemon(folder=folder) as daemon, eoq.connect(daemon.socket) as client:
        assert ids_of(settle_all(client, QUEUE)) == sent
        assert daemon.terminate() == 0
    assert is_whole(daemon.db)


# ── the fsync comes before the confirmation ─────────────────────────────────────────────────────────────────


def test_the_store_commits_with_a_sync_what_must_be_durable(folder: Path) -> None:
    """This holds also after a transaction that need not be durable."""

    async def settings() -> list[object]:
        store = await SqliteStore.open(folder / "eoq.db")

        def pragmas() -> tuple[object, ...]:
            names = ("synchronous", "journal_mode")
            return tuple(store.database.execute(f"pragma {name}").fetchone()[0] for name in names)

        try:
            return [store.database.transaction(pragmas, durable) for durable in (True, False, True)]
        finally:
            await store.close()

    first, _, last = asyncio.run(settings())
    assert first == last == (FULL, "wal")


def _can_trace() -> bool:
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not _can_trace(), reason="strace is missing, or is not allowed to trace")
@pytest.mark.parametrize("quick_commit", [None, 0.0], ids=["on the loop", "on the thread"])
def test_each_confirmation_leaves_after_the_sync_of_what_it_confirms(folder: Path, quick_commit: float | None) -> None:
    trace = folder / "trace"
    calls = "trace=fsync,fdatasync,pwrite64,write,writev,sendto,sendmsg"
    daemon = PlantedDaemon(
        folder,
        Plant(quick_commit=quick_commit),
        ("strace", "-D", "-f", "-y", "-s", "1000", "-e", calls, "-o", str(trace)),
    )
    try:
        daemon.start()
        with daemon.wire() as wire:
            asked = _make_all_requests(wire)
        daemon.terminate()
        eventually(lambda: f"{daemon.pid} +++ exited" in re.sub(" +", " ", trace.read_text()), PATIENCE)
    finally:
        daemon.kill()
    confirmed = _confirmed_after_sync(trace.read_text())
    assert confirmed == dict.fromkeys(asked, True)


def _make_all_requests(wire: Wire) -> list[str]:
    """Make a request of each kind that must be durable, some after a receive, which need not be. Return the rids."""
    asked: list[str] = []

    def ask(op: str, **fields: object) -> None:
        asked.append(f"durable-{len(asked)}-{op}")
        assert wire.ask({"op": op, "rid": asked[-1], **fields})["ok"]

    def receive() -> str:
        return str(wire.ask({"op": "receive", "queue": QUEUE})["messages"][0]["receipt"])

    for _ in range(3):
        ask("send", queue=QUEUE, body="x")
    ask("send_many", queue=QUEUE, messages=[{"body": "x"}] * 5)
    ask("ack", receipt=receive(), result="r")
    ask("settle", acks=[{"receipt": receive()}], send=[{"queue": "next", "body": "x"}])
    ask("nack", receipt=receive(), delay=0)
    ask("reject", receipt=receive())
    ask("release", receipts=[receive()])
    return asked


def _confirmed_after_sync(trace: str) -> dict[str, bool]:
    """Return for each reply, by its rid, whether its transaction was in the log and the log was on disk before."""
    confirmed: dict[str, bool] = {}
    written = synced = False
    for line in trace.splitlines():
        call = line.split(maxsplit=1)[1]
        if call.startswith("pwrite64(") and "-wal>" in call:
            written, synced = True, False
        elif SYNCED.match(call):
            synced = True
        elif rid := re.search(r"durable-\d+-\w+", call):
            confirmed[rid[0]] = written and synced
            written = False
    return confirmed
