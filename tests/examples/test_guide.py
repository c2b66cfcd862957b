"""The guide can be followed: its blocks run as they stand; its lists are those of the code."""

from __future__ import annotations

import json
import re
import shutil
import signal
import sqlite3
import subprocess
from configparser import ConfigParser
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Final

import click
import pytest

import eoq
from tests.examples.pages import Page, follow, with_netcat
from tests.support import PATIENCE, Shell, eventually, kill_group

GUIDE: Final = Page("eoq/docs/guide.md")
BLOCKS: Final = {
    ("First steps in a shell", "sh"): 2,
    ("First steps in Python", "python"): 2,
    ("Run a command for each message", "sh"): 1,
    ("Run SQL for each message", "sh"): 1,
    ("Workers in Python", "python"): 1,
    ("The outbox", "python"): 1,
    ("The outbox", "sh"): 1,
    ("What else a queue does", "sh"): 1,
    ("Schedules", "sh"): 1,
    ("The spool", "sh"): 1,
    ("Sending without Python", "sh"): 1,
    ("Once", "sh"): 1,
    ("Once", "python"): 1,
    ("As a service", "sh"): 2,
}
LEDGER: Final = "create table ledger (payment text, account text, amount integer)"

needs_sqlite3 = pytest.mark.skipif(not shutil.which("sqlite3"), reason="the example needs the program sqlite3")


def test_no_block_is_left_out() -> None:
    assert GUIDE.inventory() == BLOCKS


def _block(title: str, language: str = "sh") -> str:
    (block,) = GUIDE.blocks(title, language)
    return block


def _interrupt(shell: Shell, process: subprocess.Popen[bytes]) -> tuple[int, bytes, bytes]:
    """Send Ctrl-C to a program. Return its exit status and its output."""
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=PATIENCE)
    return process.returncode, out, errors


# ── first steps ─────────────────────────────────────────────────────────────────────────────────────────────


def test_the_first_steps_can_be_followed_from_the_shell_to_python(alone: Shell, folder: Path) -> None:
    steps, _line = GUIDE.blocks("First steps in a shell", "sh")
    line = "eoq receive payments --json"
    assert line in steps and "RECEIPT" in steps
    receive = r"""receipt=$(eoq receive payments --json | sed -E 's/.*"receipt": "([^"]+)".*/\1/')"""
    printed = follow(alone, steps.replace(line, receive).replace("RECEIPT", '"$receipt"'))
    assert printed[:3] == ["order-17", "order-17", "paid"]
    assert [row.split()[:2] for row in printed[3:]] == [["numbers", "1000"], ["payments", "0"]]

    worker, sender = GUIDE.blocks("First steps in Python", "python")
    (folder / "worker.py").write_text(worker)
    (folder / "sender.py").write_text(sender)
    follow(alone, "eoq start")
    process = alone.start("exec python worker.py", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with process:
        try:
            assert follow(alone, "python sender.py") == ["Result(outcome='done', body=b'paid', error=None)"]
            eventually(lambda: "done" in alone.run("eoq show payments order-22").text)
            assert _interrupt(alone, process) == (0, b"", b"")
        finally:
            kill_group(process)


def test_one_line_of_json_is_enough_to_send(shell: Shell) -> None:
    _steps, line = GUIDE.blocks("First steps in a shell", "sh")
    (reply,) = follow(shell, with_netcat(shell, line))
    assert json.loads(reply)["ok"]


# ── workers ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_command_can_be_run_for_each_message(alone: Shell) -> None:
    printed = follow(alone, f"eoq start; {_block('Run a command for each message')}")
    assert [line.strip() for line in printed if line != "w-1"] == ["2"]


@needs_sqlite3
@pytest.mark.slow
def test_sql_can_be_run_for_each_message(alone: Shell) -> None:
    printed = follow(alone, f"eoq start; {_block('Run SQL for each message')} sqlite3 book.db 'select * from booking'")
    assert printed == ["order-31", "alice|5"]


@pytest.mark.slow
def test_the_worker_in_python_books_and_rejects(alone: Shell, folder: Path) -> None:
    (folder / "worker.py").write_text(_block("Workers in Python", "python"))
    with closing(sqlite3.connect(folder / "ledger.db")) as database:
        database.execute(LEDGER)
    follow(alone, "eoq start")
    for id, account in (("a", "alice"), ("b", "closed")):
        follow(alone, f"""eoq send payments '{{"account": "{account}", "amount": 5}}' --id {id}""")
    process = alone.start("exec python worker.py", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with process:
        try:
            assert follow(alone, "eoq result payments a --wait 20") == ["paid"]
            eventually(lambda: "no such account" in alone.run("eoq dead list payments").text)
            status, out, _log = _interrupt(alone, process)
            assert (status, out) == (0, b"")
        finally:
            kill_group(process)
    with closing(sqlite3.connect(folder / "ledger.db")) as database:
        assert database.execute("select * from ledger").fetchall() == [("a", "alice", 5)]


@pytest.mark.slow
def test_the_outbox_sends_what_was_committed(alone: Shell, folder: Path) -> None:
    (folder / "shop.py").write_text(_block("The outbox", "python"))
    printed = follow(alone, f"eoq start; python shop.py; {_block('The outbox')}")
    assert printed[-1:] == ['{"account":"alice","amount":5}']


# ── what else a queue does ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_what_else_a_queue_does_can_be_pasted(alone: Shell) -> None:
    printed = follow(alone, f"eoq start; {_block('What else a queue does')}")
    assert any(re.match(r"m-1 .*no such address", line) for line in printed), printed
    assert printed[-1] == "5", "purge dropped what was sent to `mail`, and the copy of the topic"


@pytest.mark.slow
def test_schedules_can_be_pasted(alone: Shell) -> None:
    printed = follow(alone, f"eoq start; {_block('Schedules')}")
    assert [line.split()[0] for line in printed[-2:]] == ["report", "tick"]


@pytest.mark.slow
def test_the_spool_can_be_pasted_though_a_daemon_runs_without(alone: Shell) -> None:
    follow(alone, f"eoq start; {_block('The spool')}")
    for _ in range(3):
        assert follow(alone, "eoq receive mail --wait 20 --ack") in (["hello"], ["hi"])


@pytest.mark.slow
def test_the_shell_function_can_be_pasted(alone: Shell) -> None:
    printed = follow(alone, f"eoq start; export HOME=$PWD; {_block('Sending without Python')}")
    assert printed[1] == "order-17" and len(printed) == 3
    assert follow(alone, "eoq receive payments --wait 20") == ['{"amount": 5}']
    assert (alone.folder / ".eoq.sh").exists()


@pytest.mark.slow
def test_a_command_runs_once_for_a_key(alone: Shell, folder: Path) -> None:
    report = folder / "make-report"
    report.write_text("#!/bin/sh\necho run >> runs\necho the report\n")
    report.chmod(0o755)
    printed = follow(alone, f"eoq start; {_block('Once')} {_block('Once')}")
    assert printed == ["the report"] * 2
    assert (folder / "runs").read_text() == "run\n"


@pytest.mark.slow
def test_a_function_runs_once_for_a_key(alone: Shell, folder: Path) -> None:
    (folder / "charge.py").write_text(_block("Once", "python"))
    assert follow(alone, "eoq start; python charge.py; python charge.py") == ["b'charged'"] * 2


def test_the_service_runs_the_daemon_and_does_not_restart_what_cannot_succeed(alone: Shell) -> None:
    installs, *_ = [line.split("#")[0] for line in GUIDE.blocks("As a service", "sh")[0].splitlines()]
    printed = alone.run(f"{installs} --print")
    assert printed.status == 0, printed.errors
    unit = ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign] # systemd's names are not in lower case
    unit.read_string(printed.text)
    service = unit["Service"]
    assert service["ExecStart"].split()[1:5] == ["-P", "-m", "eoq.cli", "daemon"]
    assert service["ExecReload"] == "kill -HUP $MAINPID"
    useless = {int(status) for status in service["RestartPreventExitStatus"].split()}
    again = {kind.exit_status for kind in (eoq.EoqError, eoq.Unavailable, eoq.StorageFull, eoq.StorageFailed)}
    assert useless == {click.UsageError.exit_code, eoq.InvalidRequest.exit_status, eoq.Forbidden.exit_status}
    assert not useless & again


# ── its lists ───────────────────────────────────────────────────────────────────────────────────────────────


def _commands() -> list[str]:
    main = import_module("eoq.cli.commands").commands
    return list(main.list_commands(click.Context(main)))


def test_each_command_is_listed_and_no_other() -> None:
    listed = set()
    for command, _does in GUIDE.rows("Commands"):
        first, *others = [words.split()[0] for words in re.findall(r"`([^`]+)`", command.replace("`eoq ", "`"))]
        listed |= {first, *others}
    groups = {"dead", "schedule", "config"}
    within = {"list", "show", "redrive", "drop", "add", "remove", "run", "uninstall"}
    assert set(_commands()) <= listed
    assert listed - set(_commands()) <= within
    assert groups <= listed


def test_each_public_name_is_listed() -> None:
    names = set(re.findall(r"`(\w+)`", GUIDE.section("In Python") + GUIDE.section("Errors and exit statuses")))
    assert set(eoq.__all__) - {"__version__"} <= names


def test_each_error_has_its_exit_status() -> None:
    rows = GUIDE.rows("Errors and exit statuses")
    listed = {row[0].strip("`"): row[1] for row in rows if len(row) == 3}
    statuses = {int(row[0]) for row in rows if len(row) == 2}
    kinds = [value for name in eoq.__all__ if isinstance(value := getattr(eoq, name), type)]
    errors = [kind for kind in kinds if issubclass(kind, eoq.EoqError)]
    assert listed == {kind.__name__: str(kind.exit_status) for kind in errors}
    assert {int(status) for status in listed.values()} <= statuses
    help_text = import_module("eoq.cli.commands").commands.help
    assert statuses == {int(status) for status in re.findall(r"(\d+) [a-zA-Z]", help_text.split("Exit status:")[1])}
