"""While the daemon brings the file of an earlier version up to date, everybody is told so, and how far it is."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import eoq
from tests.faults.test_migration import make_old
from tests.support import Shell, eventually, kill_group, short_folder, terminal

HELD: dict[str, str] = {"PYTHONPATH": str(Path(__file__).with_name("held_upgrade"))}
MOVING = "bringing its file up to date: moving the records of settled messages"
STARTS = 75

pytestmark = pytest.mark.slow


class Held:
    """A daemon that `eoq start` has started, and that is held after it has moved one record of four."""

    def __init__(self, folder: Path) -> None:
        make_old(folder / "eoq.db")
        self._gate = folder / "gate"
        self._gate.touch()
        self.shell = Shell(folder / "s", folder)
        self.starting = self.shell.start(
            "exec eoq start",
            stderr=subprocess.PIPE,
            env={**self.shell.environment, **HELD, "HELD_UPGRADE": str(self._gate)},
        )

    def opening(self) -> dict[str, object]:
        """What `eoq status --json` says of the upgrade; nothing where the daemon does not start."""
        ran = self.shell.run("eoq status --json")
        opening: dict[str, object] = ran.rows[0]["opening"] if ran.status == STARTS else {}
        return opening

    def go_on(self) -> None:
        """Let the daemon go on."""
        self._gate.unlink()


@pytest.fixture
def held() -> Iterator[Held]:
    with short_folder() as folder:
        held = Held(folder)
        try:
            eventually(lambda: held.opening().get("done") == 1)
            yield held
        finally:
            held.shell.run("eoq stop")
            kill_group(held.starting)
            with held.starting:
                pass


def test_status_says_how_far_it_is(held: Held) -> None:
    assert held.opening() == {
        "what": "moving the records of settled messages",
        "done": 1,
        "total": 4,
        "upgrades": True,
    }
    ran = held.shell.run("eoq status")
    assert (ran.status, f"{MOVING}, 25 %" in ran.text) == (STARTS, True)
    held.go_on()
    assert held.starting.wait() == 0
    assert held.shell.run("eoq status --json | jq -e '.opening == null and .pid > 0'").status == 0


def test_a_client_is_told_to_try_again(held: Held) -> None:
    with (
        closing(eoq.connect(held.shell.socket, timeout=3)) as client,
        pytest.raises(eoq.Unavailable, match=f"is starting .{MOVING}, 25 %.: try again when it is ready"),
    ):
        client.send("q", "x")


def test_start_waits_and_shows_the_progress(held: Held) -> None:
    another = held.shell.start("exec eoq start", stderr=subprocess.PIPE)
    assert another.stderr is not None
    assert MOVING.encode() in another.stderr.readline(), "it waits for the daemon of the other one"
    assert held.starting.poll() is None
    assert held.starting.stderr is not None
    assert any(MOVING.encode() in line for line in held.starting.stderr)  # it may have said earlier steps
    held.go_on()
    assert b"the daemon runs, with pid" in held.starting.stderr.read()
    assert held.starting.wait() == 0
    with another:
        assert b"a daemon runs already" in another.stderr.read()
        assert another.wait() == 0


def test_start_shows_it_at_a_terminal(held: Held) -> None:
    wanted = b"bringing the file up to date: moving the records of settled messages 25 %"
    with (
        terminal() as (seen, written),
        held.shell.start("exec eoq start", stdin=subprocess.DEVNULL, stderr=written) as another,
    ):
        os.close(written)
        shown = b""
        while wanted not in shown:
            shown += os.read(seen, 4096)
        held.go_on()
        assert another.wait() == 0


@pytest.mark.parametrize("end", ["eoq stop", "kill -9 $(eoq status --json | jq .pid)"])
def test_the_next_start_goes_on_where_it_was_ended(held: Held, end: str) -> None:
    assert held.shell.run(end).status == 0
    assert held.starting.wait() != 0, "it says that the daemon did not start"
    assert held.shell.run("eoq status").status == 69
    assert held.shell.run("eoq start").status == 0
    with eoq.connect(held.shell.socket) as client:
        counts = client.ask("status")
        assert "opening" not in counts
        assert client.result("q", "done") == eoq.Result("done", b"paid")
        assert client.send("q", "done", id="done").duplicate
        assert client.send("q", "leased", id="leased").duplicate
