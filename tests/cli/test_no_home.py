"""Users without a home or a runtime folder, as in containers and under cron: a sentence says what to give."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import PATIENCE, Shell, python_process, short_folder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have other folders")

UNKNOWN_USER = """
import os, pwd, sys
def unknown(user): raise KeyError(user)
pwd.getpwuid = unknown
os.environ.pop("HOME", None)
from eoq.cli import main
main(sys.argv[1:])
"""
"""Runs a command as a user who has neither HOME nor an entry in the list of users."""


@pytest.fixture
def shell() -> Iterator[Shell]:
    """A shell in an empty folder, without a daemon."""
    with short_folder() as folder:
        yield Shell(folder / "s", folder)


@pytest.mark.parametrize("command", ["daemon", "start"])
@pytest.mark.first_by_default
def test_without_a_home_a_command_names_the_option(shell: Shell, command: str) -> None:
    ran = shell.run(f"env -u EOQ_DB -u XDG_DATA_HOME -u XDG_CONFIG_HOME HOME= eoq {command}")
    assert (ran.status, ran.text) == (77, "")
    assert "name it with --db or EOQ_DB" in ran.errors
    assert not [path for path in shell.folder.iterdir() if path.name != "s"]


def test_a_user_that_the_system_does_not_know_gets_the_same_sentence(shell: Shell) -> None:
    with python_process(UNKNOWN_USER, "start", "--socket", str(shell.socket)) as process:
        assert process.wait(PATIENCE) == 77


@pytest.mark.parametrize("command", ["status", "install", "uninstall"])
@pytest.mark.slow
def test_a_user_without_a_home_has_no_service_of_its_own(shell: Shell, command: str) -> None:
    ran = shell.run(f"unset XDG_CONFIG_HOME; HOME= eoq service {command}")
    assert (ran.status, ran.text, "no home folder (HOME)" in ran.errors) == (77, "", True), ran.errors
    ran = shell.run(f"unset XDG_CONFIG_HOME; {sys.executable} -c '{UNKNOWN_USER}' service {command}")
    assert (ran.status, ran.text, "no home folder (HOME)" in ran.errors) == (77, "", True), ran.errors


@pytest.mark.slow
def test_a_daemon_whose_paths_are_given_needs_no_home(shell: Shell) -> None:
    ran = shell.run("export HOME=; unset XDG_CONFIG_HOME; eoq start && eoq send q x && eoq receive q && eoq stop")
    assert (ran.status, ran.lines[-1]) == (0, "x"), ran.errors


def test_without_a_home_there_is_no_configuration_to_check(shell: Shell) -> None:
    ran = shell.run("env -u XDG_CONFIG_HOME HOME= eoq config check")
    assert (ran.status, "no home folder (HOME)" in ran.errors) == (1, True), ran.errors


def test_the_runtime_folder_is_used_as_it_is_named(shell: Shell) -> None:
    ran = shell.run(f"env -u EOQ_SOCKET XDG_RUNTIME_DIR={shell.folder}/gone eoq status")
    assert (ran.status, f"{shell.folder}/gone/eoq/eoq.sock" in ran.errors) == (69, True)


@pytest.mark.skipif(os.access(f"/run/user/{os.getuid()}", os.W_OK), reason="this user has a runtime folder")
def test_without_a_runtime_folder_the_socket_is_in_a_private_one(shell: Shell) -> None:
    ran = shell.run("env -u EOQ_SOCKET -u XDG_RUNTIME_DIR TMPDIR=/nonexistent eoq status")
    folder = f"/tmp/runtime-{os.getuid()}"  # noqa: S108 # the folder that eoq would use
    assert (ran.status, f"{folder}/eoq/eoq.sock" in ran.errors) == (69, True), ran.errors


def test_a_runtime_folder_that_others_can_write_is_refused() -> None:
    code = """
import os, sys
os.getuid = lambda: int(sys.argv[1])
os.environ.pop("XDG_RUNTIME_DIR", None)
os.environ.pop("EOQ_SOCKET", None)
from eoq.cli import main
main(["status"])
"""
    user = 3_000_000_000 + os.getpid()  # a user who does not exist
    folder = Path(f"/tmp/runtime-{user}")  # noqa: S108 # the folder that eoq would use
    folder.mkdir(0o777)
    try:
        with python_process(code, str(user)) as process:
            assert process.wait(PATIENCE) == 77
    finally:
        folder.rmdir()
