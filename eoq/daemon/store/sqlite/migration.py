"""Bringing the file of an earlier version over, before the daemon serves.

Each script of ``schema/`` is one transaction. Work on many rows is done between two scripts, in steps that are
transactions of their own. A daemon that is killed on the way goes on where it ended.
"""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from importlib import resources
from pathlib import Path
from typing import Final, TypeAlias

log = logging.getLogger("eoq.store")

Tell: TypeAlias = Callable[[str, int, int], None]
"""Is called with what is being done, how far it is, and how far it goes (0 is not known). In a thread of its own."""

STEP_ROWS: Final = 2000
"""How many messages one step moves."""
TELL_SECONDS: Final = 0.1
"""How often the progress is told, at most."""
REPORT_SECONDS: Final = 2.0
"""How often it is logged."""
COPY_PAGES: Final = 2000
"""How many pages are copied between two reports."""
ROOM: Final = 3
"""For how many times the size of the file the disk must have room, so that a copy is kept."""


def migrations() -> list[str]:
    """Return the scripts of ``schema/``, in the order of their numbers."""
    folder = resources.files("eoq.daemon.store.sqlite.schema")
    files = [entry for entry in folder.iterdir() if entry.name.endswith(".sql")]
    return [entry.read_text("utf-8") for entry in sorted(files, key=lambda entry: entry.name)]


def to_nobody(what: str, done: int, total: int) -> None:
    """Tell nobody how far it is."""


def migrate(
    database: sqlite3.Connection, path: Path, version: int, scripts: list[str], application_id: int, tell: Tell
) -> None:
    """Run the scripts that come after ``version``, and the work on rows that belongs to them.

    ``tell`` is called now and then, but not for a new file.
    """
    if 0 < version < len(scripts):
        _keep_a_copy(database, path, version, tell)
    for number, script in enumerate(scripts, start=1):
        if number > version:
            if version:
                tell(f"schema {number} of {len(scripts)}", 0, 0)
            database.executescript(
                f"""
                begin immediate;
                {script}
                pragma application_id = {application_id};
                pragma user_version = {number};
                commit;
                """
            )
        if number >= version and number in _AFTER:
            _AFTER[number](database, tell)
    if 0 < version < len(scripts):
        log.info("%s was brought over from schema %d to %d", path, version, len(scripts))


def _keep_a_copy(database: sqlite3.Connection, path: Path, version: int, tell: Tell) -> None:
    """Copy the file, if the disk has room for it and the copy is not there yet from a start that was killed."""
    copy = path.with_name(f"{path.name}.schema{version}")
    if copy.exists():
        return
    size = path.stat().st_size
    if shutil.disk_usage(path.parent).free < ROOM * size:
        log.warning("no copy of %s is kept before it is brought over: the disk has no room for it", path)
        return
    part = copy.with_name(f"{copy.name}.part")
    part.unlink(missing_ok=True)
    os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    progress = Progress("copying the file", tell)
    with closing(sqlite3.connect(part, isolation_level=None)) as target:
        target.execute("pragma synchronous = full")
        database.backup(target, pages=COPY_PAGES, progress=lambda _, left, total: progress.report(total - left, total))
    part.rename(copy)
    log.info("a copy of the file as it was is in %s; remove it when all is well", copy)


class Progress:
    """Logs and tells now and then how far a long work has come."""

    def __init__(self, what: str, tell: Tell) -> None:
        self._what = what
        self._tell = tell
        self._told_at = float("-inf")
        self._reported_at = time.monotonic()

    def report(self, done: int, total: int) -> None:
        """Note that ``done`` of ``total`` are done."""
        now = time.monotonic()
        if now >= self._told_at + TELL_SECONDS:
            self._told_at = now
            self._tell(self._what, done, total)
        if now >= self._reported_at + REPORT_SECONDS:
            self._reported_at = now
            log.info("%s: %d of %d (%d %%)", self._what, done, total, 100 * done // max(total, 1))


# ── work on rows ────────────────────────────────────────────────────────────────────────────────────────────


def _move_settled(database: sqlite3.Connection, tell: Tell) -> None:
    """Move the records of settled messages into the table ``settled``."""
    (total,) = database.execute("select count(*) from message where settled_at is not null").fetchone()
    progress = Progress("moving the records of settled messages", tell)
    database.execute(
        """
        insert into counter (name, value)
        select 'next_seq', coalesce(max(seq), 0) + 1 from message
        where true
        on conflict (name) do update set value = max(value, excluded.value)
        """
    )
    moved = 0
    while moved < total:
        progress.report(moved, total)
        database.execute("begin immediate")
        database.execute("create temp table if not exists moving (seq integer primary key)")
        database.execute("delete from moving")
        database.execute(
            "insert into moving select seq from message where settled_at is not null limit ?", (STEP_ROWS,)
        )
        database.execute(
            """
            insert into settled (queue, id, outcome, digest, settled_at, life, delivery, seq)
            select queue, id, state, digest, settled_at, life, iif(deliveries > 0, coalesce(delivery, 0), null), seq
            from message
            where seq in (select seq from moving)
            """
        )
        database.execute(
            """
            insert into result (seq, result, error)
            select seq, result, error
            from message
            where seq in (select seq from moving) and (result is not null or error is not null)
            """
        )
        moved += database.execute("delete from message where seq in (select seq from moving)").rowcount
        database.execute("commit")


_LAST_ID: Final = "select queue, id from known_id order by queue desc, id desc limit 1"
_COPY_IDS: Final = """
    insert into known_id (queue, id, seq, digest)
    select queue, id, seq, digest from settled_before where (queue, id) > (:queue, :id)
    union all
    select queue, id, seq, digest from message where (queue, id) > (:queue, :id)
    order by queue, id
    limit :step
    """
_COPY_OUTCOMES: Final = """
    insert into outcome (seq, queue, outcome, settled_at, life, delivery)
    select seq, queue, outcome, settled_at, life, delivery
    from settled_before
    where seq > (select coalesce(max(seq), 0) from outcome)
    order by seq
    limit :step
    """


def _copy_known_ids(database: sqlite3.Connection, tell: Tell) -> None:
    """Copy the ids of all messages into the table ``known_id``, and how they were settled into ``outcome``.

    Each table is filled in the order of its key, so that one page after the other is written. A start that was killed
    on the way is gone on with behind the last row of each table.
    """
    (settled,) = database.execute("select count(*) from settled_before").fetchone()
    (live,) = database.execute("select count(*) from message").fetchone()
    progress = Progress("copying the ids of messages", tell)
    done = 0
    for statement in (_COPY_IDS, _COPY_OUTCOMES):
        copied = STEP_ROWS
        while copied == STEP_ROWS:
            progress.report(done, 2 * settled + live)
            database.execute("begin immediate")
            queue, id = database.execute(_LAST_ID).fetchone() or (0, "")
            copied = database.execute(statement, {"queue": queue, "id": id, "step": STEP_ROWS}).rowcount
            database.execute("commit")
            done += copied


_AFTER: Final[Mapping[int, Callable[[sqlite3.Connection, Tell], None]]] = {9: _move_settled, 17: _copy_known_ids}
"""What is to be done after a script, by its number."""
