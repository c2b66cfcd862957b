"""The audit: what the daemon's file and the files of applications say about the same messages.

It only reads, and both may be in use. For each question the file is read first that knows of a message later: what the
daemon knows as acked, an inbox has committed before.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias

from ...errors import InvalidRequest, NotFound
from ..store.sqlite.database import storage_error
from .snapshots import Watch, open_read_only, require_current

Kind: TypeAlias = Literal["acked_not_processed", "processed_not_acked", "sent_not_removed", "set_aside"]

STEP: Final = 500
"""How many ids are compared at once."""
LAG_SECONDS: Final = 3600.0
"""How long before its ack a message may have been processed, at most, so that an inbox has surely not forgotten it."""


class Disagreement(NamedTuple):
    """A message about which two files do not agree, or that an operator has to see to."""

    kind: Kind
    queue: str
    id: str
    file: str
    """The file of the application."""


class Audit(NamedTuple):
    """What was compared, and what was found."""

    findings: list[Disagreement]
    compared: int
    """Acked messages that were looked for in the inboxes."""
    forgotten: int
    """Acked messages that an inbox may have forgotten, so that nothing can be said about them."""


def audit(database: Path, applications: Sequence[Path], watch: Watch) -> Audit:
    """Compare the daemon's file with the inboxes and outboxes in the files of ``applications``.

    A queue is compared where one of the inboxes has processed messages of it. All inboxes of its workers have to be
    named, since each has a part of the ids. Raises `NotFound` where a file is missing, `InvalidRequest` where one is no
    file of an application or the daemon's file is of an earlier version, and errors of the storage.
    """
    with ExitStack() as opened:
        file = opened.enter_context(closing(open_read_only(database)))
        require_current(file, database)
        daemon = _DaemonFile(file, database)
        files = [_Application(opened.enter_context(closing(_open(path))), path) for path in applications]
        return _compare(daemon, files, watch)


class _DaemonFile:
    """The daemon's file, as far as the audit reads it."""

    def __init__(self, database: sqlite3.Connection, path: Path) -> None:
        self._database = database
        self._path = path
        (self.identity,) = self._rows("select identity from daemon")[0]

    def _rows(self, sql: str, *values: object) -> list[tuple[object, ...]]:
        try:
            return self._database.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise storage_error(error, self._path) from error

    def acked(self, queue: str) -> Iterator[dict[str, float]]:
        """Yield the ids of the messages that were acked, with the moments, in steps."""
        last = ""
        while True:
            rows = self._rows(
                """
                select id, settled_at, outcome
                from settled
                where queue = (select number from queue where name = ?) and id > ?
                order by id
                limit ?
                """,
                queue,
                last,
                STEP,
            )
            if not rows:
                return
            last = str(rows[-1][0])
            yield {str(id): float(str(moment)) for id, moment, outcome in rows if outcome == "done"}

    def waiting(self, queue: str, ids: Iterable[str]) -> list[str]:
        """Return those of the ids whose messages are not settled."""
        rows = self._rows(
            """
            select message.id
            from json_each(?) as asked
            cross join known_id
              on known_id.queue = (select number from queue where name = ?) and known_id.id = asked.value
            cross join message on message.seq = known_id.seq
            """,
            json.dumps(list(ids)),
            queue,
        )
        return [str(id) for (id,) in rows]

    def known(self, queue: str, ids: Iterable[str]) -> list[str]:
        """Return those of the ids that are stored, settled or not."""
        rows = self._rows(
            """
            select known_id.id
            from json_each(?) as asked
            cross join known_id
              on known_id.queue = (select number from queue where name = ?) and known_id.id = asked.value
            """,
            json.dumps(list(ids)),
            queue,
        )
        return [str(id) for (id,) in rows]


def _open(path: Path) -> sqlite3.Connection:
    if not path.is_file():
        raise NotFound(f"{path} does not exist, or is no file; name the file of an application")
    database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
    database.text_factory = lambda raw: raw.decode(errors="replace")  # another program may have written anything
    return database


class _Application:
    """The inbox and the outbox in the file of an application. Either may be missing.

    Any program may have written the rows. Those with ids or moments of other types are left out.
    """

    def __init__(self, database: sqlite3.Connection, path: Path) -> None:
        self.path = path
        self._database = database
        names = self._rows("select name from sqlite_schema where type = 'table'")
        self._tables = {name for (name,) in names}
        if not self._tables & {"eoq_processed", "eoq_outbox"}:
            raise InvalidRequest(f"{path} has neither an inbox nor an outbox of eoq; name the file of an application")

    def _rows(self, sql: str, *values: object) -> list[tuple[object, ...]]:
        try:
            return self._database.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise InvalidRequest(
                f"{self.path} could not be read as the file of an application ({error}); name another, or restore it"
            ) from error

    def streams(self, identity: str) -> dict[str, float]:
        """Return the queues of that daemon's file that the inbox knows, each with the moment up to which it forgets."""
        if not {"eoq_processed", "eoq_watermark"} <= self._tables:
            return {}
        rows = self._rows(
            """
            select queue, max(cast(forgotten_to as real))
            from eoq_watermark
            where source in (?, '') and typeof(queue) = 'text'
            group by queue
            """,
            identity,
        )
        return {str(queue): float(str(moment)) for queue, moment in rows}

    def processed(self, queue: str, ids: Iterable[str]) -> set[str]:
        """Return those of the ids that were processed."""
        rows = self._rows(
            """
            select eoq_processed.id
            from json_each(?) as asked
            cross join eoq_processed on eoq_processed.queue = ? and eoq_processed.id = asked.value
            """,
            json.dumps(list(ids)),
            queue,
        )
        return {str(id) for (id,) in rows}

    def all_processed(self, queue: str) -> Iterator[list[str]]:
        """Yield all processed ids of a queue, in steps."""
        last = ""
        while rows := self._rows(
            """
            select id
            from eoq_processed
            where queue = ? and id > ? and typeof(id) = 'text'
            order by id
            limit ?
            """,
            queue,
            last,
            STEP,
        ):
            last = str(rows[-1][0])
            yield [str(id) for (id,) in rows]

    def outbox(self) -> Iterator[tuple[str, str, bool]]:
        """Yield queue and id of each row of the outbox, and whether it was set aside."""
        if "eoq_outbox" not in self._tables:
            return
        last = -(2**63)
        while rows := self._rows(
            """
            select seq, cast(queue as text), cast(id as text), error is not null
            from eoq_outbox
            where seq > ? and typeof(seq) = 'integer'
            order by seq
            limit ?
            """,
            last,
            STEP,
        ):
            last = int(str(rows[-1][0]))
            for _, queue, id, is_aside in rows:
                yield str(queue), str(id), bool(is_aside)


def _compare(daemon: _DaemonFile, applications: Sequence[_Application], watch: Watch) -> Audit:
    streams = [(application, application.streams(str(daemon.identity))) for application in applications]
    queues = sorted({queue for _, known in streams for queue in known})
    findings: list[Disagreement] = []
    compared = forgotten = 0
    for number, queue in enumerate(queues):
        watch("comparing", number, len(queues))
        consumers = [(application, known[queue]) for application, known in streams if queue in known]
        surely_kept = max(moment for _, moment in consumers) + LAG_SECONDS
        names = ", ".join(str(application.path) for application, _ in consumers)
        for acked in daemon.acked(queue):
            missing = set(acked)
            for application, _ in consumers:
                missing -= application.processed(queue, missing)
            unknown = {id for id in missing if acked[id] < surely_kept}
            compared += len(acked)
            forgotten += len(unknown)
            findings += [Disagreement("acked_not_processed", queue, id, names) for id in sorted(missing - unknown)]
        for application, _ in consumers:
            for ids in application.all_processed(queue):
                waiting = daemon.waiting(queue, ids)
                findings += [Disagreement("processed_not_acked", queue, id, str(application.path)) for id in waiting]
    for application in applications:
        findings += _of_outbox(daemon, application)
    watch("comparing", 1, 1)
    return Audit(findings, compared, forgotten)


def _of_outbox(daemon: _DaemonFile, application: _Application) -> Iterator[Disagreement]:
    for queue, id, is_aside in application.outbox():
        if is_aside:
            yield Disagreement("set_aside", queue, id, str(application.path))
        elif daemon.known(queue, [id]):
            yield Disagreement("sent_not_removed", queue, id, str(application.path))
