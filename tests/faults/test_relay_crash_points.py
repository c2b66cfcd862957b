"""A relay killed at each point of a step, by an exit and by ``kill -9``; the next one goes on, and all arrives once."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

import eoq
from tests.faults.planted_relay import POINTS
from tests.support import PATIENCE, Daemon, clean_environment

MESSAGES = 300
"""More than one batch."""


@pytest.mark.parametrize("how", ["exit", "kill"])
@pytest.mark.parametrize("point", POINTS)
def test_a_killed_relay_loses_and_doubles_nothing(daemon: Daemon, tmp_path: Path, point: str, how: str) -> None:
    file = tmp_path / "app.db"
    with closing(sqlite3.connect(file)) as database:
        box = eoq.Outbox(database)
        with database:
            ids = [box.send("q", f"body {number}") for number in range(MESSAGES)]
    killed = subprocess.run(
        [sys.executable, "-m", "tests.faults.planted_relay", str(file), str(daemon.socket), point, how],
        env=clean_environment(),
        cwd=Path(__file__).parents[2],
        timeout=PATIENCE,
        check=False,
    )
    assert killed.returncode == (9 if how == "exit" else -9)
    ran = daemon.shell().run(f"eoq relay {file} --until-empty")
    assert ran.status == 0, ran.errors
    with eoq.connect(daemon.socket) as client:
        arrived = [message.id for message in client.receive("q", 1000)]
    assert arrived == ids
    with closing(sqlite3.connect(file)) as database:
        assert database.execute("select count(*) from eoq_outbox").fetchone() == (0,)
