"""Test what all commands have in common: no daemon, help, Ctrl-C, and closed, broken or full streams."""

from __future__ import annotations

import re
import signal
import subprocess
from importlib import import_module
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tests.cases import one_in
from tests.support import PATIENCE, Daemon, Shell, Wire, eventually, kill_group, run_at_terminal

# Imported by name: the module lies below eoq/ only when it is installed, which type checkers cannot see.
main: click.Group = import_module("eoq.cli.commands").commands
COMMANDS = main.list_commands(click.Context(main))

CLIENT_COMMANDS = [
    "send q x", "send q --lines", "receive q", "receive q --wait 60", "ack 0.1.1", "nack 0.1.1", "reject 0.1.1",
    "extend 0.1.1 5", "result q m", "result q m --wait 60", "queues", "peek q", "show q m", "status",
    "tail q", "pause q", "resume q", "purge q --yes", "dead list q", "dead show q m", "dead redrive q m",
    "dead drop q m --yes", "bind t q", "unbind t q", "topics",
]  # fmt: skip


@pytest.mark.parametrize("command", one_in(3, CLIENT_COMMANDS))
@pytest.mark.first_by_default
def test_without_a_daemon_a_command_is_69_and_says_what_to_do(folder: Path, command: str) -> None:
    socket = folder / "none"
    ran = Shell(socket, folder).run(f"echo x | eoq {command}")
    assert (ran.status, ran.text) == (69, "")
    assert str(socket) in ran.errors
    assert "eoq start" in ran.errors


@pytest.mark.slow
def test_the_socket_option_comes_before_the_variable(shell: Shell, folder: Path) -> None:
    assert shell.run(f"eoq status --socket {folder}/none").status == 69
    assert shell.run("eoq status --socket $EOQ_SOCKET", EOQ_SOCKET=f"{folder}/none").status == 69
    assert Shell(folder / "none", folder).run(f"eoq status --socket {shell.socket}").status == 0


@pytest.mark.parametrize("runtime", [None, "/nonexistent"])
def test_a_missing_runtime_directory_causes_no_warning(folder: Path, runtime: str | None) -> None:
    """Test it as under cron."""
    setting = f"XDG_RUNTIME_DIR={runtime}" if runtime else "-u XDG_RUNTIME_DIR"
    ran = Shell(folder / "s", folder).run(f"env -u EOQ_SOCKET {setting} eoq stop", TMPDIR=str(folder))
    assert ran.status == 0
    assert re.fullmatch(r"eoq: no daemon runs on .*/eoq/eoq\.sock\n", ran.errors)


# ── help ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_shows_an_example(command: str) -> None:
    ran = CliRunner().invoke(main, [command, "--help"], prog_name="eoq")
    assert ran.exit_code == 0
    assert ran.output == ran.stdout
    examples = re.findall(rf"^ .*\beoq {command}\b.*$", ran.stdout.partition("Options:")[0], re.MULTILINE)
    assert examples, ran.stdout


def test_help_lists_every_command(shell: Shell) -> None:
    ran = shell.run("eoq --help")
    assert ran.status == 0
    for command in COMMANDS:
        assert re.search(rf"^  {command}\b", ran.text, re.MULTILINE), command


@pytest.mark.parametrize("command", ["list", "show", "redrive", "drop"])
@pytest.mark.first_by_default
def test_help_of_a_dead_command_shows_an_example(shell: Shell, command: str) -> None:
    assert f"  eoq dead {command} mail" in shell.run(f"eoq dead {command} --help").text


def test_help_has_a_short_option(shell: Shell) -> None:
    assert shell.run("eoq send -h").text == shell.run("eoq send --help").text


def test_without_a_command_the_help_is_shown(shell: Shell) -> None:
    ran = shell.run("eoq")
    assert ran.status in (0, 2)
    assert "Usage:" in ran.text + ran.errors


def test_an_unknown_command_is_2(shell: Shell) -> None:
    ran = shell.run("eoq nonsense")
    assert ran.status == 2
    assert "nonsense" in ran.errors


def test_version_prints_the_version(shell: Shell) -> None:
    assert re.fullmatch(r"eoq, version \d+\.\d+\.\d+\n", shell.run("eoq --version").text)


# ── signals ─────────────────────────────────────────────────────────────────────────────────────────────────


def _interrupted(process: subprocess.Popen[bytes], number: signal.Signals = signal.SIGINT) -> tuple[int, str]:
    """Send a signal. Return the exit status and standard error."""
    with process:
        try:
            process.send_signal(number)
            _, errors = process.communicate(timeout=PATIENCE)
        finally:
            kill_group(process)
    text = errors.decode()
    assert "Traceback" not in text
    return process.returncode, text


def test_ctrl_c_during_receive_is_130(shell: Shell, shared_daemon: Daemon, queue: str) -> None:
    process = shell.start(f"exec eoq receive {queue} --wait 60", stderr=subprocess.PIPE)
    eventually(lambda: shared_daemon.ask(op="status")["waiting"] == 1)
    assert _interrupted(process)[0] == 130


def test_ctrl_c_during_send_lines_is_130_and_reports_what_is_stored(
    shell: Shell, shared_daemon: Daemon, queue: str
) -> None:
    process = shell.start(
        f"exec eoq send {queue} --lines", stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stdin is not None
    process.stdin.write(b"line\n" * 5000)
    process.stdin.flush()
    eventually(lambda: any(row["name"] == queue and row["ready"] for row in shared_daemon.ask(op="queues")["queues"]))
    status, errors = _interrupted(process)
    assert status == 130
    assert re.search(r"the first [\d,]+ messages are stored", errors)


def test_ctrl_c_during_send_wait_is_130(shell: Shell, shared_daemon: Daemon, queue: str) -> None:
    process = shell.start(
        f"exec eoq send {queue} x --id m --wait 60", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    eventually(lambda: shared_daemon.ask(op="show", queue=queue, id="m")["ok"])
    assert _interrupted(process)[0] == 130


def test_an_interrupted_receive_takes_no_message(shell: Shell, shared_daemon: Daemon, queue: str) -> None:
    process = shell.start(f"exec eoq receive {queue} --wait 60", stderr=subprocess.PIPE)
    eventually(lambda: shared_daemon.ask(op="status")["waiting"] == 1)
    _interrupted(process)
    shared_daemon.ask(op="send", queue=queue, body="x")
    assert shell.run(f"eoq receive {queue} --wait 20").text == "x\n"


# ── pipes ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    ["seq 20000 | eoq send {q} --lines", "eoq peek {q} --limit 1000 --json", "eoq receive {q} --limit 1000"],
)
def test_a_reader_that_closes_the_pipe_early_gets_no_error_message(shell: Shell, queue: str, command: str) -> None:
    sent = shell.run(f"seq 2000 | sed 's/$/{'x' * 500}/' | eoq send {queue} --lines")
    assert (sent.status, len(sent.lines)) == (0, 2000), sent.errors
    ran = shell.run(f"set -o pipefail; {command.format(q=queue)} | head -1")
    assert len(ran.lines) == 1
    assert (ran.status, ran.errors) == (74, ""), "exit status 1 would mean that there was no message"


@pytest.mark.parametrize(
    "command", ["queues", pytest.param("demo --payments 20 --kills 0", marks=pytest.mark.slow, id="demo")]
)
@pytest.mark.slow
def test_colours_need_a_capable_terminal_and_no_no_color(shell: Shell, queue: str, command: str) -> None:
    shell.run(f"eoq send {queue} x && eoq pause {queue}")
    plain = {"TERM": "xterm", "NO_COLOR": ""}
    assert "\x1b[" in run_at_terminal(shell, f"exec eoq {command}", "stdout", **plain)
    assert "\x1b[" not in run_at_terminal(shell, f"exec eoq {command}", "stdout", **{**plain, "NO_COLOR": "1"})
    assert "\x1b[" not in run_at_terminal(shell, f"exec eoq {command}", "stdout", **{**plain, "TERM": "dumb"})


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    "command", one_in(2, ["send {q} x", "receive {q}", "receive {q} --json", "queues", "peek {q}", "status"])
)
@pytest.mark.first_by_default
def test_a_full_output_is_reported_in_one_line(shell: Shell, wire: Wire, queue: str, command: str) -> None:
    assert wire.ask({"op": "send", "queue": queue, "body": "x"})["ok"]
    ran = shell.run(f"eoq {command.format(q=queue)} > /dev/full")
    assert ran.status != 0
    assert "No space left" in ran.errors
    assert "Exception ignored" not in ran.errors


@pytest.mark.parametrize(
    ("command", "closed"),
    one_in(
        4,  # each stream, and each command but one
        [
            (command, closed)
            for command in ("send {q} x", "send {q}", "receive {q}", "queues", "status")
            for closed in ("<&-", ">&-", "2>&-")
        ],
    ),
)
@pytest.mark.first_by_default
def test_closed_streams_cause_no_traceback(shell: Shell, wire: Wire, queue: str, command: str, closed: str) -> None:
    assert wire.ask({"op": "send", "queue": queue, "body": "x"})["ok"]
    ran = shell.run(f"eoq {command.format(q=queue)} {closed}")
    assert "Exception ignored" not in ran.errors


def test_output_is_utf8_in_every_locale(shell: Shell, queue: str) -> None:
    shell.run(f"eoq send {queue} 'é🦆' --id 'ü'", LC_ALL="C")
    ran = shell.run(f"eoq receive {queue} --json", LC_ALL="C")
    assert (ran.rows[0]["id"], ran.rows[0]["body"]) == ("ü", "é🦆")


@pytest.mark.slow
@pytest.mark.parametrize("count", [8, pytest.param(30, marks=pytest.mark.slow)])
def test_commands_can_run_at_the_same_time(shell: Shell, queue: str, count: int) -> None:
    ran = shell.run(f"for n in $(seq {count}); do eoq send {queue} same --id m --json & done; wait")
    assert sorted(row["duplicate"] for row in ran.rows) == [False] + [True] * (count - 1)
    assert shell.run(f"eoq receive {queue} --limit 100").text == "same\n"
