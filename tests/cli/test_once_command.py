"""Test ``eoq once`` in a real shell."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support import Daemon, Shell, eventually, runs


def test_the_second_call_repeats_output_and_status(shell: Shell, queue: str, tmp_path: Path) -> None:
    script = f"eoq once {queue} -- sh -c 'echo run >> {tmp_path}/runs; printf \"a\\0b\"; echo err >&2'"
    first, second = shell.run(script), shell.run(script)
    assert (first.status, first.stdout, first.errors) == (0, b"a\0b", "err\n")
    assert (second.status, second.stdout, second.errors) == (0, b"a\0b", "")
    assert (tmp_path / "runs").read_text() == "run\n"


@pytest.mark.slow
def test_a_failure_leaves_the_key_open_without_keep_failure(shell: Shell, queue: str) -> None:
    assert shell.run(f"eoq once {queue} -- sh -c 'echo out; exit 3'").status == 3
    kept = shell.run(f"eoq once {queue} --keep-failure -- sh -c 'echo kept; exit 4'")
    again = shell.run(f"eoq once {queue} -- echo no")
    assert (kept.status, kept.text) == (again.status, again.text) == (4, "kept\n")


def test_the_key_is_in_the_environment(shell: Shell, queue: str) -> None:
    assert shell.run(f"eoq once {queue} -- sh -c 'echo $EOQ_ID'").text == f"{queue}\n"


def test_a_second_call_waits_for_the_first(shell: Shell, queue: str, tmp_path: Path) -> None:
    ran = shell.run(
        f"""
        mkfifo {tmp_path}/go
        eoq once {queue} -- sh -c 'echo run >> {tmp_path}/runs; cat {tmp_path}/go' > {tmp_path}/1 &
        while ! test -e {tmp_path}/runs; do :; done
        eoq once {queue} -- echo no > {tmp_path}/2 &
        echo went > {tmp_path}/go
        wait
        cat {tmp_path}/1 {tmp_path}/2
        """
    )
    assert ran.text == "went\nwent\n"


@pytest.mark.slow
def test_another_fingerprint_is_refused(shell: Shell, queue: str) -> None:
    assert shell.run(f"eoq once {queue} --fingerprint @command -- echo 1").status == 0
    assert shell.run(f"eoq once {queue} --fingerprint @command -- echo 1").status == 0
    refused = shell.run(f"eoq once {queue} --fingerprint @command -- echo 2")
    assert (refused.status, refused.text) == (65, "")
    assert "was used for something else" in refused.errors


def test_a_missing_command_is_127_and_leaves_the_key_open(shell: Shell, queue: str) -> None:
    ran = shell.run(f"eoq once {queue} --keep-failure -- no-such-command")
    assert (ran.status, "no such command" in ran.errors) == (127, True)
    assert shell.run(f"eoq once {queue} -- echo open").text == "open\n"


def test_kill_9_opens_the_key_and_kills_the_command(daemon: Daemon) -> None:
    shell = daemon.shell()
    with shell.start("exec eoq once k -- sh -c 'echo $$; exec sleep 1000'", stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        pid = int(running.stdout.readline())  # printed only after the guard knows the command
        running.kill()
    assert shell.run("eoq once k -- echo taken").text == "taken\n"
    eventually(lambda: not runs(pid), what="the end of the command")


def test_sigterm_ends_the_command(daemon: Daemon) -> None:
    shell = daemon.shell()
    with shell.start("exec eoq once k -- sh -c 'echo $$; exec sleep 1000'", stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        pid = int(running.stdout.readline())
        running.terminate()
        assert running.wait() == 128 + 15
    assert not runs(pid)
    assert shell.run("eoq once k -- echo open").text == "open\n"


@pytest.mark.parametrize("options", ["--ttl 0", "--ttl -1", "--wait x", ""])
@pytest.mark.first_by_default
def test_wrong_usage_is_refused(shell: Shell, options: str) -> None:
    ran = shell.run(f"eoq once k {options} --" + (" echo" if options else ""))
    assert ran.status in (2, 65)
    assert "Traceback" not in ran.errors


def test_without_a_daemon_the_command_does_not_run(shell: Shell, tmp_path: Path) -> None:
    ran = shell.run(f"eoq once k --socket {tmp_path}/s -- touch {tmp_path}/ran")
    assert ran.status == 69
    assert not (tmp_path / "ran").exists()


def test_output_that_cannot_be_written_is_stored(shell: Shell, queue: str, tmp_path: Path) -> None:
    script = f"eoq once {queue} -- sh -c 'echo run >> {tmp_path}/runs; echo out; echo more'"
    first, second = shell.run(f"{script} > /dev/full"), shell.run(script)
    assert first.status == 0
    assert "cannot be written" in first.errors
    assert (second.status, second.text) == (0, "out\nmore\n")
    assert (tmp_path / "runs").read_text() == "run\n"


def test_a_closed_standard_input_is_allowed(shell: Shell, queue: str) -> None:
    ran = shell.run(f"eoq once {queue} -- echo ran <&-")
    assert (ran.status, ran.text, ran.errors) == (0, "ran\n", "")


def test_the_command_gets_an_absolute_socket_path(shell: Shell, queue: str) -> None:
    ran = shell.run(
        f"""
        cd "$(dirname "$EOQ_SOCKET")"
        eoq once {queue} --socket "$(basename "$EOQ_SOCKET")" -- sh -c 'cd / && eoq send {queue} x --id there'
        """
    )
    assert (ran.status, ran.text) == (0, "there\n")
