"""Simulate a loss of power from a ``kill -9``: make the files of a daemon and of a ledger as a disk may have them then.

What was being written behind the length that a log had at a confirmation may be missing, cut off, or garbage.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

import aiosqlite

import eoq
from eoq.daemon.assembly import Settings, open_daemon
from eoq.daemon.clock import LoopClock
from eoq.daemon.config.model import Config, LiveConfig
from eoq.daemon.config.reload import Reloader
from eoq.errors import EoqError
from tests.faults.daemons import planted_daemon

QUEUE: Final = "q"
LEDGER: Final = "ledger.db"
"""The application's file, to which an inbox applies the messages."""
IN_LEDGER: Final = 0.5
"""In which part of the cuts between an effect and its ack the effect is not on disk yet."""
STEPS: Final = 50
SECTOR: Final = 512
WAL_HEADER: Final = 32
FRAME_HEADER: Final = 24


@dataclass(frozen=True)
class Moment:
    """What was confirmed when the log of the daemon had ``length`` bytes, and that of the ledger ``ledger``."""

    length: int
    ledger: int
    sent: frozenset[str]
    acked: frozenset[str]
    reach: int = 0
    """How long the daemon's log was at the next confirmation: what is behind ``length`` was being written."""
    ledger_reach: int = 0
    """The same of the ledger's log. It is on disk before the daemon writes the ack."""


def log_of(folder: Path, name: str = "eoq.db") -> Path:
    """Return the path of the write-ahead log of a file in a folder: by default the daemon's."""
    return folder / f"{name}-wal"


def body_of(id: str) -> bytes:
    """Return the body that belongs to an id. It must be delivered whole."""
    rng = random.Random(id)
    return rng.randbytes(rng.choice((10, 500, 20_000)))


def live(folder: Path, rng: random.Random, steps: int = STEPS) -> list[Moment]:
    """Send and process one message after the other, and kill the daemon. Return the moment of each confirmation.

    After a checkpoint a log begins again, and its length says nothing. So this writes less than that needs.
    """
    moments: list[Moment] = []
    sent: set[str] = set()
    acked: set[str] = set()
    ledger = folder / "live.db"
    with closing(sqlite3.connect(ledger)) as database:
        database.executescript("pragma journal_mode = wal; create table effect (id text not null)")
    with (
        planted_daemon(folder=folder) as daemon,
        eoq.connect(daemon.socket) as client,
        eoq.Inbox(ledger) as inbox,
    ):

        def confirmed() -> None:
            length, of_ledger = log_of(folder).stat().st_size, _size(log_of(folder, "live.db"))
            moments.append(Moment(length, of_ledger, frozenset(sent), frozenset(acked), length, of_ledger))

        for step in range(steps):
            ids = [f"{step}-{index}" for index in range(rng.choice((1, 1, 1, 2, 20)))]
            client.send_many(QUEUE, [eoq.Outgoing(body_of(id), id=id) for id in ids])
            sent.update(ids)
            confirmed()
            if step % 3 == 0:
                (message,) = client.receive(QUEUE)
                inbox.process(message, _apply)
                acked.add(message.id)
                confirmed()
        daemon.kill()
        # Before the inbox closes the ledger, which moves its log into it.
        for end in ("", "-wal"):
            shutil.copyfile(f"{ledger}{end}", folder / f"{LEDGER}{end}")
    lengths = [moment.length for moment in moments]
    assert lengths == sorted(set(lengths)), "not each confirmation has written to the log, or the log has begun again"
    return [
        replace(moment, reach=following.length, ledger_reach=following.ledger)
        for moment, following in zip(moments, [*moments[1:], moments[-1]], strict=True)
    ]


def _apply(tx: sqlite3.Connection, message: eoq.Message) -> None:
    tx.execute("insert into effect values (?)", (message.id,))


async def _apply_async(tx: aiosqlite.Connection, message: eoq.AsyncMessage) -> None:
    await tx.execute("insert into effect values (?)", (message.id,))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def copy_without_index(folder: Path, copy: Path, *names: str) -> None:
    """Copy a file and its log. The index of the log (``-shm``) is never synced, so a loss of power loses it."""
    for name in names or ("eoq.db",):
        for end in ("", "-wal"):
            shutil.copyfile(folder / f"{name}{end}", copy / f"{name}{end}")


def dropped(data: bytes, length: int, _rng: random.Random) -> bytes:
    """Return the log if nothing behind the length was written."""
    return data[:length]


def cut(data: bytes, length: int, rng: random.Random) -> bytes:
    """Return the log if a part behind the length was written."""
    return data[: rng.randint(length, len(data))]


def zeroed(data: bytes, length: int, _rng: random.Random) -> bytes:
    """Return the log if the file had grown, and its new part was not written."""
    return data[:length] + bytes(len(data) - length)


def garbled(data: bytes, length: int, rng: random.Random) -> bytes:
    """Return the log if the new part has what was on the disk before."""
    return data[:length] + rng.randbytes(len(data) - length)


def torn(data: bytes, length: int, rng: random.Random) -> bytes:
    """Return the log if some sectors were written and others were not, in any order."""
    whole = bytearray(data)
    for start in range(length, len(data), SECTOR):
        if rng.random() < 0.3:
            end = min(start + SECTOR, len(data))
            whole[start:end] = rng.choice((bytes(end - start), rng.randbytes(end - start)))
    return bytes(whole)


Loss = Callable[[bytes, int, random.Random], bytes]
LOSSES: Final[tuple[Loss, ...]] = (dropped, cut, zeroed, garbled, torn)


def written_length(log: bytes) -> int:
    """Return the length of the frames since the log began again. What follows is from before."""
    page = int.from_bytes(log[8:12], "big")
    salts = log[16:24]
    length = WAL_HEADER
    while log[length + 8 : length + 16] == salts:
        length += FRAME_HEADER + page
    return length


# ── a daemon on the files afterwards ────────────────────────────────────────────────────────────────────────


def lose(folder: Path, moment: Moment, loss: Loss, seed: int, copy: Path) -> None:
    """Make in ``copy`` the files of ``folder`` as they may be after a loss of power soon after a moment."""
    copy_without_index(folder, copy, "eoq.db", LEDGER)
    rng = random.Random(seed)
    in_ledger = moment.ledger_reach > moment.ledger and rng.random() < IN_LEDGER
    _lose(log_of(copy), moment.length, moment.length if in_ledger else moment.reach, loss, rng)
    # The daemon writes the ack only when the effect is on disk.
    _lose(log_of(copy, LEDGER), moment.ledger if in_ledger else moment.ledger_reach, moment.ledger_reach, loss, rng)


def _lose(log: Path, length: int, reach: int, loss: Loss, rng: random.Random) -> None:
    log.write_bytes(loss(log.read_bytes()[:reach], length, rng))


StatesOf: TypeAlias = Callable[[eoq.AsyncClient], Awaitable[dict[str, str]]]
"""Returns the state of each message that the daemon knows."""


@dataclass(frozen=True, repr=False)
class Recovered:
    """What a daemon and a worker find after the loss of power."""

    states: dict[str, str]
    """The state of each message that the daemon knows."""
    effects: list[str]
    """What was in the ledger before the worker went on."""
    delivered: list[eoq.AsyncMessage]
    effects_at_the_end: list[str]


def check_cut(
    folder: Path, moments: Sequence[Moment], moment: Moment, loss: Loss, seed: int, copy: Path
) -> Counter[str]:
    """Cut the power after a moment, start a daemon and a worker, and compare. Return how many messages and acks were

    - ``confirmed`` until then,
    - ``lost``: of the confirmed ones, the messages that are not there and the acks and effects that are undone,
    - ``doubled``: delivered although they are settled, or more than once, or with two effects,
    - ``damaged``: delivered with another body, of a batch of which a part is missing, or in a damaged file.
    """
    lose(folder, moment, loss, seed, copy)
    with planted_daemon(folder=copy) as daemon:
        recovered = asyncio.run(_recover(daemon.socket, copy, partial(_shown, moments[-1].sent)))
        assert daemon.terminate() == 0
    return _compare(moments[-1].sent, moment, recovered, copy)


def check_cut_here(
    folder: Path, moments: Sequence[Moment], moment: Moment, loss: Loss, seed: int, copy: Path
) -> Counter[str]:
    """Do as `check_cut`, with the daemon in this process, which is many times as quick."""
    lose(folder, moment, loss, seed, copy)
    return _compare(moments[-1].sent, moment, asyncio.run(_recover_here(copy)), copy)


async def _recover_here(folder: Path) -> Recovered:
    failures: list[EoqError] = []
    config = LiveConfig(Config())
    settings = Settings(folder / "eoq.db", folder / "s")
    async with open_daemon(settings, LoopClock(), config, Reloader(None, config), None, failures.append) as daemon:
        await daemon.start()
        try:
            return await _recover(settings.socket, folder, partial(_stored, settings.database))
        finally:
            await daemon.stop(drain=True)
            assert not failures


async def _recover(socket: Path, folder: Path, states_of: StatesOf) -> Recovered:
    delivered: list[eoq.AsyncMessage] = []
    async with eoq.connect_async(socket) as client, eoq.AsyncInbox(folder / LEDGER) as inbox:
        states = await states_of(client)
        effects = _effects(folder)
        while messages := await client.receive(QUEUE, 1000):
            results = await inbox.process_many(messages, _apply_async)
            assert results == [None] * len(messages)
            delivered += messages
    return Recovered(states, effects, delivered, _effects(folder))


async def _shown(ids: Collection[str], client: eoq.AsyncClient) -> dict[str, str]:
    """Return the state of each message that the daemon knows, as it says itself."""
    states = {}
    for id in ids:
        with suppress(eoq.NotFound):
            states[id] = str((await client.show(QUEUE, id))["state"])
    return states


async def _stored(file: Path, _client: eoq.AsyncClient) -> dict[str, str]:
    """Return the same from the file, which is quicker."""
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as database:
        return dict(database.execute("select id, state from message union all select id, outcome from settled"))


def _effects(folder: Path) -> list[str]:
    with closing(sqlite3.connect(folder / LEDGER)) as database:
        return [id for (id,) in database.execute("select id from effect")]


def _compare(ids: Collection[str], moment: Moment, recovered: Recovered, folder: Path) -> Counter[str]:
    states, delivered = recovered.states, recovered.delivered
    batches: dict[str, set[bool]] = defaultdict(set)
    for id in ids:
        batches[id.partition("-")[0]].add(id in states)
    deliveries = Counter(message.id for message in delivered)
    unsettled = {id for id, state in states.items() if state != "done"}
    at_the_end = Counter(recovered.effects_at_the_end)
    return Counter(
        confirmed=len(moment.sent) + len(moment.acked),
        lost=len(moment.sent - states.keys())
        + sum(states.get(id) != "done" for id in moment.acked)
        + len(moment.acked - set(recovered.effects))
        + len(unsettled - deliveries.keys())
        + len(states.keys() - at_the_end.keys()),
        doubled=sum(count - 1 for count in deliveries.values())
        + len(deliveries.keys() - unsettled)
        + sum(count - 1 for count in at_the_end.values()),
        damaged=sum(message.body != body_of(message.id) for message in delivered)
        + sum(len(there) > 1 for there in batches.values())
        + (not is_whole(folder / "eoq.db"))
        + (not is_whole(folder / LEDGER)),
    )


def is_whole(db: Path) -> bool:
    """Return whether SQLite finds nothing wrong in a file."""
    with closing(sqlite3.connect(db)) as database:
        return bool(database.execute("pragma integrity_check").fetchall() == [("ok",)])
