"""What operators do in the chaos test: they set the clock, change the configuration, take backups and restore them.

A backup is made with SQLite's backup API while everything runs. When one is restored, everything that was confirmed so
far is sent once more, in its order, before the producers, the relay and the spool go on: the file does not know what
was sent since the backup. What took effect since then must not take effect again.
"""

from __future__ import annotations

import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Final

import eoq
from tests.chaos.programs import Program
from tests.forker import Forker
from tests.support import Daemon

HOUR: Final = 3600.0
RESENT_TOGETHER: Final = 500
"""How many messages one request sends again."""
RESTORED: Final[Mapping[str, Sequence[str]]] = {
    "the daemon's file": ("eoq.db",),
    "the outbox": ("shop.db",),
    "all files": ("eoq.db", "ledger.db", "shop.db"),
}
"""What is restored together. The ledger is never alone: what the daemon knows as done would be missing in it."""
CONFIG: Final = """
[queues."*"]
retry_first = {retry}
max_attempts = 1000

[queues.unused]
max_depth = {depth}
"""
RELAY: Final = """
[[relay]]
path = "shop.db"
"""
SCHEDULE: Final = """
[[schedule]]
name = "{tick}"
every = 1
queue = "{queue}"
body = '{{"amount": 0}}'
"""


class ClockedDaemon(Daemon):
    """A daemon whose wall clock is set with those of the other processes."""

    def __init__(self, folder: Path, forker: Forker) -> None:
        super().__init__(folder, ("--config", "eoq.toml"), own_forker=forker)
        self.takes_files = True
        """Whether the next start reads the spool."""

    def command(self) -> list[str]:
        return super().command() + (["--spool", "spool"] if self.takes_files else [])


class Operators:
    """The operators of one run."""

    def __init__(
        self,
        daemon: ClockedDaemon,
        clock: Path,
        rng: random.Random,
        queue: str,
        tick: str,
        message: Callable[[str], eoq.Outgoing],
    ) -> None:
        """``tick`` is the name of the schedule. ``message`` returns what was sent under an id."""
        self._daemon = daemon
        self._clock = clock
        self._rng = rng
        self._schedule = SCHEDULE.format(tick=tick, queue=queue)
        self._queue = queue
        self._message = message
        self._backups = daemon.folder / "backups"
        self._backups.mkdir()
        self._generation = 0
        self.begin_generation()

    # ── the clock and the configuration ─────────────────────────────────────────────────────────────────

    def set_clock(self) -> None:
        """Set the clock of the machine: by hours, by seconds, or right."""
        error = self._rng.choice((0.0, self._rng.uniform(-5, 5) * HOUR, self._rng.uniform(-30, 30)))
        _replace(self._clock, f"{error}")

    def end_schedule(self) -> None:
        """Take the schedule out of the configuration, so that all that there is can come to its end."""
        _replace(self._daemon.folder / "eoq.toml", CONFIG.format(retry=0.05, depth=1) + RELAY)
        self._daemon.signal(signal.SIGHUP)

    def configure(self, *, alone: bool = False) -> None:
        """Write a valid configuration, a little different each time. ``alone`` is without relay and schedule."""
        text = CONFIG.format(retry=round(self._rng.uniform(0.02, 0.2), 3), depth=self._rng.randrange(1, 10**6))
        _replace(self._daemon.folder / "eoq.toml", text if alone else text + RELAY + self._schedule)

    def reload(self) -> None:
        """Change the configuration of the daemon, sometimes first to one that it must refuse."""
        if self._rng.random() < 0.3:
            _replace(self._daemon.folder / "eoq.toml", '[queues."*"]\nmax_attempts = "many"\n')
            self._daemon.signal(signal.SIGHUP)
            time.sleep(self._rng.uniform(0, 0.05))  # so that the daemon reads it, or reads the next one
        self.configure()
        self._daemon.signal(signal.SIGHUP)

    # ── backups ─────────────────────────────────────────────────────────────────────────────────────────

    def back_up(self) -> None:
        """Copy all files, the daemon's first: what it does not know yet as done may be in the ledger already."""
        for name in RESTORED["all files"]:
            part = self._backups / f"{name}.part"
            mode = "ro" if name == "eoq.db" else "rw"  # a journal that a killed application left is rolled back first
            source = f"{(self._daemon.folder / name).as_uri()}?mode={mode}"
            with closing(sqlite3.connect(source, uri=True, timeout=60)) as file, closing(sqlite3.connect(part)) as copy:
                file.backup(copy)
        for name in RESTORED["all files"]:
            (self._backups / f"{name}.part").rename(self._backups / name)

    @property
    def has_backup(self) -> bool:
        """Whether there is a backup to restore."""
        return (self._backups / RESTORED["all files"][-1]).exists()

    def restore(self, programs: Mapping[str, Program], names: Sequence[str]) -> str:
        """Restore a backup, and send again all that was confirmed. Return what was restored.

        ``names`` are the programs that do not go on meanwhile: all but the workers, which may.
        """
        what = self._rng.choice(list(RESTORED))
        files = RESTORED[what]
        stopped = list(programs) if "ledger.db" in files else list(names)
        for name in stopped:
            programs[name].kill()
        daemon = self._daemon
        if self._rng.random() < 0.5:
            daemon.kill()
        else:
            assert daemon.terminate() == 0, daemon.said
        self._put_back(files)
        self.begin_generation()
        # The relay and the spool would be ahead of what is sent again.
        self.configure(alone=True)
        daemon.takes_files = False
        daemon.start()
        self._send_again()
        assert daemon.terminate() == 0, daemon.said
        self.configure()
        daemon.takes_files = True
        daemon.start()
        for name in stopped:
            programs[name].start()
        return what

    def begin_generation(self) -> None:
        """Let the callers of ``once`` begin new keys."""
        (self._daemon.folder / "generation").write_text(f"{self._generation}")
        self._generation += 1

    def _put_back(self, files: Iterable[str]) -> None:
        for name in files:
            for end in ("", "-wal", "-shm", "-journal"):
                (self._daemon.folder / f"{name}{end}").unlink(missing_ok=True)
            shutil.copyfile(self._backups / name, self._daemon.folder / name)

    def _send_again(self) -> None:
        with eoq.connect(self._daemon.socket, timeout=60) as client:
            for record in sorted(self._daemon.folder.glob("*.sent")):
                ids = iter(record.read_text().split("\n")[:-1])
                while part := list(islice(ids, RESENT_TOGETHER)):
                    client.send_many(self._queue, [self._message(id) for id in part])


def _replace(file: Path, text: str) -> None:
    """Write a file that others read at any moment."""
    new = file.with_name(f"{file.name}.new")
    new.write_text(text)
    new.rename(file)
