"""A daemon is killed, or loses power, at each point of a step of its spool. The next one stores each file once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

import eoq
from tests.faults import planted_spool
from tests.faults.planted_spool import POINTS
from tests.support import PATIENCE, Daemon, clean_environment, eventually, short_folder

PLANTED: Final = Path(planted_spool.__file__)
MESSAGES: Final = 300
"""More than one batch."""
BAD: Final = "0042-bad"
QUEUE: Final = "q"
QUICK: Final = {
    "a file is moved": "kill",  # nothing is synced yet, so a loss of power is like a kill
    "one folder is synced": "power",
    "both are synced": "power",
    "one is rejected": "power",
    "the request has left": "kill",
    "the daemon has committed": "power",
    "a file is removed": "power",
}
"""The points of the default tests, and how the daemon ends there. The slow tests have all points and ways."""


@pytest.mark.parametrize(
    ("point", "how"),
    [
        pytest.param(point, how, marks=() if how == QUICK.get(point) else pytest.mark.slow)
        for point in POINTS
        for how in ("exit", "kill", "power")
    ],
)
@pytest.mark.slow
def test_a_killed_daemon_loses_no_file_and_stores_none_twice(point: str, how: str) -> None:
    with short_folder() as folder:
        spool = _fill(folder)
        _die(folder, spool, point, how)
        # Settled before the spool is read again: only the daemon's records can tell that they arrived.
        arrived = _settle(folder)
        assert (arrived == []) is (POINTS.index(point) <= POINTS.index("one is rejected")) or (
            point == "the request has left"  # it may have arrived or not
        )
        _check_end(folder, spool, arrived)
        rejected = {path.name for path in (spool / QUEUE / ".rejected").iterdir()}
        (bad,) = [name for name in rejected if name.endswith(BAD)]
        assert f"{bad}.reason" in rejected


@pytest.mark.slow
@pytest.mark.parametrize("first", ["all are moved", pytest.param("a file is moved", marks=pytest.mark.slow)])
def test_a_loss_of_power_after_a_kill_before_the_sync_loses_nothing(first: str) -> None:
    """The next daemon must sync what the killed one did not, before it stores anything."""
    with short_folder() as folder:
        spool = _fill(folder)
        (spool / QUEUE / BAD).unlink()  # rejecting it would sync as well
        _die(folder, spool, first, "kill")
        _die(folder, spool, "after the reply", "power")
        _check_end(folder, spool, _settle(folder))


def _fill(folder: Path) -> Path:
    """Make a spool with messages, some with ids, some with groups, and one file among them that is not a message."""
    spool = folder / "spool"
    (spool / QUEUE).mkdir(parents=True)
    for number in range(MESSAGES):
        file = spool / QUEUE / f"{number:04d}"
        if number % 3:
            file.write_text(f"body {number}")
        else:
            option = f'{{"id": "id-{number}"}}' if number % 2 else f'{{"group": "{number % 4}"}}'
            file.with_suffix(".eoq").write_text(f"{option}\nbody {number}")
    (spool / QUEUE / BAD).symlink_to("/etc/passwd")
    return spool


def _die(folder: Path, spool: Path, point: str, how: str) -> None:
    with (folder / "planted.err").open("ab") as errors:
        killed = subprocess.run(
            [sys.executable, str(PLANTED), str(folder / "eoq.db"), str(folder / "s"), str(spool), QUEUE, point, how],
            env=clean_environment(),
            cwd=folder,
            stderr=errors,
            timeout=PATIENCE,
            check=False,
        )
    assert killed.returncode == (-9 if how == "kill" else 9), (folder / "planted.err").read_text()


def _settle(folder: Path, *options: str) -> list[str]:
    """Run a daemon, receive and ack all messages, and return their bodies in the order in which they were stored."""
    daemon = Daemon(folder, options)
    daemon.start()
    try:
        with eoq.connect(daemon.socket) as client:
            if options:
                eventually(lambda: not _waiting(folder / "spool"), what="the spool is empty")
            settled: list[eoq.Message] = []
            while messages := client.receive(QUEUE, 1000):
                client.ack_many([(message, None) for message in messages])
                settled.extend(messages)
        assert daemon.terminate() == 0
        daemon.check()
    finally:
        daemon.kill()
    return [message.text for message in sorted(settled, key=lambda message: message.seq)]


def _waiting(spool: Path) -> list[str]:
    """Return the files that are neither stored nor rejected."""
    here = spool / QUEUE
    return [path.name for place in (here, here / ".taking") for path in place.glob("[!.]*")]


def _check_end(folder: Path, spool: Path, arrived: list[str]) -> None:
    arrived = arrived + _settle(folder, "--spool", str(spool))
    assert arrived == [f"body {number}" for number in range(MESSAGES)]
