"""``eoq relay`` in a real shell: arguments, output, signals and exit statuses."""

from __future__ import annotations

import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

import eoq
from tests.integration.relays import bodies, relaying, waiting
from tests.support import PATIENCE, Daemon, Shell, eventually


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """An application's file with an empty outbox."""
    return _new_file(tmp_path / "app.db")


def _new_file(path: Path) -> Path:
    with closing(sqlite3.connect(path)) as database:
        eoq.Outbox(database)
    return path


def _send(file: Path, queue: str, *texts: str, **options: str) -> None:
    with closing(sqlite3.connect(file)) as database, database:
        for text in texts:
            eoq.Outbox(database).send(queue, text, **options)  # type: ignore[arg-type] # only texts are used


@pytest.mark.slow
def test_until_empty_sends_all_rows_and_ends(shell: Shell, shared_daemon: Daemon, queue: str, file: Path) -> None:
    _send(file, queue, "a", "b")
    ran = shell.run(f"eoq relay {file} --until-empty --json")
    assert (ran.status, ran.errors) == (0, "")
    assert ran.rows == [{"file": str(file), "sent": 2, "set_aside": 0}]
    ran = shell.run(f"eoq relay {file} --until-empty")
    assert (ran.status, ran.text, ran.errors) == (0, "", "")
    with eoq.connect(shared_daemon.socket) as client:
        assert bodies(client, queue, 2) == ["a", "b"]


@pytest.mark.slow
def test_rows_set_aside_exit_65_until_the_operator_removes_them(
    shell: Shell, shared_daemon: Daemon, queue: str, file: Path
) -> None:
    shell.run(f"eoq send {queue} other --id taken")
    _send(file, queue, "conflict", id="taken", group="g")
    for _ in range(2):
        ran = shell.run(f"eoq relay {file} --until-empty")
        assert ran.status == 65
        assert "rows set aside: 1" in ran.errors
        assert f"`eoq relay --list {file}`" in ran.errors
    ran = shell.run(f"eoq relay {file} --list")
    assert ran.status == 0
    assert ran.text.startswith(f"1  {queue}  taken  ")
    (row,) = shell.run(f"eoq relay {file} --list --json").rows
    assert (row["file"], row["seq"], row["queue"], row["id"], row["group"]) == (str(file), 1, queue, "taken", "g")
    assert "other content" in row["error"]
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("delete from eoq_outbox where seq = 1")
    assert shell.run(f"eoq relay {file} --until-empty").status == 0
    assert shell.run(f"eoq relay {file} --list").text == ""


def test_the_list_needs_no_daemon_and_escapes_control_characters(folder: Path, file: Path) -> None:
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("insert into eoq_outbox (queue, body, error) values ('q' || char(27), '', 'no' || char(10))")
    ran = Shell(folder / "none", folder).run(f"eoq relay {file} --list")
    assert ran.status == 0
    assert "\x1b" not in ran.text
    assert len(ran.lines) == 1


def test_one_relay_sends_several_files(shared_daemon: Daemon, queue: str, tmp_path: Path) -> None:
    files = [_new_file(tmp_path / f"{name}.db") for name in "abc"]
    with relaying(shared_daemon, *files), eoq.connect(shared_daemon.socket) as client:
        for file in files:
            _send(file, queue, file.name)
            assert bodies(client, queue, 1) == [file.name]


@pytest.mark.slow
def test_without_a_daemon_the_command_exits_69_at_once(folder: Path, file: Path) -> None:
    for option in ("", "--until-empty"):
        ran = Shell(folder / "none", folder).run(f"eoq relay {file} {option}")
        assert ran.status == 69
        assert "eoq start" in ran.errors


def test_the_relay_waits_for_a_daemon_that_goes_away(daemon: Daemon, file: Path) -> None:
    with relaying(daemon, file):
        daemon.kill()
        _send(file, "q", "meanwhile")
        daemon.start()
        with eoq.connect(daemon.socket) as client:
            assert bodies(client, "q", 1) == ["meanwhile"]
        eventually(lambda: waiting(file) == 0)


@pytest.mark.slow
def test_an_error_of_the_file_is_printed(shell: Shell, folder: Path) -> None:
    ran = shell.run(f"eoq relay {folder}/none.db")
    assert ran.status == 2
    assert "none.db" in ran.errors
    (folder / "text.db").write_text("this is no database, but a text that is longer than its header is " * 10)
    ran = shell.run(f"eoq relay {folder}/text.db")
    assert ran.status == 65
    assert "not a SQLite database" in ran.errors
    with closing(sqlite3.connect(folder / "plain.db")) as database:
        database.execute("create table t (x)")
    ran = shell.run(f"eoq relay {folder}/plain.db --until-empty")
    assert ran.status == 0, "nothing was sent yet, so nothing is there"
    assert "no table eoq_outbox" in ran.errors
    assert shell.run("eoq relay").status == 2


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
@pytest.mark.first_by_default
def test_signals_end_the_relay(shared_daemon: Daemon, file: Path, number: signal.Signals, status: int) -> None:
    with relaying(shared_daemon, file) as relay:
        relay.process.send_signal(number)
        assert relay.process.wait(PATIENCE) == status
