"""A power loss made from a ``kill -9``: the daemon's files as a disk may show them when the power comes back.

All that is behind the place that the log had reached at a confirmation may be missing, cut off, or garbage.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import eoq
from tests.faults.daemons import planted_daemon

QUEUE: Final = "q"
STEPS: Final = 50
SECTOR: Final = 512
WAL_HEADER: Final = 32
FRAME_HEADER: Final = 24


@dataclass(frozen=True)
class Moment:
    """What had been confirmed when the log had this length."""

    length: int
    sent: frozenset[str]
    acked: frozenset[str]


def log_of(folder: Path) -> Path:
    """The write-ahead log of the daemon of a folder."""
    return folder / "eoq.db-wal"


def body_of(id: str) -> bytes:
    """The body that belongs to an id: it must come back whole."""
    rng = random.Random(id)
    return rng.randbytes(rng.choice((10, 500, 20_000)))


def live(folder: Path, rng: random.Random) -> list[Moment]:
    """Sends and acks one thing after the other, and kills the daemon: the moment of each confirmation.

    The log of a daemon that checkpoints begins again, and its length says nothing; so this stays below that.
    """
    moments: list[Moment] = []
    sent: set[str] = set()
    acked: set[str] = set()
    with planted_daemon(folder=folder) as daemon, eoq.connect(daemon.socket) as client:

        def confirmed() -> None:
            moments.append(Moment(log_of(folder).stat().st_size, frozenset(sent), frozenset(acked)))

        for step in range(STEPS):
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
    assert lengths == sorted(set(lengths)), "each confirmation has written to the log, which has not begun again"
    return moments


def copy_without_index(folder: Path, copy: Path) -> None:
    """Copies the file and its log. The index of the log (``-shm``) is never synced: it is lost."""
    for name in ("eoq.db", "eoq.db-wal"):
        shutil.copyfile(folder / name, copy / name)


def dropped(data: bytes, length: int, _rng: random.Random) -> bytes:
    """Nothing behind the length was written."""
    return data[:length]


def cut(data: bytes, length: int, rng: random.Random) -> bytes:
    """A part of it was written."""
    return data[: rng.randint(length, len(data))]


def zeroed(data: bytes, length: int, _rng: random.Random) -> bytes:
    """The file had grown, and its new part was not written."""
    return data[:length] + bytes(len(data) - length)


def garbled(data: bytes, length: int, rng: random.Random) -> bytes:
    """The new part is what was on the disk before."""
    return data[:length] + rng.randbytes(len(data) - length)


def torn(data: bytes, length: int, rng: random.Random) -> bytes:
    """Some sectors were written, others not, in no order."""
    whole = bytearray(data)
    for start in range(length, len(data), SECTOR):
        if rng.random() < 0.3:
            end = min(start + SECTOR, len(data))
            whole[start:end] = rng.choice((bytes(end - start), rng.randbytes(end - start)))
    return bytes(whole)


Loss = Callable[[bytes, int, random.Random], bytes]
LOSSES: Final[tuple[Loss, ...]] = (dropped, cut, zeroed, garbled, torn)


def written_length(log: bytes) -> int:
    """Where the frames end that a log holds since it began again: what follows is left from before."""
    page = int.from_bytes(log[8:12], "big")
    salts = log[16:24]
    place = WAL_HEADER
    while log[place + 8 : place + 16] == salts:
        place += FRAME_HEADER + page
    return place
