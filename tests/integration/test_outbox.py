"""The outbox and the relay: what commits is sent, once and in order; what does not is not."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import aiosqlite
import pytest

import eoq
from tests.support import Daemon, eventually


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "app.db"


@contextmanager
def relaying(daemon: Daemon, *files: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A real `eoq relay` that watches the files."""
    process = daemon.shell().start("exec eoq relay " + " ".join(map(str, files)), stderr=subprocess.PIPE)
    assert process.stderr is not None
    process.stderr.readline()
    try:
        yield process
    finally:
        process.terminate()
        assert process.wait() == 0
        process.stderr.close()


def _bodies(client: eoq.Client, queue: str, count: int) -> list[str]:
    """The next ``count`` messages, acked; and that there is no other."""
    found: list[str] = []
    while len(found) < count:
        messages = client.receive(queue, count - len(found), 20)
        assert messages, f"only {found} came"
        for message in messages:
            found.append(message.text)
            message.ack()
    return found


def _left(file: Path) -> int:
    with closing(sqlite3.connect(file)) as database:
        return int(database.execute("select count(*) from eoq_outbox where error is null").fetchone()[0])


@pytest.mark.parametrize("mode", ["wal", "delete", "truncate", "persist"])
def test_a_commit_wakes_the_relay_and_a_rollback_sends_nothing(daemon: Daemon, file: Path, mode: str) -> None:
    with closing(sqlite3.connect(file)) as database:
        database.execute(f"pragma journal_mode = {mode}")
        database.execute("create table orders (id integer primary key)")
        box = eoq.Outbox(database)
        database.commit()
        with relaying(daemon, file), eoq.connect(daemon.socket) as client:
            for number in range(5):
                with database:
                    database.execute("insert into orders values (?)", (number,))
                    box.send("q", f"kept {number}")
                with pytest.raises(ZeroDivisionError), database:
                    box.send("q", "undone")
                    _ = 1 / 0
                # One after the other: each commit has to wake it anew.
                assert _bodies(client, "q", 1) == [f"kept {number}"]
        eventually(lambda: _left(file) == 0)


def test_every_option_travels(daemon: Daemon, file: Path) -> None:
    with closing(sqlite3.connect(file)) as database:
        box = eoq.Outbox(database)
        with database:
            assert box.send("q", {"a": 1}, id="x", headers={"k": "v"}, priority=5, group="g") == "x"
            box.send("q", b"\x00\xff", delay=3600)
        assert daemon.shell().run(f"eoq relay {file} --until-empty").status == 0
    with eoq.connect(daemon.socket) as client:
        (message,) = client.receive("q", 10)
        assert (message.id, message.json(), message.priority, message.group) == ("x", {"a": 1}, 5, "g")
        assert message.headers == {"k": "v", "content-type": "application/json"}
        (delayed,) = client.ask("peek", queue="q", state="delayed")["messages"]
        assert delayed["body_base64"] == "AP8="
        assert delayed["due_at"] - delayed["enqueued_at"] == pytest.approx(3600, abs=60)


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        (("no good", b""), {}, eoq.InvalidRequest),
        (("q", b"x" * (1024 * 1024 + 1)), {}, eoq.MessageTooLarge),
        (("q", object()), {}, eoq.InvalidRequest),
        (("q", b""), {"id": ""}, eoq.InvalidRequest),
        (("q", b""), {"delay": -1}, eoq.InvalidRequest),
        (("q", b""), {"delay": 1, "at": 1}, eoq.InvalidRequest),
        (("q", b""), {"headers": {"k": "v" * 70_000}}, eoq.MessageTooLarge),
    ],
)
def test_what_the_daemon_would_refuse_is_refused_to_the_application(
    file: Path, arguments: Any, options: Any, error: type[Exception]
) -> None:
    with closing(sqlite3.connect(file)) as database:
        box = eoq.Outbox(database)
        with pytest.raises(error):
            box.send(*arguments, **options)
        assert database.execute("select count(*) from eoq_outbox").fetchone() == (0,)


def test_a_new_outbox_leaves_an_open_transaction_open(file: Path) -> None:
    with closing(sqlite3.connect(file)) as database:
        database.row_factory = lambda cursor, row: {c[0]: v for c, v in zip(cursor.description, row, strict=True)}
        database.execute("create table t (x)")
        database.execute("insert into t values (1)")
        eoq.Outbox(database).send("q", "x")
        assert database.in_transaction
        database.rollback()
        assert database.execute("select * from t").fetchall() == []
        assert database.execute("select name from sqlite_schema where name like 'eoq%'").fetchall() == []


def test_rows_of_a_trigger_and_of_strangers(daemon: Daemon, file: Path) -> None:
    with closing(sqlite3.connect(file)) as database:
        eoq.Outbox(database)
        database.executescript(
            """
            create table orders (name text);
            create trigger sends after insert on orders
            begin
              insert into eoq_outbox (queue, body) values ('q', new.name);
            end;
            insert into orders values ('first');
            insert into eoq_outbox (queue, body) values ('no queue', 'x');
            insert into eoq_outbox (queue, body, headers) values ('q', 'x', '{no json');
            insert into eoq_outbox (queue, body, headers) values ('q', 'x', '[1]');
            insert into eoq_outbox (queue, body, headers) values ('q', 'x', '{"k": 1}');
            insert into eoq_outbox (queue, body) values ('q', zeroblob(2000000));
            insert into eoq_outbox (id, queue, body) values ('', 'q', 'x');
            insert into eoq_outbox (id, queue, body) values (cast(x'ff' as text), 'q', 'x');
            insert into eoq_outbox (queue, body) values ('q', cast(x'ff' as text));
            insert into eoq_outbox (queue, body, priority) values ('q', 'x', 'high');
            insert into eoq_outbox (queue, body, at) values ('q', 'x', 'tomorrow');
            insert into eoq_outbox (queue, body, "group") values ('q', 'stuck', x'00');
            insert into orders values ('last');
            """
        )
    ran = daemon.shell().run(f"eoq relay {file} --until-empty --json")
    assert ran.status == 65
    assert ran.rows == [{"file": str(file), "sent": 3, "set_aside": 10}]
    assert "Traceback" not in ran.errors
    with eoq.connect(daemon.socket) as client:
        first, no_utf8, last = client.receive("q", 10)
        assert (first.body, no_utf8.body, last.body) == (b"first", b"\xff", b"last")
    with closing(sqlite3.connect(file)) as database:
        errors = database.execute("select error from eoq_outbox order by seq").fetchall()
    assert all(error for (error,) in errors)


def test_a_row_set_aside_holds_up_its_group_alone(daemon: Daemon, file: Path) -> None:
    with eoq.connect(daemon.socket) as client, closing(sqlite3.connect(file)) as database:
        client.send("q", "other content", id="taken")
        box = eoq.Outbox(database)
        with database:
            box.send("q", "1", group="g")
            box.send("q", "conflict", id="taken", group="g")
            box.send("q", "2", group="g")
            box.send("q", "free", group="h")
            box.send("q", "free too")
        assert daemon.shell().run(f"eoq relay {file} --until-empty").status == 65
        assert sorted(_bodies(client, "q", 4)) == ["1", "free", "free too", "other content"]
        assert _left(file) == 1
        # A person decides: the row goes, and its group goes on.
        with database:
            database.execute("delete from eoq_outbox where error is not null")
        assert daemon.shell().run(f"eoq relay {file} --until-empty").status == 0
        assert _bodies(client, "q", 1) == ["2"]


def test_two_relays_and_a_daemon_that_is_killed(daemon: Daemon, file: Path) -> None:
    with closing(sqlite3.connect(file, timeout=30)) as database, eoq.connect(daemon.socket) as client:
        box = eoq.Outbox(database)
        database.commit()
        with relaying(daemon, file), relaying(daemon, file):
            for number in range(200):
                with database:
                    box.send("q", str(number))
                if number % 60 == 30:
                    daemon.kill()
                    daemon.restart()
            eventually(lambda: _left(file) == 0, 60)
        messages = client.receive("q", 1000)
        assert [message.text for message in messages] == [str(number) for number in range(200)]


def test_a_file_that_is_replaced_is_opened_anew(daemon: Daemon, file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "app.db"
    other.parent.mkdir()
    for path, text in ((file, "before"), (other, "after")):
        with closing(sqlite3.connect(path)) as database, database:
            eoq.Outbox(database).send("q", text)
    with relaying(daemon, file), eoq.connect(daemon.socket) as client:
        assert _bodies(client, "q", 1) == ["before"]
        eventually(lambda: _left(file) == 0)
        shutil.move(other, file)
        assert _bodies(client, "q", 1) == ["after"]


def test_the_asyncio_outbox(daemon: Daemon, file: Path) -> None:
    async def send() -> None:
        async with aiosqlite.connect(file) as database:
            box = await eoq.AsyncOutbox.open(database)
            await box.send("q", "undone")
            await database.rollback()
            await box.send("q", "kept", id="k")
            await database.commit()

    asyncio.run(send())
    assert daemon.shell().run(f"eoq relay {file} --until-empty").status == 0
    with eoq.connect(daemon.socket) as client:
        (message,) = client.receive("q", 10)
        assert (message.id, message.text) == ("k", "kept")


def test_the_command_says_what_is_wrong(daemon: Daemon, tmp_path: Path) -> None:
    ran = daemon.shell().run(f"eoq relay {tmp_path}/none.db")
    assert ran.status == 2
    assert "none.db" in ran.errors
    (tmp_path / "app.db").touch()
    ran = daemon.shell().run(f"eoq relay {tmp_path}/app.db --socket {tmp_path}/s")
    assert ran.status == 69
