"""The protocol by hand, as the documentation shows it: ``printf … | nc -U SOCKET`` in a shell."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import Fields, Shell

STAND_IN = Path(__file__).with_name("netcat.py")


def _has_real_netcat() -> bool:
    """Return whether there is an ``nc`` with ``-U`` and ``-N`` (OpenBSD's)."""
    if shutil.which("nc") is None:
        return False
    usage = subprocess.run(["nc", "-h"], capture_output=True, check=False)
    return b"-U" in usage.stdout + usage.stderr and b"-N" in usage.stdout + usage.stderr


@pytest.fixture(params=["nc", "stand-in"])
def netcat(request: pytest.FixtureRequest) -> str:
    """Return the command that connects standard input and output to the socket."""
    if request.param == "stand-in":
        return f"{sys.executable} {STAND_IN} $EOQ_SOCKET"
    if not _has_real_netcat():
        pytest.skip("no nc with -U and -N here")
    return "nc -N -U $EOQ_SOCKET"


def _ask(shell: Shell, netcat: str, *requests: Fields) -> list[Fields]:
    lines = "".join(json.dumps(request) + "\\n" for request in requests)
    ran = shell.run(f"printf '{lines}' | {netcat}")
    assert ran.status == 0, ran.errors
    return ran.rows


def test_a_message_is_sent_and_received(shell: Shell, netcat: str, queue: str) -> None:
    ran = shell.run(f"""printf '{{"op":"send","queue":"{queue}","body":"hi"}}\\n' | {netcat}""")
    assert ran.rows[0]["ok"] is True
    received = _ask(shell, netcat, {"op": "receive", "queue": queue})
    assert received[0]["messages"][0]["body"] == "hi"


def test_several_requests_in_one_go_are_all_answered(shell: Shell, netcat: str, queue: str) -> None:
    requests = [{"op": "send", "queue": queue, "body": f"{number}", "rid": number} for number in range(20)]
    assert sorted(reply["rid"] for reply in _ask(shell, netcat, *requests)) == list(range(20))


def test_a_reply_that_waits_reaches_a_closed_input(shell: Shell, netcat: str, queue: str) -> None:
    waits: Fields = {"op": "receive", "queue": queue, "wait": 0.3}
    assert _ask(shell, netcat, waits)[0]["messages"] == []


def test_a_large_message_passes_whole(shell: Shell, netcat: str, queue: str) -> None:
    line = json.dumps({"op": "send", "queue": queue, "body": "x" * 1_000_000}).encode() + b"\n"
    assert shell.run(netcat, line).rows[0]["ok"]
    received = _ask(shell, netcat, {"op": "receive", "queue": queue})
    assert received[0]["messages"][0]["body"] == "x" * 1_000_000


def test_a_malformed_line_is_answered(shell: Shell, netcat: str) -> None:
    ran = shell.run(f"echo hello | {netcat}")
    assert ran.rows[0]["error"]["code"] == "invalid_request"
