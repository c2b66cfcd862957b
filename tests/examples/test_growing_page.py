"""The page about several machines: its commands run, and its insert is a send."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

import eoq
from eoq.bridge.postgres.ingest import ClaimedRows
from eoq.bridge.postgres.result_statements import MAKE as MAKE_RESULTS
from eoq.bridge.postgres.statements import MAKE
from eoq.daemon.config.loader import load
from tests.examples.pages import Page
from tests.nats_server import NatsServer
from tests.support import PATIENCE, Daemon, Shell

PAGE = Page("eoq/docs/growing.md")


def _for(database: str, text: str) -> str:
    return text.replace("postgresql:///shop", f"'{database}'")


@pytest.mark.slow
def test_the_commands_and_the_insert_work(shell: Shell, shared_daemon: Daemon, database: str) -> None:
    with eoq.connect(shared_daemon.socket) as client:
        client.send("elsewhere", "x")  # so that the daemon knows a queue
        (move,) = PAGE.blocks("Move a queue", "sh")
        (results,) = PAGE.blocks("Results that come back", "sh")
        (release,) = PAGE.blocks("When a machine is lost", "sh")
        insert, _table = PAGE.blocks("A send without eoq", "sql")
        ran = shell.run(_for(database, move))
        assert ran.status == 0, ran.errors
        with psycopg.connect(database) as connection:
            connection.execute(insert)
        ran = shell.run(_for(database, move))
        assert "taken 1" in ran.text
        (message,) = client.receive("payments", wait=PATIENCE)
        assert (message.id, message.json()) == ("order-18", {"amount": 7})
        message.ack("paid")
        ran = shell.run(_for(database, results))
        assert ran.status == 0, ran.errors
        assert shell.run(_for(database, release)).text == "0\n"


def test_the_file_is_right(folder: Path) -> None:
    for section in ("By the daemon", "Over NATS JetStream"):
        (text,) = PAGE.blocks(section, "toml")
        (folder / "eoq.toml").write_text(text)
        config = load(folder / "eoq.toml")
        assert (config.forward[0].queue, config.ingest[0].name) == ("payments", "till-3")
    assert (config.forward[0].partitions, config.ingest[0].partition) == (8, "0-3")


@pytest.mark.slow
def test_the_commands_with_a_stream_work(shell: Shell, shared_daemon: Daemon, nats_server: NatsServer) -> None:
    with eoq.connect(shared_daemon.socket) as client:
        client.send("payments", "x")
    (commands,) = PAGE.blocks("Over NATS JetStream", "sh")
    ran = shell.run(commands.replace("nats://db:4222/PAY", nats_server.url()))
    assert ran.status == 0, ran.errors
    assert "payments  partition 3  till-3  claimed 0, set aside 0" in ran.text


def test_a_program_forwards(shell: Shell, shared_daemon: Daemon, database: str) -> None:
    (commands,) = PAGE.blocks("By the daemon", "sh")
    assert shell.run(commands).text == "", "this daemon has none"
    with eoq.connect(shared_daemon.socket) as client:
        client.send("payments", "x")
    (program,) = PAGE.blocks("From a program", "python")
    (shell.folder / "program.py").write_text(program.replace("postgresql:///shop", database))
    ran = shell.run("python program.py")
    assert ran.text == "1 0 OpenRows(unclaimed=1, claimed=0)\n", ran.errors


@pytest.mark.parametrize(
    ("name", "section", "make"),
    [("eoq_forward", "A send without eoq", MAKE), ("eoq_forward_result", "Results that come back", MAKE_RESULTS)],
)
def test_the_tables_are_those_that_are_made(database: str, name: str, section: str, make: str) -> None:
    table = PAGE.blocks(section, "sql")[-1]
    columns = """
        select column_name, data_type, is_nullable, column_default, is_identity, collation_name
        from information_schema.columns
        where table_name = %s and table_schema = current_schema()
        order by ordinal_position
        """
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(table)
        shown = connection.execute(columns, (name,)).fetchall()
        connection.execute(f"drop table {name}")
        connection.execute(make)
        assert connection.execute(columns, (name,)).fetchall() == shown


def test_a_user_needs_the_rights_that_the_page_names(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(MAKE)
        (schema,) = connection.execute("select current_schema()").fetchall()[0]
        roles = {"eoq_inserter": "insert", "eoq_machine": "select, insert, update, delete"}
        try:
            for role, rights in roles.items():
                connection.execute(f"create role {role}")
                connection.execute(f"grant usage on schema {schema} to {role}")
                connection.execute(f"grant {rights} on eoq_forward to {role}")
            connection.execute(f"grant {roles['eoq_machine']} on eoq_forward_owner to eoq_machine")
            connection.execute("set role eoq_inserter")
            connection.execute("insert into eoq_forward (queue, id, body) values ('q', 'm', '')")
            machine = ClaimedRows(f"{database}%20-c%20role%3Deoq_machine", "q", "b", "b", 1e6, lambda: None)
            machine.room = 1
            rows = machine.read(1, 1, resend_within=1.0)
            machine.mark(rows)
            machine.remove(rows)
            assert machine.read(1, 1, resend_within=1.0, behind_writers=True) == []
            machine.close()
        finally:
            connection.execute("reset role")
            for role in roles:
                connection.execute(f"drop owned by {role}")
                connection.execute(f"drop role {role}")
        assert connection.execute("select owner, taken_at is not null from eoq_forward").fetchall() == [("b", True)]
