"""Hostile files in the spool, rows of an outbox, and lines.

Each is rejected with its reason, and the daemon goes on.
"""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

import eoq
from tests.integration.relays import waiting as rows_waiting
from tests.integration.spools import arrivals, put, texts, waiting
from tests.support import Daemon, eventually, running_daemon

DIGITS: Final = b"1" + b"0" * 400
"""A whole number that is too large for a float."""
NESTED: Final = b"[" * 900 + b"]" * 900
"""Nested nearly as deeply as Python reads."""

OPTIONS: Final[dict[str, bytes]] = {
    "left_at too large": b'{"ttl": 5, "left_at": ' + DIGITS + b"}",
    "left_at too small": b'{"ttl": 5, "left_at": -' + DIGITS + b"}",
    "left_at NaN": b'{"ttl": 5, "left_at": NaN}',
    "left_at infinite": b'{"ttl": 5, "left_at": 1e999}',
    "left_at nested": b'{"ttl": 5, "left_at": ' + NESTED + b"}",
    "left_at text": b'{"ttl": 5, "left_at": "now"}',
    "left_at true": b'{"ttl": 5, "left_at": true}',
    "tried_at too large": b'{"tried_at": ' + DIGITS + b"}",
    "tried_at NaN": b'{"tried_at": NaN}',
    "tried_at infinite": b'{"tried_at": -Infinity}',
    "tried_at object": b'{"tried_at": {}}',
    "tried_at nested": b'{"tried_at": ' + NESTED + b"}",
    "too many digits": b'{"ttl": 1' + b"0" * 5000 + b"}",
    "ttl too large": b'{"ttl": ' + DIGITS + b"}",
    "ttl NaN": b'{"ttl": NaN}',
    "ttl list": b'{"ttl": [5]}',
    "delay too large": b'{"delay": ' + DIGITS + b"}",
    "delay text": b'{"delay": "5"}',
    "at too large": b'{"at": ' + DIGITS + b"}",
    "at and delay": b'{"at": 1, "delay": 1}',
    "at object": b'{"at": {"at": 1}}',
    "priority too large": b'{"priority": ' + DIGITS + b"}",
    "priority fraction": b'{"priority": 1.5}',
    "priority null": b'{"priority": null}',
    "id number": b'{"id": 17}',
    "id NUL": b'{"id": "a\\u0000b"}',
    "id surrogate": b'{"id": "\\ud800"}',
    "id nested": b'{"id": ' + NESTED + b"}",
    "group false": b'{"group": false}',
    "group surrogate": b'{"group": "\\udfff"}',
    "headers list": b'{"headers": ["a"]}',
    "headers nested": b'{"headers": {"a": ' + NESTED + b"}}",
    "headers surrogate name": b'{"headers": {"\\ud800": "a"}}',
    "unknown surrogate": b'{"\\ud800": 1}',
    "same key twice": b'{"id": "a", "id": 1}',
    "NUL": b"\0",
    "only a line feed": b"",
    "null": b"null",
    "two objects": b"{} {}",
    "control character": b'{"id": "\x01"}',
}


def _strange_files(folder: Path) -> int:
    """Create what is no regular file. Returns how many."""
    os.mkfifo(folder / "pipe.eoq")
    (folder / "device link").symlink_to("/dev/zero")
    (folder / "loop").symlink_to("loop")
    (folder / "folder.eoq").mkdir()
    (folder / "x\nnew line\x1b[31m.eoq").write_bytes(b"[]\n")
    os.close(os.open(os.fsencode(folder) + b"/\xff\xfe.eoq", os.O_CREAT | os.O_WRONLY))
    try:
        os.mknod(folder / "device", 0o600 | 0o020000, os.makedev(1, 5))  # /dev/zero
    except OSError:
        return 6  # only root can make a device
    return 7


def test_no_file_of_the_spool_ends_the_daemon(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    with running_daemon("--spool", str(spool)) as daemon, eoq.connect(daemon.socket) as client:
        put(spool, "q", "0-before", "before")
        for name, line in OPTIONS.items():
            put(spool, "q", f"1 {name}.eoq", line + b"\nbody")
        strange = _strange_files(spool / "q")
        put(spool, "q", "zz-behind", "behind")
        put(spool, "other", "x", "other queue")
        os.makedirs(os.fsencode(spool) + b"/\xff")  # noqa: PTH103 # `Path` takes no bytes
        assert sorted(texts(arrivals(client, "q", 2))) == ["before", "behind"]
        assert texts(arrivals(client, "other", 1)) == ["other queue"]
        eventually(lambda: waiting(spool, "q") == [], what="every file is rejected")
        names = os.listdir(os.fsencode(spool / "q" / ".rejected"))  # noqa: PTH208 # names that are not UTF-8
        reasons = {name for name in names if name.endswith(b".reason")}
        assert len(reasons) == len(OPTIONS) + strange
        assert {name.removesuffix(b".reason") for name in reasons} == set(names) - reasons
        for name in OPTIONS:
            assert (spool / "q" / ".rejected" / f"1 {name}.eoq.reason").read_text().startswith("invalid_request: ")
        assert client.ask("status")["pid"] == daemon.pid


ROWS: Final[dict[str, str]] = {
    "id blob": "id = x'6162'",
    "id blob of invalid UTF-8": "id = x'ff00'",
    "id whole number": f"id = {2**63 - 1}",
    "id real": "id = 9e999",
    "id invalid UTF-8": "id = cast(x'ff' as text)",
    "id empty": "id = ''",
    "id absent": "id = null",
    "queue blob": "queue = x'71'",
    "queue number": "queue = 1",
    "queue absent": "queue = null",
    "queue invalid UTF-8": "queue = cast(x'c3' as text)",
    "queue NUL": "queue = 'q' || char(0)",
    "body absent": "body = null",
    "headers blob": "headers = x'ff'",
    "headers number": "headers = 9007199254740993",
    "headers invalid UTF-8": """headers = cast(x'7b2261223a22ff227d' as text)""",
    "headers nested": f"headers = '{NESTED.decode()}'",
    "headers number too large": f"""headers = '{{"a": {DIGITS.decode()}}}'""",
    "priority text": "priority = 'high'",
    "priority blob": "priority = x'01'",
    "priority huge": f"priority = {2**63 - 1}",
    "priority real": "priority = 1e300",
    "priority absent": "priority = null",
    "group blob": "\"group\" = x'00'",
    "group number": '"group" = 5',
    "at infinite": "at = 9e999",
    "at text": "at = 'tomorrow'",
    "at blob": "at = x'00'",
    "ttl infinite": "ttl = 9e999",
    "ttl text": "ttl = 'a day'",
    "ttl blob": "ttl = x'00'",
    "ttl from a text": "ttl = 5, created_at = 'today'",
    "ttl from a blob": "ttl = 5, created_at = x'ff'",
}


def _fill(file: Path) -> dict[str, int]:
    """Create an outbox without constraints, with all hostile rows between two good ones. Returns the seq of each."""
    with closing(sqlite3.connect(file)) as database:
        eoq.Outbox(database)
        columns = "seq integer primary key, id, queue, body, headers, priority, 'group', at, ttl, created_at, error"
        database.executescript(f"drop table eoq_outbox; create table eoq_outbox ({columns}, failed_at)")
        new = "insert into eoq_outbox (id, queue, body, priority, created_at) values (?, 'q', ?, 0, 1)"
        seqs = {}
        with database:
            database.execute(new, ("first", "first"))
            for name, change in ROWS.items():
                seq = database.execute(new, (name, "x")).lastrowid
                assert seq is not None
                seqs[name] = seq
                database.execute(f"update eoq_outbox set {change} where seq = ?", (seq,))
            database.execute(new, ("last", "last"))
    return seqs


def _marks(file: Path, *marks: object) -> list[int]:
    """Add rows with these marks of a relay that was killed. Returns the seq of each."""
    seqs = []
    with closing(sqlite3.connect(file)) as database, database:
        database.executescript(
            "create table if not exists eoq_outbox_sending (seq integer primary key, since real not null)"
        )
        for index, mark in enumerate(marks):
            seq = database.execute(
                "insert into eoq_outbox (id, queue, body, priority) values (?, 'q', 'x', 0)", (f"mark {index}",)
            ).lastrowid
            assert seq is not None
            seqs.append(seq)
            database.execute("insert into eoq_outbox_sending values (?, ?)", (seq, mark))
    return seqs


@pytest.fixture
def relaying(tmp_path: Path) -> Path:
    """A configuration whose daemon relays ``app.db``."""
    config = tmp_path / "eoq.toml"
    config.write_text('[[relay]]\npath = "app.db"\n')
    return config


def test_no_row_of_an_outbox_ends_the_relay(tmp_path: Path, relaying: Path) -> None:
    file = tmp_path / "app.db"
    seqs = _fill(file)
    marked = _marks(file, "yesterday", b"\xff", -1e300, float("-inf"))
    with running_daemon("--config", str(relaying)) as daemon, eoq.connect(daemon.socket) as client:
        eventually(lambda: rows_waiting(file) == 0, what=daemon.said)
        assert texts(arrivals(client, "q", 2)) == ["first", "last"]
        with closing(sqlite3.connect(file)) as database:
            errors = dict(database.execute("select seq, error from eoq_outbox").fetchall())
        assert set(errors) == {*seqs.values(), *marked}
        assert all(isinstance(error, str) and len(error) > 10 for error in errors.values()), errors
        assert "eoq failed" not in "".join(errors.values()), errors
        with closing(sqlite3.connect(file)) as database, database:
            database.execute("insert into eoq_outbox (id, queue, body, priority) values ('more', 'q', 'more', 0)")
        assert texts(arrivals(client, "q", 1)) == ["more"], "the relay goes on"


def test_the_rows_that_were_set_aside_can_be_listed(tmp_path: Path, relaying: Path) -> None:
    file = tmp_path / "app.db"
    _fill(file)
    with running_daemon("--config", str(relaying)) as daemon:
        eventually(lambda: rows_waiting(file) == 0, what=daemon.said)
        listed = daemon.shell().run(f"eoq relay --list --json {file}")
        assert listed.status == 0, listed.errors
        assert len(listed.rows) == len(ROWS)


# ── requests and lines ──────────────────────────────────────────────────────────────────────────────────────


def test_status_answers_where_a_path_is_not_utf_8(tmp_path: Path) -> None:
    spool = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    with running_daemon("--spool", spool) as daemon:
        assert json.loads(daemon.shell().run("eoq status --json").text)["spool"] == spool
        assert daemon.shell().run("eoq status").status == 0
        assert daemon.running


LINES: Final = {
    "number too large": b'{"body": "x", "ttl": ' + DIGITS + b"}",
    "nested body": b'{"body": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "surrogate": b'{"body": "\\ud800"}',
    "time before all times": b'{"body": "x", "at": "0001-01-01T00:00"}',
    "time far ahead": b'{"body": "x", "at": "9999-12-31T23:59"}',
    "time NaN": b'{"body": "x", "at": "nan"}',
    "too many digits": b'{"body": 1' + b"0" * 5000 + b"}",
    "not UTF-8": b'{"body": "\xff"}',
    "base64": b'{"body_base64": "\xc3\xa4"}',
    "unknown surrogate": b'{"body": "x", "\\ud800": 1}',
}


@pytest.mark.parametrize("case", LINES)
@pytest.mark.first_by_default
def test_a_line_that_cannot_be_sent_is_named(shared_daemon: Daemon, queue: str, case: str) -> None:
    ran = shared_daemon.shell().run(f"eoq send {queue} --jsonl", b'{"body": "x"}\n' + LINES[case] + b"\n")
    assert ran.status == 65, ran.errors
    assert "line 2: " in ran.errors
