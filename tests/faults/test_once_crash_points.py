"""``once`` with its caller or its daemon killed at each point: one outcome is stored, and callers never overlap."""

from __future__ import annotations

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import get_args

import pytest

import eoq
from tests.faults import planted_once
from tests.faults.daemons import planted_daemon
from tests.faults.planted_daemon import Die, Plant, Point
from tests.support import PATIENCE, Daemon, clean_environment, eventually


@pytest.mark.first_by_default
@pytest.mark.parametrize("how", [pytest.param("exit", marks=pytest.mark.slow), "kill"])
@pytest.mark.parametrize("point", planted_once.POINTS)
def test_a_caller_is_killed_at_a_point(daemon: Daemon, tmp_path: Path, point: str, how: str) -> None:
    trace = tmp_path / "trace"
    trace.touch()
    died = subprocess.run(
        [sys.executable, planted_once.__file__, str(daemon.socket), str(trace), point, how],
        env=clean_environment(),
        timeout=PATIENCE,
        check=False,
    )
    assert died.returncode == (9 if how == "exit" else -signal.SIGKILL)
    runs, stored = planted_once.POINTS[point]
    assert trace.read_text().count("run") == runs
    with eoq.connect(daemon.socket) as client:
        # The next caller runs if and only if nothing was stored; the one after it never does.
        expected = b"first" if stored else b"second"
        assert client.once("k", lambda: "second") == expected
        assert client.once("k", lambda: "third") == expected


@pytest.mark.first_by_default
@pytest.mark.parametrize(
    ("command", "point"),
    [
        pytest.param(command, point, marks=() if point in points else pytest.mark.slow)
        for command, points in {"once_begin": ("committed",), "once_finish": ("written", "committed")}.items()
        for point in get_args(Point)
    ],
)
def test_the_daemon_is_killed_at_a_point(command: str, point: Point) -> None:
    """The caller reconnects and has run once. The next caller gets its result."""
    runs: list[str] = []

    def run() -> str:
        runs.append("run")
        return f"result {len(runs)}"

    with (
        planted_daemon(Plant(Die(point, command))) as daemon,
        ThreadPoolExecutor(1) as pool,
        eoq.connect(daemon.socket) as client,
    ):
        client.ask("status")  # from now on the client waits for a daemon that goes away
        first = pool.submit(client.once, "k", run)
        assert daemon.wait() == -signal.SIGKILL
        daemon.start_plain()
        assert first.result(PATIENCE) == b"result 1"
        with eoq.connect(daemon.socket) as other:
            assert other.once("k", run) == b"result 1"
        assert runs == ["run"]


@pytest.mark.parametrize(
    "point", ["committed", *(pytest.param(p, marks=pytest.mark.slow) for p in ("begun", "written", "replying"))]
)
def test_the_daemon_is_killed_while_a_key_is_opened_again(point: Point) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with (
        planted_daemon(Plant(Die(point, "once_release"))) as daemon,
        ThreadPoolExecutor(1) as pool,
        eoq.connect(daemon.socket) as client,
    ):
        failing = pool.submit(client.once, "k", fail)
        assert daemon.wait() == -signal.SIGKILL
        daemon.start_plain()
        assert isinstance(failing.exception(PATIENCE), ZeroDivisionError)
        assert client.once("k", lambda: "second", wait=PATIENCE) == b"second"


@pytest.mark.slow
@pytest.mark.parametrize("keys", [10, pytest.param(40, marks=pytest.mark.slow)])
def test_many_callers_run_while_the_daemon_is_killed_again_and_again(daemon: Daemon, keys: int) -> None:
    """Four callers for each key. The daemon is killed until all have their result."""
    runs: list[int] = []
    with eoq.connect(daemon.socket, timeout=60) as client, ThreadPoolExecutor(8) as pool:

        def run(key: int) -> str:
            runs.append(key)
            return str(key)

        calls = [pool.submit(client.once, f"k{n % keys}", partial(run, n % keys)) for n in range(4 * keys)]

        def finished() -> int:
            return sum(call.done() for call in calls)

        while finished() < len(calls):
            daemon.kill()
            daemon.restart()
            done = finished()
            eventually(lambda: finished() > done or done == len(calls), 60)  # noqa: B023 # called before `done` changes
        assert [call.result() for call in calls] == [str(n % keys).encode() for n in range(4 * keys)]
    assert sorted(runs) == list(range(keys))
