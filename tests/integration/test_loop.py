"""The daemon without uvloop, which is not there for every machine."""

from __future__ import annotations

from pathlib import Path

import pytest

import eoq
from tests.support import Shell


@pytest.mark.slow
def test_a_daemon_without_uvloop_serves(alone: Shell, folder: Path) -> None:
    absent = folder / "absent"
    absent.mkdir()
    (absent / "uvloop.py").write_text(f"open({str(absent / 'asked')!r}, 'x')\nraise ImportError('there is no wheel')\n")
    ran = alone.run("eoq start", PYTHONPATH=str(absent))
    assert ran.status == 0, ran.errors
    assert (absent / "asked").exists(), "the daemon has looked for uvloop"
    with eoq.connect(alone.socket) as client:
        client.send_many("q", (f"{n}" for n in range(1000)))
        bodies: list[str] = []
        client.work("q", lambda message: bodies.append(message.text), until_empty=True)
    assert bodies == [f"{n}" for n in range(1000)]
