"""PROTOCOL.md is true: its examples, its limits, its SQL and its program are checked against a real daemon."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

import eoq
from eoq.daemon import requests
from eoq.daemon.broker import receivers
from eoq.daemon.rules import schedule_rules as schedule_rule
from eoq.daemon.rules import topic_rules
from eoq.daemon.server import connection, traffic
from eoq.daemon.store.sqlite import reader
from eoq.daemon.store.sqlite.tables import queues as queue_table
from eoq.daemon.store.sqlite.tables import schedules as schedule_table
from eoq.message import MAX_DELAY
from eoq.protocol import limits
from eoq.protocol.paths import socket_path
from eoq.testing import private_daemon
from tests.examples.pages import Page, follow, with_netcat
from tests.support import Daemon, Shell, Wire, clean_environment, eventually

PAGE: Final = (Path(__file__).parents[2] / "eoq" / "PROTOCOL.md").read_text()
PAYMENTS: Final = 1000
"""More than a consumer books between two checks of the test, so that it is killed before the end."""
UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
DIFFERS: Final = {
    "now",
    "pid",
    "sqlite",
    "version",
    "database",
    "socket",
    "spool",
    "message",
    "oldest",
    "oldest_ready",
    "consumer",
    "sent_rate",
    "done_rate",
    "identity",
    "source",
    "file_bytes",
    "log_bytes",
    "disk_bytes",
    "disk_free_bytes",
    "text",
    "seconds",
}
"""Fields of replies that differ between machines or days."""


def _blocks(language: str) -> list[str]:
    return Page("eoq/PROTOCOL.md").blocks_of(language)


def test_no_block_is_left_out() -> None:
    assert [len(_blocks(language)) for language in ("sh", "sql", "python")] == [1, 4, 1]
    exchanges = [block for block in _blocks("") if block.startswith("> ")]
    assert [block.strip()[:4] for block in _blocks("") if block not in exchanges] == ["send"], "only the diagram"
    assert all(line.startswith(("> ", "< ")) for block in exchanges for line in block.splitlines())


def test_the_shell_example_sends_a_message(shell: Shell) -> None:
    (script,) = _blocks("sh")
    (reply,) = follow(shell, with_netcat(shell, script))
    assert json.loads(reply)["ok"]


def _same(page: Any, real: Any, name: str = "") -> bool:
    """Return whether a reply is the one on the page. Fields that always differ need only have the same type."""
    if name == "latencies":
        return bool(page.keys() == real.keys() and page["commit"].keys() == real["commit"].keys())
    if isinstance(page, dict) and isinstance(real, dict):
        return page.keys() == real.keys() and all(_same(page[key], real[key], key) for key in page)
    if isinstance(page, list) and isinstance(real, list):
        return len(page) == len(real) and all(_same(a, b) for a, b in zip(page, real, strict=True))
    if name == "receipt":
        return UUID.sub("", str(page)).split(".")[1:] == UUID.sub("", str(real)).split(".")[1:]
    if name in DIFFERS or name.endswith("_at") or (name == "id" and UUID.fullmatch(str(page))):
        return type(page) is type(real)
    return type(page) is type(real) and page == real


def test_each_example_is_a_real_exchange(daemon: Daemon) -> None:
    lines = [line for line in PAGE.splitlines() if line.startswith(("> ", "< "))]
    assert len(lines) > 60
    receipts: dict[str, str] = {}
    with daemon.wire() as wire:
        for line in lines:
            text = line[2:]
            if line.startswith("> "):
                for of_page, of_daemon in receipts.items():
                    text = text.replace(f'"{of_page}"', f'"{of_daemon}"')
                wire.write(text.encode() + b"\n")
                continue
            page, real = json.loads(text), wire.read()
            assert _same(page, real), f"the page says {page}\nthe daemon says {real}"
            for of_page, of_daemon in zip(page.get("messages", ()), real.get("messages", ()), strict=True):
                if "receipt" in of_page:
                    receipts[of_page["receipt"]] = of_daemon["receipt"]


def _operations() -> set[str]:
    return set(re.findall(r"^### (\w+)$", PAGE, re.MULTILINE))


def _request_types() -> dict[str, type[msgspec.Struct]]:
    return {str(kind.__struct_config__.tag): kind for kind in requests.Request.__args__}


def test_every_operation_has_a_section_and_every_section_an_operation() -> None:
    assert _operations() == _request_types().keys()


def test_each_section_names_every_field_of_its_requests() -> None:
    for op, kind in _request_types().items():
        section = PAGE.split(f"\n### {op}\n")[1].split("\n## ")[0].split("\n### ")[0]
        for name in kind.__struct_fields__:
            assert name == "rid" or f"`{name}`" in section, f"{op} does not name {name}"


def test_every_error_code_is_explained() -> None:
    section = PAGE.split("\n## 5 Errors\n")[1].split("\n## ")[0]
    explained = set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))
    kinds: list[type[eoq.EoqError]] = [eoq.EoqError, *eoq.EoqError.__subclasses__()]
    own = {kind.code for kind in kinds if kind.__module__ == "eoq.errors"}
    assert explained == own - {"unavailable"}  # only a client raises it


def test_result_answers_each_outcome_that_is_listed() -> None:
    section = PAGE.split("\n### result\n")[1].split("\n### ")[0]
    listed = re.findall(r"^\| `(\w+)` \| (?!string|seconds|queue|means)", section, re.MULTILINE)
    with private_daemon() as daemon:
        client = daemon.client
        for id in ("done", "dead", "forwarded"):
            client.send("q", "x", id=id)
        done, dead, forwarded = client.receive("q", limit=3)
        done.ack()
        dead.reject("no")
        client.ask("settle", acks=[{"receipt": forwarded.receipt}], forwarded="there")
        client.send("q", "x", id="expired", ttl=1)
        daemon.clock.move(2)
        client.send("q", "x", id="dropped")
        client.purge("q")
        client.send("q", "x", id="cancelled")
        client.cancel("q", "cancelled")
        client.send("q", "x", id="waits")
        assert [client.ask("result", queue="q", id=id)["outcome"] for id in listed] == listed
        assert client.ask("result", queue="q", id="waits")["outcome"] is None
    assert len(listed) == 6


@pytest.mark.parametrize(
    ("line", "rid"),
    [
        (b'{"rid":1,"op":"topics","x":1}', 1),
        (b'{"rid":"a","op":"receive","queue":"q","limit":1001}', "a"),
        (b'{"rid":"a"}', "a"),
        (b'{"rid":1.5,"op":"topics"}', None),
        (b'{"rid":true,"op":"topics"}', None),
        (b'{"rid":[1],"op":"topics"}', None),
        (b'{"rid":1,"op":"topics"', None),
        (b'[{"rid":1}]', None),
        (b"", None),
    ],
)
def test_an_error_has_the_rid_unless_it_could_not_be_read(wire: Wire, line: bytes, rid: object) -> None:
    reply = wire.ask_line(line)
    assert (reply["ok"], reply["error"]["code"], reply.get("rid")) == (False, "invalid_request", rid)
    assert wire.ask({"rid": 2, "op": "topics"})["rid"] == 2, "the connection stays open"


def test_a_reply_has_one_message_of_a_group_and_its_texts_as_they_are(wire: Wire, queue: str) -> None:
    text = "a\u2028b\u0085c"
    for id, group in (("1", "g"), ("2", "g"), ("3", None)):
        wire.ask({"op": "send", "queue": queue, "id": id, "body": text, "group": group})
    wire.send({"op": "receive", "queue": queue, "limit": 10})
    line = wire.read_line()
    assert line is not None and text.encode() in line
    assert [message["id"] for message in json.loads(line)["messages"]] == ["1", "3"]


@pytest.mark.skipif(sys.platform != "linux", reason="the rows are those of Linux")
def test_the_default_socket_is_where_the_table_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row[1].strip("`") for row in Page("eoq/PROTOCOL.md").rows("1 Framing") if row[0] == "Linux"]
    assert len(rows) == 3
    monkeypatch.setenv("EOQ_SOCKET", "")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    assert str(socket_path()) == rows[0].replace("$XDG_RUNTIME_DIR", str(folder))
    usual, last = (Path(row.replace("UID", str(os.getuid()))) for row in rows[1:])
    for unset in ("", "relative"):
        monkeypatch.setenv("XDG_RUNTIME_DIR", unset)
        writable = os.access(usual.parents[1], os.W_OK)
        assert socket_path() == (usual if writable else last)


def test_the_limits_are_those_of_the_code() -> None:
    section = PAGE.split("\n## 2 Limits\n")[1].split("\n## ")[0]
    stated = {int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", section)}
    of_the_code = [
        *(limits.MAX_LINE, limits.MAX_BODY, limits.MAX_HEADERS, limits.MAX_BATCH, limits.MAX_ID),
        *(limits.MAX_ERROR, limits.MAX_LEASE, MAX_DELAY, limits.MAX_WAIT, limits.MAX_PRIORITY),
        *(reader.SCAN_ROWS, reader.SCAN_BYTES, topic_rules.MAX_BINDINGS, topic_rules.MAX_QUEUES_OF_TOPIC),
        *(schedule_table.MAX_SCHEDULES, schedule_rule.MOST_MISSED),
        *(receivers.RECEIVE_BYTES, queue_table.MAX_QUEUES, connection.MAX_CONNECTIONS, connection.MAX_IN_FLIGHT),
        *(connection.MAX_WAITING, connection.MAX_HEAVY, connection.WRITE_HIGH),
        *(connection.MAX_PARTIAL, connection.PARTIAL_ALLOWANCE, traffic.MAX_UNREAD, traffic.MAX_FETCHING),
    ]
    assert set(map(int, of_the_code)) <= stated
    assert limits.QUEUE_PATTERN.removeprefix("^").removesuffix(r"\Z") in section


def _columns(database: sqlite3.Connection) -> list[tuple[Any, ...]]:
    with closing(database):
        return database.execute("pragma table_info(eoq_processed)").fetchall()


def test_the_inbox_makes_the_same_table(folder: Path) -> None:
    create = _blocks("sql")[0]
    by_page = sqlite3.connect(":memory:")
    by_page.executescript(create)
    with eoq.Inbox(folder / "app.db"):
        pass
    assert _columns(by_page) == _columns(sqlite3.connect(folder / "app.db"))


def _schema(database: sqlite3.Connection) -> dict[str, str]:
    """Return the statement that made each table and index, without comments and white space."""
    with closing(database):
        rows = database.execute("select name, sql from sqlite_schema where name like 'eoq_%' and sql is not null")
        return {name: re.sub(r"--.*|\s+", "", sql) for name, sql in rows}


def test_inbox_and_outbox_make_the_same_tables(folder: Path) -> None:
    create, _prune, outbox, watermark = _blocks("sql")
    by_page = sqlite3.connect(":memory:")
    by_page.executescript(create + outbox + watermark)
    by_library = sqlite3.connect(folder / "app.db")
    eoq.Outbox(by_library)
    with eoq.Inbox(folder / "app.db"):
        pass
    schema = _schema(by_page)
    assert schema.keys() == {
        *("eoq_processed", "eoq_watermark"),
        *("eoq_outbox", "eoq_outbox_set_aside"),
    }
    assert schema == _schema(by_library)


def test_a_row_in_the_outbox_of_the_page_is_sent(daemon: Daemon) -> None:
    with closing(sqlite3.connect(daemon.folder / "app.db")) as database, database:
        database.executescript(_blocks("sql")[2])
        database.execute("insert into eoq_outbox (queue, body) values ('q', 'by hand')")
    ran = daemon.shell().run("eoq relay app.db --until-empty && eoq receive q")
    assert (ran.status, ran.text) == (0, "by hand\n"), ran.errors


def test_the_delete_statement_removes_only_ids_that_are_settled_and_old() -> None:
    create, prune = _blocks("sql")[:2]
    with closing(sqlite3.connect(":memory:")) as database:
        database.executescript(create)
        now, day = 1_000_000.0, 86_400
        rows = [("q", "old", 1, now - day - 1, "s"), ("q", "young", 2, now, "s"), ("q", "open", 3, now - day - 1, "s")]
        rows += [("other", "old", 1, now - day - 1, "s"), ("q", "of another file", 1, now - day - 1, "t")]
        database.executemany(
            "insert into eoq_processed (queue, id, seq, processed_at, source) values (?, ?, ?, ?, ?)", rows
        )
        database.execute(prune, {"queue": "q", "watermark": 3, "now": now, "retention": day, "source": "s"})
        left = database.execute("select queue, id from eoq_processed order by queue, seq, id").fetchall()
    assert left == [("other", "old"), ("q", "of another file"), ("q", "young"), ("q", "open")]


# ── the consumer of section 10 ──────────────────────────────────────────────────────────────────────────────


@contextmanager
def _consumer(daemon: Daemon) -> Iterator[subprocess.Popen[bytes]]:
    (program,) = _blocks("python")
    script = daemon.folder / "consumer.py"
    script.write_text(program)
    # -I: the program cannot import eoq by accident.
    command = [sys.executable, "-I", str(script), str(daemon.socket), str(daemon.folder / "app.db"), "payments"]
    with (daemon.folder / "consumer.err").open("ab") as errors:
        process = subprocess.Popen(command, stderr=errors, env=clean_environment())
    with process:
        try:
            yield process
        finally:
            process.kill()


def _booked(daemon: Daemon) -> list[tuple[str, int]]:
    """Return the rows of the consumer's ledger. Before the consumer has made it, there are none."""
    file = daemon.folder / "app.db"
    if not file.exists():
        return []
    with closing(sqlite3.connect(file, timeout=30)) as database:
        if not database.execute("select 1 from sqlite_schema where name = 'ledger'").fetchone():
            return []
        return database.execute("select account, amount from ledger order by amount").fetchall()


def _send(wire: Wire, numbers: range) -> None:
    messages = [{"id": f"p-{n}", "body": json.dumps({"account": "alice", "amount": n})} for n in numbers]
    assert wire.ask({"op": "send_many", "queue": "payments", "messages": messages})["ok"]


def _wait_until_booked(daemon: Daemon, wanted: int) -> None:
    eventually(lambda: len(_booked(daemon)) >= wanted, 60, what=f"{wanted} payments are booked")


def _outcomes(daemon: Daemon) -> set[str]:
    """Wait until each payment is settled. Return all outcomes."""
    with daemon.wire() as wire:
        requests = [{"op": "result", "queue": "payments", "id": f"p-{n}", "wait": 60} for n in range(PAYMENTS)]
        return {str(wire.ask(request).get("outcome")) for request in requests}


@pytest.mark.slow
@pytest.mark.parametrize("kills", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_the_consumer_books_each_payment_once_though_it_and_the_daemon_are_killed(daemon: Daemon, kills: int) -> None:
    in_the_middle = 0
    for number in range(kills):
        before, sent = len(_booked(daemon)), PAYMENTS * (number + 1) // kills
        with daemon.wire() as wire:
            _send(wire, range(PAYMENTS * number // kills, sent))
        with _consumer(daemon) as consumer:
            _wait_until_booked(daemon, before + 30)
            consumer.kill()
            consumer.wait()
        in_the_middle += len(_booked(daemon)) < sent  # a busy machine may be late for a kill
        daemon.restart()
    assert in_the_middle, "all were booked before each kill; send more"
    with _consumer(daemon) as consumer:
        _wait_until_booked(daemon, min(PAYMENTS, len(_booked(daemon)) + 20))
        daemon.restart()
        _wait_until_booked(daemon, PAYMENTS)
        assert _outcomes(daemon) == {"done"}
        assert consumer.poll() is None
    assert _booked(daemon) == [("alice", n) for n in range(PAYMENTS)]
    assert daemon.ask(op="result", queue="payments", id="p-0")["result"] == "booked"


def test_the_consumer_gives_back_a_message_that_it_cannot_handle(daemon: Daemon) -> None:
    with daemon.wire() as wire:
        wire.ask({"op": "send", "queue": "payments", "id": "bad", "body": "no JSON"})
        _send(wire, range(3))
    with _consumer(daemon):
        _wait_until_booked(daemon, 3)
        message = eventually(lambda: daemon.ask(op="show", queue="payments", id="bad")["message"])
        assert eventually(lambda: daemon.ask(op="show", queue="payments", id="bad")["message"].get("error"))
    assert message["state"] != "done"
    assert _booked(daemon) == [("alice", n) for n in range(3)]
