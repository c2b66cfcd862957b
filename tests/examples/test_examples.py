"""The shell examples, run in a real shell against a real daemon; and the page that lists all examples."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.examples.conftest import EXAMPLES, ExampleShell
from tests.examples.node import node_is_able
from tests.examples.pages import Page, follow
from tests.support import PATIENCE, Daemon, Shell, eventually, kill_group, read_line_of, running_daemon

PAGE: Final = Page("examples/README.md")
CRON = '"$examples/cron-enqueue.sh"'
RECEIVE = '"$examples/receive-and-ack.sh"'


def _outcome(daemon: Daemon, queue: str, id: str) -> tuple[object, object]:
    reply = daemon.ask(op="result", queue=queue, id=id)
    return reply["outcome"], reply.get("result")


# ── the page that lists them ────────────────────────────────────────────────────────────────────────────────


def _examples() -> list[str]:
    return sorted(path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh", ".mjs", ".toml"))


@pytest.mark.parametrize("name", _examples())
def test_the_page_lists_each_example(name: str) -> None:
    assert f"]({name})" in PAGE.text


@pytest.mark.parametrize("name", [name for name in _examples() if name.endswith(".sh")])
def test_a_script_without_arguments_prints_its_usage(shell: Shell, name: str) -> None:
    ran = shell.run(f'"{EXAMPLES / name}"')
    assert ran.status == 2
    assert ran.errors.startswith("usage: ")


@pytest.mark.parametrize("name", [name for name in _examples() if name.endswith(".py")])
@pytest.mark.first_by_default
def test_a_program_prints_its_help(name: str) -> None:
    ran = subprocess.run([sys.executable, EXAMPLES / name, "--help"], capture_output=True, text=True, check=True)
    if name != "outbox_shop.py":  # it needs no daemon
        assert "--socket" in ran.stdout


def _pages_blocks() -> tuple[list[str], str, str]:
    """Return the blocks of the page: those before the webhook receiver, its start, and a request to it."""
    *before, start, request = PAGE.blocks_of("sh")
    assert "webhook_receiver.py" in start
    return before, start, request


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("jq") and shutil.which("sqlite3")), reason="an example needs jq, one sqlite3")
def test_the_examples_can_be_followed_one_after_the_other(alone: Shell, folder: Path) -> None:
    blocks, _start, _request = _pages_blocks()
    (folder / "examples").symlink_to(EXAMPLES)
    script = "\n".join(blocks)
    if not node_is_able():  # the test of that example says so
        script = re.sub(r"^node .*", "eoq receive payments --ack", script, flags=re.MULTILINE)
    printed = follow(alone, script)
    results = ("2", "alice|500", "dave has 300 cents")
    assert [line for line in printed if line in results] == list(results)
    eventually(lambda: "nightly-report-" in alone.run("eoq peek reports").text)


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("openssl")), reason="the example needs curl and openssl")
@pytest.mark.slow
def test_the_webhook_receiver_can_be_followed(alone: Shell, folder: Path) -> None:
    _blocks, start, request = _pages_blocks()
    assert "--port 8080" in start
    assert "127.0.0.1:8080" in request
    (folder / "examples").symlink_to(EXAMPLES)
    follow(alone, "eoq start")
    start = start.replace("--port 8080", "--port 0").replace("python ", "exec python ")
    receiver = alone.start(start, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with receiver:
        try:
            address = re.search(r"http://(\S+)", read_line_of(receiver).decode())
            assert address
            printed = follow(alone, request.replace("127.0.0.1:8080", address[1]))
        finally:
            kill_group(receiver)
    assert printed[0] == "stored"
    assert "d-1" in printed[1]


# ── cron-enqueue.sh ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_second_run_on_the_same_day_stores_no_second_message(
    example_shell: ExampleShell, shared_daemon: Daemon, queue: str
) -> None:
    # Two runs at once, and one after them.
    once = f"{CRON} {queue} report"
    ran = example_shell.example(f"date +%F; {once} & first=$!; {once} & wait $first && wait $! && {once} && date +%F")
    assert (ran.status, ran.errors) == (0, "")
    day, day_after = ran.lines
    if day != day_after:
        pytest.skip("midnight passed during the test")
    messages = shared_daemon.ask(op="peek", queue=queue)["messages"]
    assert [message["id"] for message in messages] == [f"report-{day}"]
    assert messages[0]["body"] == f'{{"job": "report", "day": "{day}"}}'
    assert messages[0]["headers"] == {"content-type": "application/json"}


def test_another_day_or_another_job_stores_another_message(
    example_shell: ExampleShell, shared_daemon: Daemon, queue: str
) -> None:
    runs = [f"{CRON} {queue} {job} {day}" for job in ("report", "backup") for day in ("2026-01-31", "2026-02-01")]
    assert example_shell.example(" && ".join(runs)).status == 0
    messages = shared_daemon.ask(op="peek", queue=queue)["messages"]
    assert len({message["id"] for message in messages}) == 4


def test_a_run_after_the_job_was_done_stores_no_second_message(
    example_shell: ExampleShell, shared_daemon: Daemon, queue: str
) -> None:
    ran = example_shell.example(f"{CRON} {queue} report 2026-01-31 && eoq receive {queue} --ack > /dev/null")
    assert ran.status == 0
    assert example_shell.example(f"{CRON} {queue} report 2026-01-31").status == 0
    assert shared_daemon.ask(op="peek", queue=queue)["messages"] == []


def test_the_script_fails_with_69_if_the_daemon_is_away(example_shell: ExampleShell, queue: str) -> None:
    ran = example_shell.example(f"{CRON} {queue} report", EOQ_SOCKET=str(example_shell.folder / "absent"))
    assert ran.status == 69
    assert "cannot reach the daemon" in ran.errors


def test_a_job_name_that_json_would_escape_is_refused(example_shell: ExampleShell, queue: str) -> None:
    ran = example_shell.example(f"{CRON} {queue} 'a\"b'")
    assert ran.status == 2
    assert "use letters" in ran.errors


# ── receive-and-ack.sh ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_each_message_is_handled_and_its_result_stored(
    example_shell: ExampleShell, shared_daemon: Daemon, queue: str
) -> None:
    bodies = {
        "a": "hello world",
        "b": "",
        "c": 'naïve "テスト" \\ \u2028 🚀\nsecond line\n',
        "d": "tab\there \x00 \x01 \x7f",
    }
    for id, body in bodies.items():
        shared_daemon.ask(op="send", queue=queue, id=id, body=body)
    ran = example_shell.example(f"{RECEIVE} {queue} sh -c 'cat; printf \" was $EOQ_ID\"'", WAIT="0")
    assert (ran.status, ran.errors) == (0, "")
    for id, body in bodies.items():
        assert _outcome(shared_daemon, queue, id) == ("done", f"{body} was {id}")


def test_bodies_that_are_not_text_arrive_byte_for_byte(
    example_shell: ExampleShell, shared_daemon: Daemon, queue: str
) -> None:
    shared_daemon.ask(op="send", queue=queue, id="a", body_base64="AP/+Cg==")
    assert example_shell.example(f"{RECEIVE} {queue} cat", WAIT="0").status == 0
    assert shared_daemon.ask(op="result", queue=queue, id="a")["result_base64"] == "AP/+Cg=="


@pytest.mark.slow
def test_a_command_that_fails_gives_the_message_back(
    example_shell: ExampleShell, shared_daemon: Daemon, queue: str
) -> None:
    shared_daemon.ask(op="send", queue=queue, id="a", body="once more")
    script = "cat; echo no luck >&2; [ $EOQ_ATTEMPT -gt 1 ]"
    ran = example_shell.example(f"{RECEIVE} {queue} sh -c '{script}'", WAIT="0")
    assert ran.status == 0
    assert ran.errors == "no luck\nno luck\n"
    assert _outcome(shared_daemon, queue, "a") == ("done", "once more")


@pytest.mark.slow
def test_the_reason_of_a_failure_is_kept_with_the_message(
    example_shell: ExampleShell, tmp_path: Path, queue: str
) -> None:
    # The third delivery comes much later than the script has ended, also on a slow machine.
    (tmp_path / "eoq.toml").write_text('[queues."*"]\nretry_base = 3600\nretry_cap = 3600\n')
    with running_daemon("--config", str(tmp_path / "eoq.toml")) as daemon:
        daemon.ask(op="send", queue=queue, id="a", body="x")
        script = f"{RECEIVE} {queue} sh -c 'echo --no luck >&2; exit 3'"
        ran = example_shell.example(script, WAIT="0", EOQ_SOCKET=str(daemon.socket))
        message = daemon.ask(op="show", queue=queue, id="a")["message"]
    assert ran.status == 0
    assert message["error"] == "exit status 3: --no luck"
    assert message["attempts"] == 2
    assert message["state"] == "delayed"


@pytest.mark.slow
def test_a_lost_lease_does_not_stop_the_script(example_shell: ExampleShell, shared_daemon: Daemon, queue: str) -> None:
    for id in ("slow", "next"):
        shared_daemon.ask(op="send", queue=queue, id=id, body=id)
    # When the command ends, the script has lost the lease of the first delivery of "slow".
    command = '[ $EOQ_ID$EOQ_ATTEMPT != slow1 ] || eoq nack "$EOQ_RECEIPT" --delay 0; echo $EOQ_ID'
    ran = example_shell.example(f'{RECEIVE} {queue} bash -c "$COMMAND"', COMMAND=command, WAIT="0")
    assert ran.status == 0
    assert "the lease of this receipt has ended" in ran.errors
    assert _outcome(shared_daemon, queue, "slow") == ("done", "slow\n")
    assert _outcome(shared_daemon, queue, "next") == ("done", "next\n")


@pytest.mark.slow
def test_the_message_of_a_killed_script_is_delivered_to_the_next(example_shell: ExampleShell, daemon: Daemon) -> None:
    daemon.ask(op="send", queue="jobs", id="a", body="survives")
    environment = {**example_shell.environment, "EOQ_SOCKET": str(daemon.socket), "LEASE": "0.5"}
    script = f'"{EXAMPLES}/receive-and-ack.sh" jobs bash -c "echo > {daemon.folder}/begun; exec sleep 600"'
    worker = example_shell.start(script, env=environment)
    with worker:
        try:
            eventually((daemon.folder / "begun").exists, what="the command runs")
        finally:
            kill_group(worker)
    ran = example_shell.example(f"{RECEIVE} jobs cat", EOQ_SOCKET=str(daemon.socket), WAIT="1")
    assert ran.status == 0
    assert _outcome(daemon, "jobs", "a") == ("done", "survives")
    assert len(daemon.ask(op="show", queue="jobs", id="a")["message"]["history"]) == 1, "one delivery has failed"


def test_the_script_ends_if_the_daemon_is_away(example_shell: ExampleShell) -> None:
    ran = example_shell.example(f"{RECEIVE} jobs cat", EOQ_SOCKET=str(example_shell.folder / "absent"))
    assert ran.status == 69
    assert "cannot reach the daemon" in ran.errors


def test_ctrl_c_leaves_no_files_behind(example_shell: ExampleShell, shared_daemon: Daemon, queue: str) -> None:
    scratch = example_shell.folder / f"scratch-{queue[-8:].strip('-')}"
    scratch.mkdir()
    environment = {**example_shell.environment, "TMPDIR": str(scratch), "WAIT": "60"}
    worker = example_shell.start(f'exec "{EXAMPLES}/receive-and-ack.sh" {queue} cat', env=environment)
    with worker:
        try:
            eventually(lambda: shared_daemon.ask(op="status")["waiting"], what="the script waits for a message")
            assert list(scratch.iterdir()) != []
            os.killpg(worker.pid, signal.SIGINT)
            worker.wait(PATIENCE)
        finally:
            kill_group(worker)
    assert list(scratch.iterdir()) == []
