"""The page about several machines: its commands run, and its insert is a send."""

from __future__ import annotations

import psycopg

import eoq
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
