"""The page about the four ways: what it shows can be read by who has to read it, and its first way runs."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from typing import Any, Final

import pytest

import eoq
from tests.examples.conftest import EXAMPLES
from tests.support import Daemon

PAGE: Final = (EXAMPLES / "four-ways.md").read_text()
BLOCKS: Final = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", [code for language, code in BLOCKS if language == "python"])
def test_python_is_python(code: str) -> None:
    compile(code, "four-ways.md", "exec")


def test_each_way_is_drawn() -> None:
    assert [language for language, _ in BLOCKS].count("mermaid") == 4


def test_what_it_links_is_there() -> None:
    headings = re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE)
    anchors = {"#" + re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        assert target in anchors or (EXAMPLES / target).exists(), target


def test_the_names_it_uses_of_this_version_exist() -> None:
    for name in ("connect", "Inbox", "AsyncInbox", "GuestInbox", "Outgoing"):
        assert hasattr(eoq, name)


def test_the_first_way_books_once(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(daemon.folder)
    monkeypatch.setenv("EOQ_SOCKET", str(daemon.socket))
    with closing(sqlite3.connect("ledger.db")) as database:
        database.execute("create table booking (payment text, account text, cents integer)")
    (code,) = [code for language, code in BLOCKS if language == "python" and "def book(" in code]
    with eoq.connect() as client:
        client.send("payments", {"account": "alice", "cents": 500}, id="order-17")
    # Its loop has no end, so it is given one.
    scope: dict[str, Any] = {}
    exec(code.replace("prefetch=10", "prefetch=10, idle=0.2"), scope)  # noqa: S102 # the page's own example
    with closing(sqlite3.connect("ledger.db")) as database:
        assert database.execute("select * from booking").fetchall() == [("order-17", "alice", 500)]
