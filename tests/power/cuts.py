"""Simulate a loss of power from a ``kill -9``: make the daemon's files as a disk may have them afterwards.

Everything behind the length that the log had at a confirmation may be missing, cut off, or garbage.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import eoq
from tests.faults.daemons import ids_of, planted_daemon, settle_all, show

QUEUE: Final = "q"
STEPS: Final = 50
SECTOR: Final = 512
WAL_HEADER: Final = 32
FRAME_HEADER: Final = 24


@dataclass(frozen=True)
class Moment:
    """What was confirmed when the log had this length, in bytes."""

    length: int
    sent: frozenset[str]
    acked: frozenset[str]


def log_of(folder: Path) -> Path:
    """Return the path of the write-ahead log of the daemon in a folder."""
    return folder / "eoq.db-wal"


def body_of(id: str) -> bytes:
    """Return the body that belongs to an id. It must be delivered whole."""
    rng = random.Random(id)
    return rng.randbytes(rng.choice((10, 500, 20_000)))


def live(folder: Path, rng: random.Random, steps: int = STEPS) -> list[Moment]:
    """Send and ack one message after the other, and kill the daemon. Return the moment of each confirmation.

    After a checkpoint the log begins again, and its length says nothing. So this sends less than that needs.
    """
    moments: list[Moment] = []
    sent: set[str] = set()
    acked: set[str] = set()
    with planted_daemon(folder=folder) as daemon, eoq.connect(daemon.socket) as client:

        def confirmed() -> None:
            moments.append(Moment(log_of(folder).stat().st_size, frozenset(sent), frozenset(acked)))

        for step in range(steps):
            ids = [f"{step}-{index}" for index in range(rng.choice((1, 1, 1, 2, 20)))]
            client.send_many(QUEUE, [eoq.Outgoing(body_of(id), id=id) for id in ids])
            sent.update(ids)
            confirmed()
            if step % 3 == 0:
                (message,) = client.receive(QUEUE)
                message.ack(result=b"r")
                acked.add(message.id)
                confirmed()
    lengths = [moment.length for moment in moments]
    assert lengths == sorted(set(lengths)), "not each confirmation has written to the log, or the log has begun again"
    return moments


def copy_without_index(folder: Path, copy: Path) -> None:
    """Copy the file and its log. The index of the log (``-shm``) is never synced, so a loss of power loses it."""
    for name in ("eoq.db", "eoq.db-wal"):
        shutil.copyfile(folder / name, copy / name)


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
    """Make in ``copy`` the files of ``folder`` as they may be after a loss of power at a moment."""
    copy_without_index(folder, copy)
    data = log_of(copy).read_bytes()
    log_of(copy).write_bytes(loss(data, moment.length, random.Random(seed)))


def check_cut(
    folder: Path, moments: Sequence[Moment], moment: Moment, loss: Loss, seed: int, copy: Path
) -> Counter[str]:
    """Cut the power at a moment, start a daemon, and compare. Return how many messages and acks were

    - ``confirmed`` until then,
    - ``lost``: of the confirmed ones, the messages that are not there and the acks that are undone,
    - ``doubled``: delivered although they are settled, or more than once,
    - ``damaged``: delivered with another body, of a batch of which a part is missing, or in a damaged file.
    """
    lose(folder, moment, loss, seed, copy)
    last = moments[-1]
    with planted_daemon(folder=copy) as daemon, eoq.connect(daemon.socket) as client:
        known = {id: message["state"] for id in last.sent if (message := show(client, QUEUE, id))}
        delivered = settle_all(client, QUEUE)
        assert daemon.terminate() == 0
    batches: dict[str, set[bool]] = defaultdict(set)
    for id in last.sent:
        batches[id.partition("-")[0]].add(id in known)
    deliveries = Counter(ids_of(delivered))
    unsettled = {id for id, state in known.items() if state != "done"}
    return Counter(
        confirmed=len(moment.sent) + len(moment.acked),
        lost=len(moment.sent - known.keys())
        + sum(known.get(id) != "done" for id in moment.acked)
        + len(unsettled - deliveries.keys()),
        doubled=sum(count - 1 for count in deliveries.values()) + len(deliveries.keys() - unsettled),
        damaged=sum(message.body != body_of(message.id) for message in delivered)
        + sum(len(there) > 1 for there in batches.values())
        + (not is_whole(daemon.db)),
    )


def is_whole(db: Path) -> bool:
    """Return whether SQLite finds nothing wrong in a file."""
    with closing(sqlite3.connect(db)) as database:
        return bool(database.execute("pragma integrity_check").fetchall() == [("ok",)])
