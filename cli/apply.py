"""``eoq apply``: applies each message to an SQLite file, once, with SQL."""

from __future__ import annotations

import json
import re
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NoReturn

import click

from eoq.client.blocking import Client
from eoq.errors import EoqError, Forbidden, InvalidRequest, StorageFull
from eoq.inbox.blocking import Handler, Inbox
from eoq.message import Delivery, Message
from eoq.system.sqlite import BUSY_SECONDS
from eoq.worker.in_flight import Summary

from .common import visible
from .options import queue_argument
from .work_loop import LoopOptions, loop_options, run_loop

BATCH: Final = 100
"""Messages in one transaction, where so many wait: enough that its fsync no longer counts."""
FORBIDDEN: Final = {
    "begin", "commit", "end", "rollback", "savepoint", "release", "attach", "detach", "vacuum", "pragma", "explain",
}  # fmt: skip
"""Statements that would end the transaction, leave the file, or cannot run in a transaction."""
MAKING: Final = {"create", "alter", "drop"}
"""Statements that must have run before those behind them can be checked."""

_BLANK: Final = re.compile(r"(?:\s|;|--[^\n]*(?:\n|\Z)|/\*.*?(?:\*/|\Z))*", re.DOTALL)
_WORD: Final = re.compile(r"\w*")


class FileFailed(EoqError):
    """The application's file could not be read or written. Nothing of the message was applied; try again later."""

    exit_status = 75


_FILE_ERRORS: Final[dict[int, tuple[type[EoqError], str]]] = {
    sqlite3.SQLITE_FULL: (StorageFull, "free space and start again"),
    sqlite3.SQLITE_IOERR: (FileFailed, "see to the disk and start again"),
    sqlite3.SQLITE_BUSY: (FileFailed, f"another program has kept it locked for {BUSY_SECONDS:g} s; start again later"),
    sqlite3.SQLITE_CANTOPEN: (Forbidden, "see to its permissions and those of its folder, and start again"),
    sqlite3.SQLITE_PERM: (Forbidden, "see to its permissions and start again"),
    sqlite3.SQLITE_READONLY: (Forbidden, "it, or its folder, cannot be written; see to it and start again"),
    sqlite3.SQLITE_CORRUPT: (InvalidRequest, "it is damaged; restore it from a backup"),
    sqlite3.SQLITE_NOTADB: (InvalidRequest, "it is no SQLite file; name another with --db"),
}
"""What is wrong with the file as a whole, and no message's fault."""


def file_error(db: Path, error: object) -> EoqError | None:
    """The error to end with, where ``error`` is one of the file as a whole."""
    code = getattr(error, "sqlite_errorcode", None)
    if not isinstance(error, sqlite3.Error) or code is None or code & 0xFF not in _FILE_ERRORS:
        return None
    kind, advice = _FILE_ERRORS[code & 0xFF]
    return kind(f"cannot use {db}: {error}; {advice}")


def _existing(_ctx: click.Context, _param: click.Parameter, db: Path) -> Path:
    if not db.is_file():
        raise click.BadParameter(f"there is no file {db}; create it with its tables first, or correct the name")
    return db


@click.command()
@queue_argument
@click.option(
    "--db",
    required=True,
    type=click.Path(path_type=Path),
    callback=_existing,
    metavar="APP.db",
    help="The application's SQLite file, which has to be there already.",
)
@click.option("--sql", required=True, metavar="STATEMENT", help="What to run; @FILE reads it from a file.")
@loop_options
def apply(queue: str, db: Path, sql: str, options: LoopOptions) -> None:
    """For each message of QUEUE run SQL in APP.db, exactly once, until stopped.

    STATEMENT (several are allowed) and the message's id, in the table eoq_processed, are committed in one
    transaction. So each message takes effect once, whatever is killed and whenever.

    \b
    :id :queue :attempt :enqueued_at (seconds since the epoch)
    :body      text where it is UTF-8, else a blob; of JSON take  :body ->> '$.amount'
    :headers   a JSON object
    :group     null where there is none

    A message whose SQL fails is rolled back by itself, keeps the error, and is tried again after growing waits;
    after its last attempt it is a dead letter. Statements are checked at the start. They can neither end the
    transaction nor attach files. Messages that wait share a transaction, up to 100, each in a savepoint of its own.

    SIGTERM and Ctrl-C let the transaction that runs finish. A daemon that goes away is waited for, without end, or
    for 30 seconds with --until-empty.

    \b
    sqlite3 shop.db 'create table payment (id text, amount integer)'
    eoq apply payments --db shop.db --sql "insert into payment values (:id, :body ->> '$.amount')"
    eoq apply payments --db shop.db --sql @payment.sql --until-empty
    """
    statements = list(split(_read(sql)))
    if not statements:
        raise click.UsageError("--sql has no statement")
    _check(db, statements)
    stop = threading.Event()

    def handle(tx: sqlite3.Connection, message: Message) -> None:
        values = parameters(message)
        for statement in statements:
            for _row in tx.execute(statement, values):
                pass  # a statement may return rows, and is done when all were read

    try:
        with Inbox(db) as inbox:
            guarded = _Guarded(inbox, db, stop)

            def loop(client: Client) -> Summary:
                return client.work(
                    queue,
                    handle,
                    inbox=guarded,
                    batch=BATCH,
                    prefetch=BATCH,
                    lease=options.lease,
                    until_empty=options.until_empty,
                    stop=stop,
                )

            run_loop(options, loop)
    except sqlite3.Error as error:
        _end(db, error)
    if guarded.failure is not None:
        raise guarded.failure


class _Guarded:
    """The inbox, and an end to the loop where the file as a whole fails: it would use up every message's attempts."""

    def __init__(self, inbox: Inbox, db: Path, stop: threading.Event) -> None:
        self.failure: EoqError | None = None
        self._inbox = inbox
        self._db = db
        self._stop = stop

    def process(self, message: Message, handler: Handler) -> object:
        try:
            return self._inbox.process(message, handler)
        except sqlite3.Error as error:
            self._look_at(error)
            raise

    def process_many(self, messages: Iterable[Message], handler: Handler) -> list[bytes | Exception | None]:
        try:
            outcomes = self._inbox.process_many(messages, handler)
        except sqlite3.Error as error:
            self._look_at(error)
            raise
        for outcome in outcomes:
            self._look_at(outcome)
        return outcomes

    def _look_at(self, outcome: object) -> None:
        failure = file_error(self._db, outcome)
        if failure is not None:
            self.failure = failure
            self._stop.set()


def parameters(message: Delivery) -> dict[str, Any]:
    """What the statements can name of a message."""
    try:
        body: str | bytes = message.body.decode()
    except UnicodeDecodeError:
        body = message.body
    return {
        "id": message.id,
        "queue": message.queue,
        "attempt": message.attempt,
        "enqueued_at": message.enqueued_at,
        "body": body,
        "headers": json.dumps(dict(message.headers), ensure_ascii=False),
        "group": message.group,
    }


def split(sql: str) -> Iterator[str]:
    """The statements of a text; a semicolon in a string, a comment or a trigger ends none."""
    start = 0
    for position, letter in enumerate(sql):
        if letter == ";" and sqlite3.complete_statement(sql[start : position + 1]):
            if statement := _stripped(sql[start:position]):
                yield statement
            start = position + 1
    if statement := _stripped(sql[start:]):
        yield statement


def _stripped(statement: str) -> str:
    """Without the blanks and comments before it."""
    blank = _BLANK.match(statement)
    return statement[blank.end() if blank else 0 :]


def _keyword(statement: str) -> str:
    word = _WORD.match(statement)
    return word.group().lower() if word else ""


def _read(sql: str) -> str:
    try:
        text = Path(sql[1:]).read_text("utf-8") if sql.startswith("@") else sql
        text.encode()
    except (OSError, UnicodeError) as error:
        raise click.UsageError(f"cannot read the SQL of --sql {visible(sql)}: {error}") from error
    if "\0" in text:
        raise click.UsageError("the SQL has a NUL character")
    return text


def _check(db: Path, statements: list[str]) -> None:
    """Ends with a clear error where a statement cannot run in this file. Nothing is changed: it is rolled back."""
    for statement in statements:
        if _keyword(statement) in FORBIDDEN:
            raise click.UsageError(
                f"`{_keyword(statement)}` cannot stand in --sql: its statements run within one transaction of {db}, "
                "together with the message's id"
            )
    values = parameters(Delivery(id="", queue="", body=b"", receipt=""))
    try:
        with closing(sqlite3.connect(f"{db.resolve().as_uri()}?mode=rw", uri=True, isolation_level=None)) as database:
            database.execute("begin")
            for statement in statements:
                try:
                    database.execute("explain " + statement, values).fetchone()
                    if _keyword(statement) in MAKING:
                        database.execute(statement, values)
                except (sqlite3.Error, sqlite3.Warning) as error:
                    if file_error(db, error) is not None:
                        raise
                    raise click.UsageError(f"--sql cannot run in {db}: {error}\n{statement}") from error
            database.execute("rollback")
    except sqlite3.Error as error:
        _end(db, error)


def _end(db: Path, error: sqlite3.Error) -> NoReturn:
    raise file_error(db, error) or FileFailed(f"cannot use {db}: {error}") from error
