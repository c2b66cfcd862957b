"""What the commands say of themselves: help, suggestions, manual pages, completion in real shells."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Final

import click
import pytest

import eoq
from tests.support import PATIENCE, Daemon, Shell, clean_environment, run_at_terminal, running_daemon

COMMANDS: Final[click.Group] = import_module("eoq.cli.commands").commands
MODULE_OF: Final = import_module("eoq.cli.catalogue").MODULE_OF


@pytest.fixture(scope="module")
def daemon_with_queues() -> Iterator[Daemon]:
    with running_daemon() as daemon, eoq.connect(daemon.socket) as client:
        for queue in ("payments", "payouts", "mail"):
            client.send(queue, "x")
        yield daemon


# ── help ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_help_lists_every_command_once_and_whole() -> None:
    context = click.Context(COMMANDS, info_name="eoq", max_content_width=80)
    lines = COMMANDS.get_help(context).splitlines()
    listed = [match.group(1) for line in lines if (match := re.match(r"  ([a-z][a-z-]*)  +[A-Z]", line))]
    assert sorted(listed) == sorted(MODULE_OF)
    assert not [line for line in lines if "..." in line.replace("[ARGS]...", "")]


@pytest.mark.parametrize(
    ("words", "suggestion"),
    [
        (["sned"], "`eoq send`"),
        (["publish"], "`eoq send`"),
        (["serch"], "`eoq find`"),
        (["dead", "lst"], "`eoq dead list`"),
        (["frobnicate"], "`eoq --help` lists the commands"),
    ],
)
def test_a_misspelt_command_gets_a_suggestion(words: list[str], suggestion: str) -> None:
    with pytest.raises(click.UsageError) as raised:
        COMMANDS.main(words, prog_name="eoq", standalone_mode=False)
    assert suggestion in raised.value.message


# ── bodies ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("words", "body"),
    [
        (["q", "-5"], "-5"),
        (["q", "-.5e3", "--priority", "-1"], "-.5e3"),
        (["--priority=-1", "--id", "-7", "q", "-5"], "-5"),
        (["q", "--", "-x"], "-x"),
        (["-h"], None),
        (["q", "-x"], None),
        (["q", "--delay", "-5", "x"], None),
    ],
)
def test_a_body_may_be_a_negative_number(words: list[str], body: str | None) -> None:
    command = COMMANDS.get_command(click.Context(COMMANDS), "send")
    assert command is not None
    if body is None:
        with pytest.raises((click.UsageError, click.exceptions.Exit)):
            command.make_context("send", words)
    else:
        assert command.make_context("send", words).params["body"] == body


def test_a_duplicate_is_said_at_a_terminal_only(daemon_with_queues: Daemon) -> None:
    shell = daemon_with_queues.shell()
    send = "eoq send mail hello --id once"
    assert shell.run(f"{send}; {send}").errors == ""
    assert "a duplicate: it was stored before" in run_at_terminal(shell, send, "stderr")
    assert "2 of them are duplicates" in run_at_terminal(
        shell,
        """printf '{"body":"%s","id":"%s"}\\n' hello once hello once new new-1 | eoq send mail --jsonl""",
        "stderr",
    )


# ── manual pages ────────────────────────────────────────────────────────────────────────────────────────────


def test_each_command_has_a_manual_page(alone: Shell, folder: Path) -> None:
    ran = alone.run("eoq man --dir pages")
    assert ran.status == 0, ran.errors
    pages = {file.name: file.read_text() for file in (folder / "pages").iterdir()}
    assert {f"eoq-{name}.1" for name in MODULE_OF} | {"eoq.1", "eoq-dead-redrive.1"} <= set(pages)
    for name, page in pages.items():
        assert page.startswith(f'.TH "{name.removesuffix(".1").upper()}" "1"'), name
        assert "\b" not in page
        # Nothing of a help text is taken for a request.
        requests = {line.split()[0] for line in page.splitlines() if line.startswith((".", "'"))}
        assert requests <= {".TH", ".SH", ".PP", ".TP", ".nf", ".fi", ".RS", ".RE"}, name
    assert alone.run("eoq man dead redrive").text == pages["eoq-dead-redrive.1"]
    assert alone.run("eoq man no-such").status == 1
    if shutil.which("man") and shutil.which("groff"):
        shown = alone.run("man --warnings -l pages/eoq-send.1 | col -b", MANWIDTH="100", LC_ALL="C.UTF-8")
        assert "warning" not in shown.errors
        assert "--id ID" in shown.text


# ── completion ──────────────────────────────────────────────────────────────────────────────────────────────


def _completed(daemon: Daemon, shell: str, script: str) -> str:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    ran = subprocess.run(
        [shell, "-c", script],
        capture_output=True,
        env=daemon.shell().environment,
        cwd=daemon.folder,
        timeout=PATIENCE,
        check=False,
    )
    assert not ran.stderr, ran.stderr.decode()
    return ran.stdout.decode()


def test_bash_completes_commands_and_queues(daemon_with_queues: Daemon) -> None:
    script = """
        eval "$(eoq completion bash)"
        complete_words() {
            COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
            _eoq_completion eoq
            echo "${COMPREPLY[*]}"
        }
        complete_words eoq sen
        complete_words eoq send pay
        complete_words eoq dead red
        complete_words eoq send payments --prio
    """
    words = _completed(daemon_with_queues, "bash", script).splitlines()
    assert words == ["send", "payments payouts", "redrive", "--priority"]


@pytest.mark.slow
def test_fish_completes_commands_and_queues(daemon_with_queues: Daemon) -> None:
    script = 'eoq completion fish | source; complete -C "eoq send pay"; complete -C "eoq sen"'
    assert _completed(daemon_with_queues, "fish", script).split() == ["payments", "payouts", "send"]


@pytest.mark.slow
def test_zsh_completes_queues(daemon_with_queues: Daemon) -> None:
    if shutil.which("zsh") is None:
        pytest.skip("there is no zsh")
    leader, follower = pty.openpty()
    environment = {**daemon_with_queues.shell().environment, "TERM": "dumb", "PS1": "% "}
    process = subprocess.Popen(
        ["zsh", "-f", "-i"],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=environment,
        cwd=daemon_with_queues.folder,
        start_new_session=True,
    )
    os.close(follower)
    try:
        os.write(leader, b'autoload -Uz compinit && compinit -u -D && eval "$(eoq completion zsh)" && echo rea""dy\n')
        _read_until(leader, "ready")
        os.write(leader, b"eoq send mai\t")
        _read_until(leader, "eoq send mail")
    finally:
        process.kill()
        process.wait()
        os.close(leader)


def _read_until(descriptor: int, text: str) -> str:
    read = ""
    deadline = time.monotonic() + PATIENCE
    while text not in read:
        assert time.monotonic() < deadline, read
        if select.select([descriptor], [], [], 0.1)[0]:
            read += os.read(descriptor, 65536).decode(errors="replace")
    return read


def test_without_a_daemon_no_queue_is_completed() -> None:
    environment = clean_environment(
        COMP_WORDS="eoq send ", COMP_CWORD="2", _EOQ_COMPLETE="bash_complete", EOQ_SOCKET="/nonexistent/s"
    )
    code = "from eoq.cli import main; main([], prog_name='eoq')"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"\n", b"")
