"""The page about the four ways can be followed: each of its blocks runs, with stand-ins for what is not eoq's."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest

import eoq
from tests.examples.pages import Page, follow
from tests.support import Daemon, Shell, eventually, kill_group

PAGE: Final = Page("examples/four-ways.md")
INBOX: Final = "1 Idempotency keys in a database"
OUTBOX: Final = "2 The transactional outbox"
SETTLE: Final = "3 Atomic read-process-write"
ONCE: Final = "4 A deduplication service"
IMPOSSIBLE: Final = "What is impossible"
WAYS: Final = (INBOX, OUTBOX, SETTLE, ONCE)
CURL: Final = "#!/bin/sh\nprintf '%s\\n' \"$*\" > asked\ncat >> asked\n"
"""A stand-in that writes down what it was asked for."""


def test_no_block_is_left_out() -> None:
    assert PAGE.inventory() == {
        **{(way, "mermaid"): 1 for way in WAYS},
        (INBOX, "python"): 1,
        (OUTBOX, "python"): 1,
        (OUTBOX, "sh"): 1,
        (SETTLE, "python"): 2,
        (ONCE, "sh"): 1,
        (ONCE, "python"): 1,
        (IMPOSSIBLE, "python"): 1,
        (IMPOSSIBLE, "sh"): 1,
    }


def test_the_eoq_names_on_the_page_exist() -> None:
    for name in re.findall(r"\beoq\.([A-Za-z_]+)\b(?!\.)", PAGE.text):
        assert hasattr(eoq, name), name


@pytest.fixture
def client(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[eoq.Client]:
    """A client of the daemon that the page's own `eoq.connect()` finds as well, in the daemon's folder."""
    monkeypatch.chdir(daemon.folder)
    monkeypatch.setenv("EOQ_SOCKET", str(daemon.socket))
    with eoq.connect() as client:
        yield client


def _run(code: str, **names: Any) -> dict[str, Any]:
    """Run a block. Give the loop of `consume` an end. Return the names that the block has set."""
    code = code.replace('"payments", prefetch=10)', '"payments", prefetch=10, idle=0.2)')
    code = code.replace('client.consume("payments")', 'client.consume("payments", idle=0.2)')
    exec(code, names)  # noqa: S102 # the page's own example
    return names


def test_the_inbox_books_once(client: eoq.Client) -> None:
    with closing(sqlite3.connect("ledger.db")) as database:
        database.execute("create table booking (payment text, account text, cents integer)")
    client.send("payments", {"account": "alice", "cents": 500}, id="order-17")
    (code,) = PAGE.blocks(INBOX, "python")
    _run(code)
    with closing(sqlite3.connect("ledger.db")) as database:
        assert database.execute("select * from booking").fetchall() == [("order-17", "alice", 500)]


def test_the_outbox_is_relayed(daemon: Daemon, client: eoq.Client) -> None:
    with closing(sqlite3.connect("shop.db")) as database:
        database.execute("create table orders (id integer primary key, cents integer)")
    (code,), (relay,) = PAGE.blocks(OUTBOX, "python"), PAGE.blocks(OUTBOX, "sh")
    _run(code)["connection"].close()
    process = daemon.shell().start(f"exec {relay}")
    with process:
        try:
            (message,) = client.receive("payments", wait=20)
        finally:
            kill_group(process)
    assert (message.id, message.json()) == ("order-17", {"order": 17})


def test_a_message_is_settled_with_what_it_sends(client: eoq.Client) -> None:
    one, several = PAGE.blocks(SETTLE, "python")
    client.send("payments", "5", id="order-17")
    _run(one)
    assert client.result("payments", "order-17") == eoq.Result(outcome="done", body=b"paid", error=None)
    (receipt,) = client.receive("receipts")
    assert receipt.json() == {"order": "order-17"}

    client.send_many("parts", [eoq.Outgoing("l", id="left"), eoq.Outgoing("r", id="right")])
    left, right = client.receive("parts", limit=2)
    _run(several, client=client, left=left, right=right)
    (joined,) = client.receive("joined")
    assert joined.json() == {"left": "left", "right": "right"}


def test_a_key_runs_once(daemon: Daemon, client: eoq.Client) -> None:
    script = daemon.folder / "make-report"
    script.write_text('#!/bin/sh\necho "report of $1" | tee -a made\n')
    script.chmod(0o755)
    (command,), (code,) = PAGE.blocks(ONCE, "sh"), PAGE.blocks(ONCE, "python")
    assert follow(daemon.shell(), command + command) == ["report of january"] * 2
    assert Path("made").read_text() == "report of january\n"
    charges: list[str] = []

    def charge() -> str:
        charges.append("5")
        return "receipt"

    for _ in range(2):
        assert _run(code, charge=charge)["receipt"] == b"receipt"
    assert charges == ["5"]


def test_the_id_is_passed_on_to_another_system(daemon: Daemon, client: eoq.Client) -> None:
    (code,), (command,) = PAGE.blocks(IMPOSSIBLE, "python"), PAGE.blocks(IMPOSSIBLE, "sh")
    asked: dict[str, Any] = {}

    class Payments:
        """A stand-in for the other system's library."""

        @staticmethod
        def charge(**fields: Any) -> None:
            asked.update(fields)

    charge = _run(code, payments=Payments)["charge"]
    client.send("cards", {"cents": 5}, id="order-17")
    (message,) = client.receive("cards")
    with closing(sqlite3.connect("ledger.db")) as database:
        database.execute("create table charged (id text)")
    with eoq.Inbox("ledger.db") as inbox:
        inbox.process(message, charge)
    assert asked == {"cents": 5, "idempotency_key": "order-17"}

    curl = daemon.folder / "curl"
    curl.write_text(CURL)
    curl.chmod(0o755)
    client.send("payments", '{"cents": 7}', id="order-18")
    shell: Shell = daemon.shell()
    worker = shell.start(f'PATH="{daemon.folder}:$PATH"; exec {command}')
    with worker:
        try:
            eventually(lambda: client.result("payments", "order-18"))
        finally:
            kill_group(worker)
    arguments, body = Path("asked").read_text().splitlines()
    assert "Idempotency-Key: order-18" in arguments
    assert body == '{"cents": 7}'
