"""``spool-from-cron.sh``: a message that a shell leaves in the spool, stored by a daemon that starts later."""

from __future__ import annotations

from pathlib import Path

import pytest

import eoq
from tests.examples.conftest import EXAMPLES
from tests.support import Shell, eventually, running_daemon

SCRIPT = f'"{EXAMPLES}/spool-from-cron.sh"'


@pytest.fixture
def alone(folder: Path) -> Shell:
    """A shell without a daemon."""
    return Shell(folder / "absent", folder)


def test_the_same_job_and_day_are_one_message_and_another_day_is_another(alone: Shell, folder: Path) -> None:
    twice = f"{SCRIPT} spool reports nightly 2026-01-31"
    ran = alone.run(f"{twice} && {twice} && {SCRIPT} spool reports nightly 2026-02-01")
    assert (ran.status, ran.text, ran.errors) == (0, "", "")
    assert not list((folder / "spool" / "reports").glob(".*"))
    with running_daemon("--spool", str(folder / "spool")) as daemon, eoq.connect(daemon.socket) as client:
        eventually(lambda: client.ask("status")["spool_taken"] == 3)
        messages = client.ask("peek", queue="reports")["messages"]
        assert sorted(message["id"] for message in messages) == ["nightly-2026-01-31", "nightly-2026-02-01"]
        assert messages[0]["body"] == '{"job": "nightly", "day": "2026-01-31"}'
        assert messages[0]["headers"] == {"content-type": "application/json"}
        assert alone.run(f"{SCRIPT} spool reports nightly 2026-02-01").status == 0
        eventually(lambda: client.ask("status")["spool_taken"] == 4)
        assert len(client.receive("reports", 10)) == 2


def test_a_job_name_that_json_would_escape_is_refused(alone: Shell, folder: Path) -> None:
    ran = alone.run(f"{SCRIPT} spool reports 'a\"b'")
    assert ran.status == 2
    assert "use letters" in ran.errors
    assert list(folder.iterdir()) == []
