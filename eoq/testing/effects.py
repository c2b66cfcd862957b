"""Assertions on effects: what became of the messages of a queue, and what an inbox has processed."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Final

from ..client.blocking import Client
from ..errors import NotFound

MOST: Final = 1000
"""How many messages of a state are looked at."""
WAITING: Final = ("ready", "delayed", "blocked")


def _ids(client: Client, queue: str, states: Iterable[str]) -> list[str]:
    return [message["id"] for state in states for message in client.peek(queue, state, limit=MOST)]


def _compare(what: str, found: Iterable[str], expected: Iterable[str]) -> None:
    there, wanted = sorted(found), sorted(expected)
    if there != wanted:
        missing = sorted(set(wanted) - set(there))
        besides = sorted(set(there) - set(wanted))
        raise AssertionError(
            f"{what}: {there}"
            + (f"; missing: {missing}" if missing else "")
            + (f"; not expected: {besides}" if besides else "")
        )


def assert_done(client: Client, queue: str, ids: Iterable[str]) -> None:
    """Fail unless exactly these messages are done."""
    _compare(f"done in {queue}", _ids(client, queue, ["done"]), ids)


def assert_waiting(client: Client, queue: str, ids: Iterable[str]) -> None:
    """Fail unless exactly these messages wait."""
    _compare(f"waiting in {queue}", _ids(client, queue, WAITING), ids)


def assert_empty(client: Client, queue: str) -> None:
    """Fail if a message waits, is leased, or is a dead letter."""
    _compare(f"left in {queue}", _ids(client, queue, (*WAITING, "leased", "dead")), ())


def dead_letters(client: Client, queue: str) -> dict[str, str | None]:
    """Return the error of each dead letter."""
    return {message["id"]: message.get("error") for message in client.peek(queue, "dead", limit=MOST)}


def assert_dead(client: Client, queue: str, id: str, error: str) -> None:
    """Fail unless the message is a dead letter whose error has a match of the expression ``error``."""
    dead = dead_letters(client, queue)
    if id not in dead:
        try:
            state = client.show(queue, id)["state"]
        except NotFound:
            state = "not known"
        raise AssertionError(f"{id!r} is no dead letter of {queue}: it is {state}; the dead letters are {dead}")
    if re.search(error, dead[id] or "") is None:
        raise AssertionError(
            f"the last error of the dead letter {id!r} is {dead[id]!r}, which {error!r} does not match"
        )


def assert_processed(db: str | os.PathLike[str], queue: str, *ids: str) -> None:
    """Fail unless the inbox in the file ``db`` has processed exactly these messages of ``queue``, in any order."""
    with closing(sqlite3.connect(f"{Path(db).absolute().as_uri()}?mode=ro", uri=True)) as database:
        there = database.execute("select 1 from sqlite_schema where name = 'eoq_processed'").fetchone()
        rows = database.execute("select id from eoq_processed where queue = ?", (queue,)) if there else ()
        found = [id for (id,) in rows]
    _compare(f"processed of {queue} in {db}", found, ids)
