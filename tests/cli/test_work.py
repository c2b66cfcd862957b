"""Test ``eoq work`` in a real shell: exit statuses, output, time-outs and signals of its commands."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import eoq
from tests.support import (
    PATIENCE,
    Daemon,
    Shell,
    daemon_that_retries_late,
    eventually,
    kill_group,
    runs,
)


@pytest.fixture(scope="module")
def shared_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with daemon_that_retries_late(tmp_path_factory.mktemp("retries")) as daemon:
        yield daemon


@pytest.fixture
def client(shared_daemon: Daemon) -> Iterator[eoq.Client]:
    """Return a client that sends messages and sees their outcomes."""
    with eoq.connect(shared_daemon.socket) as client:
        yield client


@pytest.fixture
def show(client: eoq.Client, queue: str) -> Callable[[str], dict[str, Any]]:
    """Return a function that returns what the daemon knows of a message."""

    def show(id: str) -> dict[str, Any]:
        message: dict[str, Any] = client.ask("show", queue=queue, id=id)["message"]
        return message

    return show


Show = Callable[[str], dict[str, Any]]


def test_the_body_is_the_input_and_the_output_is_the_result(shell: Shell, client: eoq.Client, queue: str) -> None:
    client.send(queue, b"\x00\xffbody", id="m")
    ran = shell.run(f"eoq work {queue} --until-empty -- cat")
    assert (ran.status, ran.text, ran.errors) == (0, "", "")
    assert client.result(queue, "m") == eoq.Result("done", b"\x00\xffbody")


def test_the_environment_describes_the_message(shell: Shell, client: eoq.Client, queue: str) -> None:
    client.send(queue, "x", id="with group", group="g")
    client.send(queue, "x", id="without")
    names = "$EOQ_ID|$EOQ_QUEUE|$EOQ_ATTEMPT|${EOQ_RECEIPT:+some}|$EOQ_SOCKET|${EOQ_GROUP-none}"
    assert shell.run(f"eoq work {queue} --until-empty -- sh -c 'printf %s \"{names}\"'", EOQ_GROUP="outer").status == 0
    results = [client.result(queue, id) for id in ("with group", "without")]
    assert [result.text for result in results if result] == [
        f"with group|{queue}|1|some|{shell.socket}|g",
        f"without|{queue}|1|some|{shell.socket}|none",
    ]


def test_a_command_can_use_its_receipt(shell: Shell, client: eoq.Client, queue: str) -> None:
    client.send(queue, "x", id="m")
    assert shell.run(f"eoq work {queue} --until-empty -- sh -c 'eoq extend $EOQ_RECEIPT 60 && echo ok'").status == 0
    assert client.result(queue, "m") == eoq.Result("done", b"ok\n")


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("exit 3", "exit status 3"),
        ("echo 'no such host' >&2; exit 1", "exit status 1: no such host"),
        ("kill -9 $$", "ended by signal 9 (Killed)"),
        ("exit 101", "exit status 101"),
    ],
)
@pytest.mark.first_by_default
def test_any_other_status_is_a_retry_with_the_error(
    shell: Shell, client: eoq.Client, queue: str, show: Show, command: str, error: str
) -> None:
    client.send(queue, "x", id="m")
    ran = shell.run(f'eoq work {queue} --until-empty --json -- sh -c "{command.replace("$$", chr(92) + "$" * 2)}"')
    assert (ran.status, ran.rows) == (0, [{"done": 0, "retried": 2, "rejected": 0, "lost": 0}])
    assert (show("m")["state"], show("m")["attempts"], show("m")["error"]) == ("delayed", 2, error)


def test_status_100_rejects_the_message(shell: Shell, client: eoq.Client, queue: str, show: Show) -> None:
    client.send(queue, "x", id="m")
    ran = shell.run(f"eoq work {queue} --until-empty --json -- sh -c 'echo no such user >&2; exit 100'")
    assert ran.rows == [{"done": 0, "retried": 0, "rejected": 1, "lost": 0}]
    assert (show("m")["state"], show("m")["error"]) == ("dead", "exit status 100: no such user")


def test_standard_error_is_passed_through(shell: Shell, client: eoq.Client, queue: str) -> None:
    client.send(queue, "x")
    ran = shell.run(f"eoq work {queue} --until-empty -- sh -c 'echo progress >&2; echo out'")
    assert (ran.text, ran.errors) == ("", "progress\n")


def test_the_end_of_a_long_standard_error_is_stored(shell: Shell, client: eoq.Client, queue: str, show: Show) -> None:
    client.send(queue, "x", id="m")
    ran = shell.run(f"eoq work {queue} --until-empty -- sh -c 'seq 200000 >&2; exit 100'")
    assert "199999\n200000\n" in ran.errors
    assert len(show("m")["error"]) < 1100
    assert show("m")["error"].endswith("199999\n200000")


# ── large input and output ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("command", ["cat", "tee /dev/stderr"])
@pytest.mark.first_by_default
def test_the_largest_body_is_passed_in_and_out(shell: Shell, client: eoq.Client, queue: str, command: str) -> None:
    body = os.urandom(2**20)
    client.send(queue, body, id="m")
    shell.run(f"eoq work {queue} --until-empty -- {command} 2> /dev/null")
    assert client.result(queue, "m") == eoq.Result("done", body)


def test_a_command_need_not_read_its_input(shell: Shell, client: eoq.Client, queue: str) -> None:
    client.send(queue, b"x" * 2**20, id="m")
    shell.run(f"eoq work {queue} --until-empty -- echo done")
    assert client.result(queue, "m") == eoq.Result("done", b"done\n")


@pytest.mark.parametrize("command", ["yes", "head -c 1048577 /dev/zero", "sh -c 'yes & yes'"])
@pytest.mark.first_by_default
def test_output_over_the_limit_makes_a_dead_letter(
    shell: Shell, client: eoq.Client, queue: str, show: Show, command: str
) -> None:
    client.send(queue, "x", id="m")
    assert shell.run(f"eoq work {queue} --until-empty -- {command}").status == 0
    assert show("m")["state"] == "dead"
    assert "1,048,576 bytes" in show("m")["error"]


def test_a_process_left_in_the_background_does_not_delay_the_result(
    shell: Shell, client: eoq.Client, queue: str
) -> None:
    client.send(queue, "x", id="m")
    start = time.monotonic()
    shell.run(f"eoq work {queue} --until-empty -- sh -c 'sleep 100 & echo $! > left; echo done'")
    assert time.monotonic() - start < 50
    os.kill(int((shell.folder / "left").read_text()), signal.SIGKILL)
    assert client.result(queue, "m") == eoq.Result("done", b"done\n")


# ── the result queue ────────────────────────────────────────────────────────────────────────────────────────


def test_the_output_is_sent_to_the_result_queue_under_the_same_id(shell: Shell, client: eoq.Client, queue: str) -> None:
    client.send(queue, "5", id="order-1")
    shell.run(f"eoq work {queue} --until-empty --result-queue {queue}.next -- sed 's/$/ paid/'")
    (message,) = client.receive(f"{queue}.next")
    assert (message.id, message.text) == ("order-1", "5 paid")
    assert client.result(queue, "order-1") == eoq.Result("done", b"5 paid")


def test_a_failed_command_sends_nothing_to_the_result_queue(shell: Shell, client: eoq.Client, queue: str) -> None:
    client.send(queue, "5", id="order-1")
    shell.run(f"eoq work {queue} --until-empty --result-queue {queue}.next -- sh -c 'echo 5; exit 1'")
    assert client.receive(f"{queue}.next") == []


def test_an_id_conflict_in_the_result_queue_makes_a_dead_letter(
    shell: Shell, client: eoq.Client, queue: str, show: Show
) -> None:
    client.send(queue, "5", id="order-1")
    client.send(f"{queue}.next", "other", id="order-1")
    ran = shell.run(f"eoq work {queue} --until-empty --json --result-queue {queue}.next -- cat")
    assert ran.rows[0]["rejected"] == 1
    assert "other content" in show("order-1")["error"]


@pytest.mark.parametrize("name", ["{q}", "'no name'"])
def test_a_bad_result_queue_is_2(shell: Shell, client: eoq.Client, queue: str, show: Show, name: str) -> None:
    client.send(queue, "5", id="m")
    assert shell.run(f"eoq work {queue} --until-empty --result-queue {name.format(q=queue)} -- cat").status == 2
    assert show("m")["deliveries"] == 0


# ── time ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_time_out_ends_the_command_and_its_child_processes(
    shell: Shell, client: eoq.Client, queue: str, show: Show
) -> None:
    client.send(queue, "x", id="m")
    script = "[ -e pids ] && exit 100; echo $$ >> pids; sleep 600 & echo $! >> pids; wait"
    shell.run(f"eoq work {queue} --until-empty --timeout 2 -- sh -c '{script}'")
    assert show("m")["history"][0]["error"].startswith("the command took longer than its time-out")
    pids = (shell.folder / "pids").read_text().split()
    assert len(pids) == 2
    eventually(lambda: not any(runs(int(pid)) for pid in pids))


@pytest.mark.slow
def test_the_lease_is_extended_while_the_command_runs(shell: Shell, client: eoq.Client, queue: str, show: Show) -> None:
    client.send(queue, "x", id="m")
    shell.run(f"eoq work {queue} --until-empty --lease 3 -- sleep 7")
    assert show("m")["state"] == "done"
    assert "history" not in show("m"), "no delivery has failed"


def test_concurrent_commands_run_at_the_same_time(shell: Shell, client: eoq.Client, queue: str) -> None:
    client.send_many(queue, ["a", "b", "c"])
    # Each command waits until the two others run.
    script = "mkdir at.$EOQ_ID; while [ $(ls -d at.* | wc -l) -lt 3 ]; do sleep 0.02; done"
    ran = shell.run(f"eoq work {queue} --until-empty --json --concurrency 3 --timeout 100 -- sh -c '{script}'")
    assert ran.rows == [{"done": 3, "retried": 0, "rejected": 0, "lost": 0}]


# ── wrong usage ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("command", ["no-such-command", "./no-such-file", "/etc/passwd", ""])
@pytest.mark.first_by_default
def test_a_missing_command_is_2_before_a_message_is_leased(
    shell: Shell, client: eoq.Client, queue: str, show: Show, command: str
) -> None:
    client.send(queue, "x", id="m")
    ran = shell.run(f"eoq work {queue} --until-empty -- {command}")
    assert ran.status == 2
    assert show("m")["deliveries"] == 0


def test_a_command_that_is_removed_ends_the_worker_and_uses_no_attempts(
    shell: Shell, client: eoq.Client, queue: str, show: Show
) -> None:
    client.send_many(queue, [eoq.Outgoing("x", id=id) for id in ("a", "b", "c")])
    (shell.folder / "once").write_text("#!/bin/sh\nrm once\n")
    (shell.folder / "once").chmod(0o700)
    ran = shell.run(f"eoq work {queue} -- ./once")
    assert ran.status == 75
    assert "cannot start './once'" in ran.errors
    assert [show(id)["state"] for id in ("a", "b", "c")] == ["done", "ready", "ready"]
    assert show("c")["attempts"] == 0


@pytest.mark.parametrize("options", ["--concurrency 0", "--lease 0", "--timeout 0", "--nonsense"])
@pytest.mark.first_by_default
def test_wrong_options_are_2(shell: Shell, queue: str, options: str) -> None:
    assert shell.run(f"eoq work {queue} {options} -- cat").status == 2


def test_without_a_daemon_it_is_69_at_once(folder: Path) -> None:
    ran = Shell(folder / "none", folder).run("eoq work q -- cat")
    assert ran.status == 69
    assert "eoq start" in ran.errors


# ── signals ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def working(shell: Shell, client: eoq.Client, queue: str, show: Show) -> Iterator[subprocess.Popen[bytes]]:
    """Start ``eoq work`` on three messages, and wait until its first command runs.

    The command ends when the file ``go`` exists.
    """
    client.send_many(queue, [eoq.Outgoing("x", id=id) for id in ("a", "b", "c")])
    for name in ("go", "pid"):
        (shell.folder / name).unlink(missing_ok=True)
    script = "echo $$ > pid.new; mv pid.new pid; while [ ! -e go ]; do sleep 0.02; done; echo finished"
    process = shell.start(f"exec eoq work {queue} --json -- sh -c '{script}'", stdout=-1, stderr=-1)
    with process:
        try:
            eventually((shell.folder / "pid").exists)
            yield process
        finally:
            kill_group(process)


def _pid(shell: Shell) -> int:
    """Return the process id of the command of `working`."""
    return int((shell.folder / "pid").read_text())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.first_by_default
def test_a_signal_lets_the_running_command_finish(
    shell: Shell, working: subprocess.Popen[bytes], client: eoq.Client, queue: str, show: Show, number: signal.Signals
) -> None:
    os.killpg(working.pid, number)  # the whole process group, as Ctrl-C at a terminal does
    with pytest.raises(subprocess.TimeoutExpired):
        working.wait(0.3)
    assert runs(_pid(shell))
    (shell.folder / "go").touch()
    out, errors = working.communicate(timeout=PATIENCE)
    assert (working.returncode, errors) == (0, b"")
    assert out == b'{"done": 1, "retried": 0, "rejected": 0, "lost": 0}\n'
    assert client.result(queue, "a") == eoq.Result("done", b"finished\n")
    assert [(show(id)["state"], show(id)["attempts"]) for id in ("b", "c")] == [("ready", 0)] * 2


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.first_by_default
def test_a_second_signal_kills_the_running_command(
    shell: Shell, working: subprocess.Popen[bytes], show: Show, number: signal.Signals, status: int
) -> None:
    pid = _pid(shell)
    working.send_signal(number)
    with pytest.raises(subprocess.TimeoutExpired):
        working.wait(0.3)
    working.send_signal(number)
    _, errors = working.communicate(timeout=PATIENCE)
    assert working.returncode == status
    assert b"Traceback" not in errors
    eventually(lambda: not runs(pid))
    eventually(lambda: show("a")["state"] == "ready")


def test_kill_9_also_kills_the_command(shell: Shell, client: eoq.Client, queue: str, show: Show) -> None:
    client.send(queue, "x", id="m")
    process = shell.start(f"exec eoq work {queue} -- sh -c 'echo $$ >&2; exec sleep 600'", stderr=subprocess.PIPE)
    with process:
        try:
            assert process.stderr is not None
            pid = int(process.stderr.readline())
            assert runs(pid)
            process.kill()
            eventually(lambda: not runs(pid))
        finally:
            kill_group(process)
    eventually(lambda: show("m")["state"] == "ready")


@pytest.mark.slow
def test_the_worker_waits_for_a_killed_daemon(daemon: Daemon) -> None:
    with eoq.connect(daemon.socket) as client:
        client.send_many("q", [eoq.Outgoing("x", id=f"m{n}") for n in range(20)])
        process = daemon.shell().start("exec eoq work q --concurrency 2 -- echo done")
        try:
            for id in ("m3", "m9"):
                eventually(partial(client.result, "q", id))
                daemon.restart()
            eventually(partial(client.result, "q", "m19"))
            process.terminate()
            assert process.wait(PATIENCE) == 0
        finally:
            kill_group(process)
            process.wait()


@pytest.mark.slow
def test_a_signal_ends_the_worker_while_the_daemon_is_away(daemon: Daemon) -> None:
    process = daemon.shell().start("exec eoq work q -- cat", stderr=subprocess.PIPE)
    with process:
        try:
            eventually(lambda: daemon.ask(op="status")["waiting"])
            daemon.kill()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.5)
            process.terminate()
            _, errors = process.communicate(timeout=PATIENCE)
        finally:
            kill_group(process)
    assert (process.returncode, errors) == (0, b"")


@pytest.mark.slow
def test_the_worker_waits_longer_than_a_client_for_a_lost_daemon(daemon: Daemon) -> None:
    process = daemon.shell().start("exec eoq work q -- cat", stderr=subprocess.PIPE)
    with process:
        try:
            eventually(lambda: daemon.ask(op="status")["waiting"])
            daemon.kill()
            assert process.stderr is not None
            readable, _, _ = select.select([process.stderr], [], [], 30 + PATIENCE)
            assert readable
            assert b"waiting for it" in process.stderr.readline()
            daemon.start()
            with eoq.connect(daemon.socket) as client:
                client.send("q", "x", id="m")
                assert client.result("q", "m", wait=PATIENCE) == eoq.Result("done", b"x")
        finally:
            kill_group(process)


def test_a_terminal_gets_the_counts(shell: Shell, client: eoq.Client, queue: str) -> None:
    client.send(queue, "x")
    ran = shell.run(f"python -c 'import pty, sys; pty.spawn(sys.argv[1:])' eoq work {queue} --until-empty -- cat")
    assert "1 done, 0 retried, 0 rejected, 0 lost" in ran.text


@pytest.mark.parametrize("errors", ["2> /dev/full", "2>&1 | true"])
@pytest.mark.first_by_default
def test_a_log_that_cannot_be_written_does_not_end_the_worker(
    shell: Shell, client: eoq.Client, show: Show, queue: str, errors: str
) -> None:
    client.send(queue, "bad", id="bad")
    client.send(queue, "good", id="good")
    shell.run(f"eoq work {queue} --until-empty -- grep -q good {errors}")
    assert show("good")["state"] == "done"
    assert show("bad")["error"].startswith("exit status 1")


def test_kill_9_without_standard_input_also_kills_the_command(
    shell: Shell, client: eoq.Client, queue: str, tmp_path: Path
) -> None:
    client.send(queue, "x")
    process = shell.start(f"exec eoq work {queue} -- sh -c 'cat; echo $$ > {tmp_path}/pid; sleep 1000' <&-")
    pid = int(eventually(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text()))
    process.kill()
    process.wait()
    eventually(lambda: not runs(pid))
