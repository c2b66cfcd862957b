"""Loss of power: what was written after the last fsync is gone or torn, and what was confirmed is there (G1).

A power loss is made from a `kill -9`: on copies of the daemon's files, everything behind the place that the log had
reached at a confirmation may be missing, cut or garbage. That this place was on disk by then, is shown by strace.
"""

from __future__ import annotations

import asyncio
import random
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import pytest

import eoq
from eoq.daemon.store import NewMessage, Store
from tests.faults.daemons import PlantedDaemon, ids_of, left, planted_daemon, settle_all
from tests.support import eventually, short_folder

QUEUE: Final = "q"
SECTOR: Final = 512
STEPS: Final = 60
WAL_HEADER: Final = 32
FRAME_HEADER: Final = 24
FULL: Final = 2


@dataclass(frozen=True)
class Moment:
    """What had been confirmed when the log had this length."""

    length: int
    sent: frozenset[str]
    acked: frozenset[str]


@dataclass(frozen=True)
class Wreck:
    """The files of a daemon that was killed, and the moments of its life. ``began_again``: see `_valid_length`."""

    folder: Path
    moments: list[Moment]


def _log(folder: Path) -> Path:
    return folder / "eoq.db-wal"


def _live(folder: Path, rng: random.Random) -> list[Moment]:
    """Sends and acks, one after the other, and kills the daemon: the moment after each confirmation."""
    moments: list[Moment] = []
    sent: set[str] = set()
    acked: set[str] = set()
    with planted_daemon(folder=folder) as daemon, eoq.connect(daemon.socket) as client:

        def confirmed() -> None:
            # Only stat: nobody else may open a file that SQLite has open (in this process it has not, but still).
            moments.append(Moment(_log(folder).stat().st_size, frozenset(sent), frozenset(acked)))

        for number in range(STEPS):
            batch = [f"{number}-{index}" for index in range(rng.choice((1, 1, 1, 2, 20)))]
            client.send_many(QUEUE, [eoq.Outgoing(rng.randbytes(rng.choice((10, 500, 20_000))), id=id) for id in batch])
            sent.update(batch)
            confirmed()
            if number % 3 == 0:
                message = client.receive(QUEUE)[0]
                message.ack(result=b"r")
                acked.add(message.id)
                confirmed()
    return moments
