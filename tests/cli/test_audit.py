"""``eoq audit``: the daemon's file and the files of applications are compared, message by message."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

import eoq
from tests.support import Daemon, Ran


def _process(daemon: Daemon, path: Path, queue: str, count: int = 1) -> None:
    with eoq.connect(daemon.socket) as client, eoq.Inbox(path) as inbox:
        for message in client.receive(queue, count):
            inbox.process(message, lambda _tx, _message: None)


def _audit(daemon: Daemon, *files: Path) -> tuple[Ran, set[tuple[str, str, str]]]:
    ran = daemon.shell().run(f"eoq audit --json {' '.join(map(str, files))}")
    rows = map(json.loads, ran.lines)
    return ran, {(row["kind"], row["queue"], row["id"]) for row in rows}


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """Return the path of an application's file."""
    return tmp_path / "app.db"


@pytest.mark.slow
def test_where_all_agree_there_is_nothing(daemon: Daemon, app: Path) -> None:
    with eoq.connect(daemon.socket) as client:
        client.send_many("q", [eoq.Outgoing(b"x", id=f"{number}") for number in range(1200)])
        for _ in range(12):
            _process(daemon, app, "q", 100)
        client.send("unrelated", "x")
        client.receive("unrelated")[0].ack()
    ran, found = _audit(daemon, app)
    assert (ran.status, found) == (0, set())
    assert "1,200 acked messages were compared, 0 findings" in ran.errors


def test_what_was_acked_without_the_inbox_is_found(daemon: Daemon, app: Path) -> None:
    with eoq.connect(daemon.socket) as client:
        client.send_many("q", [eoq.Outgoing(b"x", id=id) for id in ("a", "b", "c")])
        _process(daemon, app, "q")
        client.receive("q")[0].ack()
        client.receive("q")[0].reject()
    ran, found = _audit(daemon, app)
    assert (ran.status, found) == (65, {("acked_not_processed", "q", "b")})


@pytest.mark.slow
def test_each_of_several_files_has_a_part_of_the_ids(daemon: Daemon, tmp_path: Path) -> None:
    one, other = tmp_path / "one.db", tmp_path / "other.db"
    with eoq.connect(daemon.socket) as client:
        client.send_many("q", [eoq.Outgoing(b"x", id=id) for id in ("a", "b")])
    _process(daemon, one, "q")
    _process(daemon, other, "q")
    assert _audit(daemon, one, other)[0].status == 0
    assert _audit(daemon, one)[1] == {("acked_not_processed", "q", "b")}


def test_what_an_inbox_may_have_forgotten_is_not_called_unprocessed(daemon: Daemon, app: Path) -> None:
    with eoq.connect(daemon.socket) as client:
        client.send("q", "x", id="a")
    _process(daemon, app, "q")
    with closing(sqlite3.connect(app, isolation_level=None)) as database:
        database.execute("delete from eoq_processed")
        database.execute("update eoq_watermark set forgotten_to = forgotten_to + 1e9")
    ran, found = _audit(daemon, app)
    assert (ran.status, found) == (0, set())
    assert "of 1 an inbox keeps the id no longer" in ran.errors


@pytest.mark.slow
def test_after_a_restore_what_is_delivered_again_is_found(daemon: Daemon, app: Path) -> None:
    shell = daemon.shell()
    with eoq.connect(daemon.socket) as client:
        client.send_many("q", [eoq.Outgoing(b"x", id=id) for id in ("a", "b")])
    assert shell.run("eoq backup before.db").status == 0
    _process(daemon, app, "q")
    daemon.terminate()
    assert shell.run("eoq restore before.db --yes").status == 0
    ran, found = _audit(daemon, app)
    assert (ran.status, found) == (0, {("processed_not_acked", "q", "a")})
    daemon.start()
    _process(daemon, app, "q", 10)
    assert _audit(daemon, app)[1] == set()


def test_rows_of_an_outbox_that_wait_for_nothing_or_for_the_operator_are_found(daemon: Daemon, app: Path) -> None:
    with eoq.connect(daemon.socket) as client:
        client.send("q", "x", id="sent")
    with closing(sqlite3.connect(app, isolation_level=None)) as database:
        outbox = eoq.Outbox(database)
        database.execute("begin")
        for id in ("sent", "aside", "waits"):
            outbox.send("q", "x", id=id)
        database.execute("commit")
        database.execute("update eoq_outbox set error = 'no' where id = 'aside'")
    ran, found = _audit(daemon, app)
    assert (ran.status, found) == (0, {("sent_not_removed", "q", "sent"), ("set_aside", "q", "aside")})


@pytest.mark.slow
def test_what_is_no_file_of_an_application_is_said(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("text" * 1000)
    assert _audit(daemon, tmp_path / "missing.db")[0].status == 1
    with closing(sqlite3.connect(tmp_path / "other.db")) as database:
        database.execute("create table other (x)")
    for wrong in (tmp_path / "other.db", daemon.db):
        ran, _ = _audit(daemon, wrong)
        assert (ran.status, "neither an inbox nor an outbox" in ran.errors) == (65, True)
    ran, _ = _audit(daemon, tmp_path / "text")
    assert ran.status == 65
    assert "text could not be read" in ran.errors


def test_rows_of_any_kind_end_nothing(daemon: Daemon, app: Path) -> None:
    with eoq.connect(daemon.socket) as client:
        client.send("q", "x", id="a")
    _process(daemon, app, "q")
    with closing(sqlite3.connect(app, isolation_level=None)) as database:
        database.execute("create table eoq_outbox (seq, queue, id, error)")
        for value in ("text", 1.5, b"\xff\x00", None, -7, 2**62):
            database.execute("insert into eoq_outbox values (?, ?, ?, null)", (value,) * 3)
        database.execute("insert into eoq_outbox values (1, cast(x'ff' as text), cast(x'ff' as text), null)")
        for value in (b"\xff", b"blob"):
            database.execute("insert into eoq_processed values ('q', ?, null, 1, null, 1.0, null)", (value,))
            database.execute("insert into eoq_watermark values ('', ?, 1, null, 1.0, 1.0, '')", (value,))
    ran, found = _audit(daemon, app)
    assert (ran.status, found) == (0, set())
