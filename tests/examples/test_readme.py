"""README can be followed: its blocks run as they stand, one after the other; its lists are those of the code."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Final

import pytest

import eoq
from tests.examples.conftest import EXAMPLES
from tests.support import PATIENCE, Shell, eventually, kill_group

README: Final = (EXAMPLES.parent / "README.md").read_text()


def _section(title: str) -> str:
    return README.split(f" {title}\n", 1)[1].split("\n#", 1)[0]


def _blocks(section: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def _follow(alone: Shell, script: str) -> list[str]:
    """Runs a block, in which nothing may fail; returns what it printed."""
    ran = alone.run(f"set -e; {script}", HOME=str(alone.folder))
    assert ran.status == 0, f"{script}\n{ran.text}\n{ran.errors}"
    return ran.lines


def test_the_first_steps_can_be_followed_from_the_shell_to_python(alone: Shell, folder: Path) -> None:
    (steps,) = _blocks(_section("First steps in a shell"), "sh")
    line = "eoq receive payments --json"
    assert line in steps and "RECEIPT" in steps
    take = r"""receipt=$(eoq receive payments --json | sed -E 's/.*"receipt": "([^"]+)".*/\1/')"""
    printed = _follow(alone, steps.replace(line, take).replace("RECEIPT", '"$receipt"'))
    assert printed[:3] == ["order-17", "order-17", "paid"]
    assert [row.split()[:2] for row in printed[3:]] == [["numbers", "1000"], ["payments", "0"]]

    worker, sender = _blocks(_section("First steps in Python"), "python")
    (folder / "worker.py").write_text(worker)
    (folder / "sender.py").write_text(sender)
    _follow(alone, "eoq start")
    process = alone.start("exec python worker.py", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with process:
        try:
            assert _follow(alone, "python sender.py") == ["Result(outcome='done', body=b'paid', error=None)"]
            eventually(lambda: "done" in alone.run("eoq show payments order-22").text)
            process.send_signal(signal.SIGINT)
            said = process.communicate(timeout=PATIENCE)
        finally:
            kill_group(process)
    assert (process.returncode, *said) == (0, b"", b"")


def test_what_else_a_queue_should_do_can_be_pasted(alone: Shell) -> None:
    (block,) = _blocks(_section("What else a queue should do"), "sh")
    printed = _follow(alone, f"eoq start; {block}")
    assert any(re.match(r"m-1 .*no such address", line) for line in printed), printed
    assert printed[-1] == "5", "all that was sent to `mail`, and what came by the topic"


def test_the_spool_can_be_pasted_though_a_daemon_runs_without(alone: Shell) -> None:
    (block,) = _blocks(_section("The spool: sending while no daemon runs"), "sh")
    _follow(alone, f"eoq start; {block}")
    for _ in range(3):
        assert _follow(alone, "eoq receive mail --wait 20 --ack") in (["hello"], ["hi"])


@pytest.mark.skipif(not (shutil.which("jq") and shutil.which("sqlite3")), reason="an example needs jq, one sqlite3")
def test_the_examples_can_be_followed_one_after_the_other(alone: Shell, folder: Path) -> None:
    page = (EXAMPLES / "README.md").read_text().split("**[webhook_receiver.py]")[0]
    (folder / "examples").symlink_to(EXAMPLES)
    printed = _follow(alone, "\n".join(_blocks(page, "sh")))
    assert [line for line in printed if line in ("2", "alice|500")] == ["2", "alice|500"]
    eventually(lambda: "nightly-report-" in alone.run("eoq peek reports").text)


def test_each_public_name_is_listed() -> None:
    names = set(re.findall(r"`(\w+)`", _section("In Python")))
    assert set(eoq.__all__) - {"__version__"} <= names


def test_each_error_has_its_exit_status() -> None:
    told = dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", _section("In Python"), re.MULTILINE))
    kinds = [value for name in eoq.__all__ if isinstance(value := getattr(eoq, name), type)]
    errors = [kind for kind in kinds if issubclass(kind, eoq.EoqError)]
    assert told == {kind.__name__: str(kind.exit_status) for kind in errors}
    (sentence,) = re.findall(r"^Exit status: .*?\. ", README, re.MULTILINE | re.DOTALL)
    assert {int(status) for status in told.values()} <= set(map(int, re.findall(r"\b\d+\b", sentence)))
