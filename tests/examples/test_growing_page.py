"""The page about several machines: its commands run, and its insert is a send."""

from __future__ import annotations

from pathlib import Path

import psycopg

import eoq
from eoq.daemon.config.loader import load
from tests.examples.pages import Page
from tests.support import PATIENCE, Daemon, Shell

PAGE = Page("eoq/docs/growing.md")


def _for(database: str, text: str) -> str:
    return text.replace("postgresql:///shop", f"'{database}'")


def test_the_commands_and_the_insert_work(shell: Shell, shared_daemon: Daemon, database: str) -> None:
    with eoq.connect(shared_daemon.socket) as client:
        client.send("elsewhere", "x")  # so that the daemon knows a queue
        (move,) = PAGE.blocks("Move a queue", "sh")
        (release,) = PAGE.blocks("When a machine is lost", "sh")
        (insert,) = PAGE.blocks("A send without eoq", "sql")
        ran = shell.run(_for(database, move))
        assert ran.status == 0, ran.errors
        with psycopg.connect(database) as connection:
            connection.execute(insert)
        ran = shell.run(_for(database, move))
        assert "taken 1" in ran.text
        (message,) = client.receive("payments", wait=PATIENCE)
        assert (message.id, message.json()) == ("order-18", {"amount": 7})
        assert shell.run(_for(database, release)).text == "0\n"


def test_the_file_is_right(folder: Path) -> None:
    (text,) = PAGE.blocks("By the daemon", "toml")
    (folder / "eoq.toml").write_text(text)
    config = load(folder / "eoq.toml")
    assert (config.forward[0].queue, config.ingest[0].name) == ("payments", "till-3")


def test_a_program_forwards(shell: Shell, shared_daemon: Daemon, database: str) -> None:
    (commands,) = PAGE.blocks("By the daemon", "sh")
    assert shell.run(commands).text == "", "this daemon has none"
    with eoq.connect(shared_daemon.socket) as client:
        client.send("payments", "x")
    (program,) = PAGE.blocks("From a program", "python")
    (shell.folder / "program.py").write_text(program.replace("postgresql:///shop", database))
    ran = shell.run("python program.py")
    assert ran.text == "1 0 OpenRows(unclaimed=1, claimed=0)\n", ran.errors
