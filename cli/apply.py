"""``eoq apply``: apply each message to a SQLite file exactly once, with SQL."""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any, Final, NoReturn, Protocol

import click

from eoq.client.blocking import Client
from eoq.errors import EoqError, Forbidden, InvalidRequest, StorageFull
from eoq.inbox.blocking import Inbox
from eoq.message import Delivery, Message
from eoq.system.sqlite import BUSY_SECONDS
from eoq.worker.handlers import BatchProcessor
from eoq.worker.in_flight import Summary

from .apply_parameters import parameters
from .common import visible
from .databases import Database, DatabaseType, is_url
from .options import queue_argument
from .work_loop import LoopOptions, loop_options, run_loop

BATCH: Final = 100
"""How many waiting messages share a transaction at most: so many that the time of its fsync no longer matters."""
FORBIDDEN: Final = {
    "begin", "commit", "end", "rollback", "savepoint", "release", "attach", "detach", "vacuum", "pragma", "explain",
}  # fmt: skip
"""Statements that would end the transaction or use another file, or that cannot run in a transaction."""
SCHEMA_CHANGES: Final = {"create", "alter", "drop"}
"""Statements that must have run before the ones after them can be checked."""

_BLANK: Final = re.compile(r"(?:\s|;|--[^\n]*(?:\n|\Z)|/\*.*?(?:\*/|\Z))*", re.DOTALL)
_WORD: Final = re.compile(r"\w*")


class FileFailed(EoqError):
    """The application's file could not be read or written. The message was not applied; try again later."""

    exit_status = 75


_FILE_ERRORS: Final[dict[int, tuple[type[EoqError], str]]] = {
    sqlite3.SQLITE_FULL: (StorageFull, "free space and start again"),
    sqlite3.SQLITE_IOERR: (FileFailed, "check the disk and start again"),
    sqlite3.SQLITE_BUSY: (FileFailed, f"another program kept it locked for {BUSY_SECONDS:g} s; start again later"),
    sqlite3.SQLITE_CANTOPEN: (Forbidden, "check its permissions and those of its folder, and start again"),
    sqlite3.SQLITE_PERM: (Forbidden, "check its permissions and start again"),
    sqlite3.SQLITE_READONLY: (Forbidden, "it or its folder cannot be written; check the permissions and start again"),
    sqlite3.SQLITE_CORRUPT: (InvalidRequest, "it is damaged; restore it from a backup"),
    sqlite3.SQLITE_NOTADB: (InvalidRequest, "it is no SQLite file; name another with --db"),
}
"""Errors of the file as a whole: no message causes them. Each has its error of eoq and what to do."""


def file_error(db: Path, error: object) -> EoqError | None:
    """Return the error to end the command with if ``error`` concerns the file as a whole, else None."""
    code = getattr(error, "sqlite_errorcode", None)
    if not isinstance(error, sqlite3.Error) or code is None or code & 0xFF not in _FILE_ERRORS:
        return None
    kind, advice = _FILE_ERRORS[code & 0xFF]
    return kind(f"cannot use {db}: {error}; {advice}")


def _existing(_ctx: click.Context, _param: click.Parameter, db: str) -> Database:
    if is_url(db):
        return DatabaseType().convert(db, _param, _ctx)
    if not Path(db).is_file():
        raise click.BadParameter(f"there is no file {db}; create it with its tables first, or correct the name")
    return Path(db)


@click.command()
@queue_argument
@click.option(
    "--db",
    required=True,
    callback=_existing,
    metavar="APP.db",
    help="The application's SQLite file, which must exist, or the URL of its PostgreSQL database, without a password.",
)
@click.option("--sql", required=True, metavar="STATEMENT", help="What to run; @FILE reads it from a file.")
@click.option("--foreign-keys", is_flag=True, help="Enforce the foreign keys of APP.db.")
@loop_options
def apply(queue: str, db: Database, sql: str, foreign_keys: bool, options: LoopOptions) -> None:
    """For each message of QUEUE run SQL in APP.db, exactly once, until stopped.

    STATEMENT (several are allowed) and the message's id, in the table eoq_processed, are committed in one
    transaction. So each message takes effect once, whatever is killed at any moment.

    \b
    :id :queue :attempt :enqueued_at (seconds since the epoch)
    :body      text if it is UTF-8, else a blob; a field of JSON is  :body ->> '$.amount'
    :headers   a JSON object
    :group     null if there is none

    In PostgreSQL :body is text (bytea if it is not UTF-8) and :headers jsonb, so a field of JSON is
    :body::jsonb ->> 'amount'.

    If the SQL fails for a message, only that message is rolled back. The error is kept, and the message is retried
    with growing delays; after its last attempt it is a dead letter. The statements are checked at the start. They
    cannot end the transaction or attach files. Up to 100 waiting messages share a transaction, each in a savepoint of
    its own.

    After SIGTERM or Ctrl-C the open transaction finishes. If the daemon is gone, the command waits for it: without
    limit, or 30 seconds with --until-empty.

    \b
    sqlite3 shop.db 'create table payment (id text, amount integer)'
    eoq apply payments --db shop.db --sql "insert into payment values (:id, :body ->> '$.amount')"
    eoq apply payments --db shop.db --sql @payment.sql --until-empty
    eoq apply payments --db postgresql://shop@db/shop --sql @payment.sql
    """
    text = _read(sql)
    if isinstance(db, Path):
        _run(queue, SqliteTarget(db, text, foreign_keys=foreign_keys), options)
        return
    if foreign_keys:
        raise click.UsageError("--foreign-keys is for SQLite; PostgreSQL always enforces foreign keys")
    from .apply_postgres import PostgresTarget

    _run(queue, PostgresTarget(db, text), options)


class Target(Protocol):
    """The database in which the statements run for each message."""

    def inbox(self) -> AbstractContextManager[BatchProcessor[Any]]: ...
    def handle(self, tx: Any, message: Message) -> None: ...
    def failure(self, error: object) -> EoqError | None:
        """Return the error to end the command with if ``error`` concerns the database as a whole, else None."""


def _run(queue: str, target: Target, options: LoopOptions) -> None:
    stop = threading.Event()
    try:
        with target.inbox() as inbox:
            stoppable = _StoppingInbox(inbox, target, stop)

            def loop(client: Client) -> Summary:
                return client.work(
                    queue,
                    target.handle,
                    inbox=stoppable,
                    batch=BATCH,
                    prefetch=BATCH,
                    lease=options.lease,
                    until_empty=options.until_empty,
                    stop=stop,
                )

            run_loop(options, loop)
    except EoqError:
        raise
    except Exception as error:
        failure = target.failure(error)
        if failure is None:
            raise
        raise failure from error
    if stoppable.failure is not None:
        raise stoppable.failure


class SqliteTarget:
    """A SQLite file, and the statements that are to run there."""

    def __init__(self, db: Path, sql: str, *, foreign_keys: bool) -> None:
        self._db = db
        self._foreign_keys = foreign_keys
        self._statements = list(split(sql))
        if not self._statements:
            raise click.UsageError("--sql has no statement")
        _check(db, self._statements)

    def inbox(self) -> Inbox:
        """Return an inbox of the file."""
        return Inbox(self._db, foreign_keys=self._foreign_keys)

    def handle(self, tx: sqlite3.Connection, message: Message) -> None:
        """Run the statements for a message."""
        values = parameters(message)
        for statement in self._statements:
            for _row in tx.execute(statement, values):
                pass  # a statement that returns rows has ended only when all were read

    def failure(self, error: object) -> EoqError | None:
        """Return the error to end the command with if ``error`` concerns the file as a whole, else None."""
        return file_error(self._db, error)


class _StoppingInbox:
    """An inbox that stops the loop if the database fails, because that would use up the attempts of all messages."""

    def __init__(self, inbox: BatchProcessor[Any], target: Target, stop: threading.Event) -> None:
        self.failure: EoqError | None = None
        self._inbox = inbox
        self._target = target
        self._stop = stop

    def process(self, message: Message, handler: Callable[[Any, Message], object]) -> object:
        try:
            return self._inbox.process(message, handler)
        except Exception as error:
            self._stop_if_failed(error)
            raise

    def process_many(self, messages: Iterable[Message], handler: Callable[[Any, Message], object]) -> Sequence[object]:
        try:
            results = self._inbox.process_many(messages, handler)
        except Exception as error:
            self._stop_if_failed(error)
            raise
        for result in results:
            self._stop_if_failed(result)
        return results

    def _stop_if_failed(self, result: object) -> None:
        failure = self._target.failure(result)
        if failure is not None:
            self.failure = failure
            self._stop.set()


def split(sql: str) -> Iterator[str]:
    """Yield the statements of a text. A semicolon in a string, a comment or a trigger does not end a statement."""
    start = 0
    for position, letter in enumerate(sql):
        if letter == ";" and sqlite3.complete_statement(sql[start : position + 1]):
            if statement := _stripped(sql[start:position]):
                yield statement
            start = position + 1
    if statement := _stripped(sql[start:]):
        yield statement


def _stripped(statement: str) -> str:
    """Return a statement without the blanks and comments before it."""
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
    """Raise a clear error if a statement cannot run in this file. Change nothing: the check is rolled back."""
    for statement in statements:
        if _keyword(statement) in FORBIDDEN:
            raise click.UsageError(
                f"`{_keyword(statement)}` is not allowed in --sql: its statements run inside one transaction of {db}, "
                "together with the message's id"
                + ("; --foreign-keys enforces foreign keys" if _keyword(statement) == "pragma" else "")
            )
    values = parameters(Delivery(id="", queue="", body=b"", receipt=""))
    try:
        with closing(sqlite3.connect(f"{db.resolve().as_uri()}?mode=rw", uri=True, isolation_level=None)) as database:
            database.execute("begin")
            for statement in statements:
                try:
                    database.execute("explain " + statement, values).fetchone()
                    if _keyword(statement) in SCHEMA_CHANGES:
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
