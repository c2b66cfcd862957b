"""A file that an earlier version wrote is brought over: nothing is lost, and nothing is done twice.

``schema5.sql`` is a file as a daemon of that version left it when it was killed, with messages in each state.
"""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

import eoq
from eoq.daemon.store.sqlite import schema
from tests.support import Daemon, Fields, Wire, error_of

OLD: Final = Path(__file__).with_name("schema5.sql").read_text()
RECEIPTS: Final = ("370a033a.2.1", "370a033a.5.1")
"""The receipts of the message that is done, and of the one that was leased."""
PLANTED: Final = Path(__file__).with_name("planted_migration.py")
MOST_COMMITS: Final = 100
"""More commits than bringing a file over takes."""
TIMES: Final = ("enqueued_at", "settled_at", "failed_at", "delivered_at")


def make_old(path: Path) -> None:
    """Make a file of the earlier version, as if its daemon had been killed just now."""
    with closing(sqlite3.connect(path)) as database, database:
        database.executescript(OLD)
        (newest,) = database.execute("select max(settled_at) from message").fetchone()
        for column in TIMES:
            database.execute(f"update message set {column} = {column} + ?", (time.time() - newest - 1,))


@pytest.fixture
def upgraded(folder: Path) -> Iterator[Daemon]:
    """A daemon that has brought such a file over."""
    make_old(folder / "eoq.db")
    daemon = Daemon(folder)
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.kill()


def _states(client: eoq.Client, queue: str, *ids: str) -> dict[str, str]:
    return {id: client.ask("show", queue=queue, id=id)["message"]["state"] for id in ids}


def test_every_message_is_there_in_its_state(upgraded: Daemon) -> None:
    with eoq.connect(upgraded.socket) as client:
        assert _states(
            client, "q", "ready", "done", "dead", "leased", "delayed", "g1", "g2", "expired", "given-up"
        ) == {
            "ready": "ready",
            "done": "done",
            "dead": "dead",
            "leased": "ready",
            "delayed": "delayed",
            "g1": "ready",
            "g2": "blocked",
            "expired": "expired",
            "given-up": "expired",
        }
        assert _states(client, "purged", "purged") == {"purged": "dropped"}
        assert client.result("q", "done") == eoq.Result("done", b"paid")
        counts = {row["name"]: row for row in client.queues()}
        assert [counts["q"][state] for state in ("ready", "leased", "delayed", "blocked", "dead")] == [4, 0, 1, 1, 2]
        assert counts["paused"]["paused"]
        assert client.once("key", lambda: b"never run") == b"out"


def test_ids_are_known_and_content_is_compared(upgraded: Daemon) -> None:
    with eoq.connect(upgraded.socket) as client:
        for id in ("done", "dead", "leased", "delayed"):
            assert client.send("q", id, id=id).duplicate
            with pytest.raises(eoq.IdConflict):
                client.send("q", "other", id=id)
        assert client.send("q", "gone", id="given-up").duplicate
        assert client.send("q", "ready", id="ready", headers={"k": "v"}).duplicate


def test_the_delivery_that_was_under_way_has_failed(upgraded: Daemon) -> None:
    with eoq.connect(upgraded.socket) as client:
        (message,) = client.receive("q")
        assert (message.id, message.attempt, message.seq) == ("leased", 2, 5)
        (failed, _) = client.ask("show", queue="q", id="leased")["message"]["history"]
        assert (failed["delivery"], failed["consumer"]) == (1, "pid 28018")
        assert [one["delivery"] for one in client.ask("show", queue="q", id="dead")["message"]["history"]] == [1, 2]
        client.redrive("q", ["dead"])
        (again,) = client.receive("q")
        assert (again.id, again.attempt) == ("dead", 1)


def test_receipts_of_the_earlier_version_settle_nothing(upgraded: Daemon) -> None:
    with upgraded.wire() as wire:
        for receipt in RECEIPTS:
            assert error_of(wire.ask({"op": "ack", "receipt": receipt})) == "lease_lost"
        assert _receive(wire)["id"] == "leased"
        assert error_of(wire.ask({"op": "ack", "receipt": RECEIPTS[1]})) == "lease_lost"
        assert error_of(wire.ask({"op": "nack", "receipt": RECEIPTS[1]})) == "lease_lost"


def _receive(wire: Wire) -> Fields:
    reply = wire.ask({"op": "receive", "queue": "q"})
    message: Fields = reply["messages"][0]
    return message


def test_new_messages_are_above_the_old_ones_and_the_watermark_holds(upgraded: Daemon) -> None:
    with upgraded.wire() as wire:
        assert wire.ask({"op": "send", "queue": "new", "id": "a", "body": ""})["ok"]
        assert wire.ask({"op": "receive", "queue": "new"})["messages"][0]["seq"] == 13
        reply = wire.ask({"op": "receive", "queue": "q", "limit": 10})
        assert reply["watermark"] == 1
        assert [one["id"] for one in reply["messages"]] == ["leased", "last", "ready", "g1"]
        acks = [{"receipt": one["receipt"]} for one in reply["messages"]]
        assert wire.ask({"op": "settle", "acks": acks})["ok"]
        assert wire.ask({"op": "drop", "queue": "q", "all": True})["ids"] == ["dead", "rejected"]
        assert wire.ask({"op": "receive", "queue": "q"})["watermark"] == 3, "dropped, but perhaps processed"


def _rows(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """Return what a file holds, without what is new at each start."""
    tables = (
        "message",
        "settled",
        "known_id",
        "outcome",
        "result",
        "failure",
        "queue",
        "once",
        "binding",
        "delivery",
        "schedule",
    )
    with closing(sqlite3.connect(path)) as database:
        return {table: database.execute(f"select * from {table} order by 1, 2").fetchall() for table in tables}


def _bring_over(path: Path, nth: int) -> int:
    return subprocess.run([sys.executable, str(PLANTED), str(path), str(nth)], check=False).returncode


@pytest.mark.slow
def test_a_kill_at_each_step_changes_nothing_of_the_outcome(tmp_path: Path) -> None:
    make_old(tmp_path / "whole.db")
    assert _bring_over(tmp_path / "whole.db", 0) == 0
    whole = _rows(tmp_path / "whole.db")
    assert len(whole["settled"]) == 4
    path = tmp_path / "killed.db"
    shutil.copy(tmp_path / "whole.db.schema5", path)
    kills = 0
    for nth in range(1, MOST_COMMITS):  # each start gets one commit further, or dies before it once more
        if _bring_over(path, (nth + 1) // 2) == 0:
            break
        kills += 1
    else:
        pytest.fail("it was killed to the end")
    assert kills > 15
    assert _bring_over(path, 0) == 0
    killed = _rows(path)
    for table in ("settled", "known_id", "outcome", "result", "failure", "queue", "once", "binding", "schedule"):
        # The delivery that was under way fails at the start, at another moment.
        assert [row[:4] for row in killed[table]] == [row[:4] for row in whole[table]], table
    assert [row[:4] for row in killed["message"]] == [row[:4] for row in whole["message"]]


def test_a_copy_of_the_file_is_kept(upgraded: Daemon) -> None:
    copy = upgraded.db.with_name("eoq.db.schema5")
    assert copy.stat().st_mode & 0o777 == 0o600
    with closing(sqlite3.connect(copy)) as database:
        assert database.execute("pragma user_version").fetchone() == (5,)
        assert database.execute("select count(*) from message").fetchone() == (12,)
    copy.unlink()
    upgraded.restart()
    assert not copy.exists(), "a file that is up to date is not copied"


def test_a_file_that_is_not_brought_over_can_be_copied_and_is_refused_where_its_tables_are_read(folder: Path) -> None:
    daemon = Daemon(folder)
    make_old(daemon.db)
    with closing(sqlite3.connect(folder / "app.db")) as app:
        app.execute("create table eoq_outbox (seq integer primary key, queue, id, body, headers, error)")
    shell = daemon.shell()
    for command in (f"eoq export --db {daemon.db}", f"eoq audit {folder}/app.db --db {daemon.db}"):
        ran = shell.run(command)
        assert ran.status == 65, ran.errors
        assert "is of an earlier version; start the daemon once, which brings it over" in ran.errors
    copied = shell.run(f"eoq backup {folder}/copy.db --db {daemon.db}")
    assert copied.status == 0, copied.errors


@pytest.mark.slow
def test_a_file_that_is_half_brought_over_can_be_copied(folder: Path) -> None:
    daemon = Daemon(folder)
    make_old(daemon.db)
    scripts = len(list(Path(schema.__path__[0]).glob("*.sql")))
    for nth in range(1, MOST_COMMITS):
        _bring_over(daemon.db, (nth + 1) // 2)
        copied = daemon.shell().run(f"eoq backup {folder}/copy{nth}.db --db {daemon.db}")
        assert copied.status == 0, copied.errors
        with closing(sqlite3.connect(folder / f"copy{nth}.db")) as database:
            if database.execute("pragma user_version").fetchone() == (scripts,):
                return
    pytest.fail("it was killed to the end")


def test_a_file_is_brought_over_once(upgraded: Daemon) -> None:
    with eoq.connect(upgraded.socket) as client:
        identity = client.ask("status")["identity"]
        client.ack(client.receive("q")[0])
        upgraded.restart()
        assert client.ask("status")["identity"] == identity
        assert _states(client, "q", "leased", "last") == {"leased": "done", "last": "ready"}
