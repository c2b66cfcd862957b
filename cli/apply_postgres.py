"""``eoq apply`` for PostgreSQL: its SQL is split and checked here, and runs with psycopg's parameters."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import click
import psycopg

from eoq.errors import EoqError, InvalidRequest
from eoq.message import Delivery, Message
from eoq.outcomes import is_outage
from eoq.postgres.driver import shown, with_defaults
from eoq.postgres.inbox import PgInbox

from .apply_parameters import parameters

FORBIDDEN: Final = {
    "abort", "begin", "commit", "copy", "end", "prepare", "release", "rollback", "savepoint", "start", "vacuum",
}  # fmt: skip
"""Statements that would end the transaction, or that cannot run in one or without a client of their own."""
EXPLAINED: Final = {"delete", "insert", "merge", "select", "update", "values", "with"}
"""Statements that the database can plan without running them."""
SCHEMA_CHANGES: Final = {"alter", "create", "drop"}
"""Statements that must have run before the ones after them can be checked."""
_TYPES: Final = {
    "attempt": "integer",
    "body": "text",
    "enqueued_at": "double precision",
    "group": "text",
    "headers": "jsonb",
    "id": "text",
    "queue": "text",
}
_TOKEN: Final = re.compile(
    rf"""
      (?P<quoted> \b[eE]'(?:[^'\\]|''|\\.)*' | '(?:[^']|'')*' | "(?:[^"]|"")*" )
    | (?<!\w)\$(?P<tag>\w*)\$.*?\$(?P=tag)\$
    | (?P<blank> --[^\n]* | /\*.*?\*/ )
    | (?P<cast> :: )
    | :(?P<name> {"|".join(_TYPES)} )\b
    | (?P<end> ; )
    """,
    re.DOTALL | re.VERBOSE,
)
_WORD: Final = re.compile(r"\s*(\w*)")


class Statement:
    """A statement of ``--sql``. A parameter has the type of its field, so that it may be used in several ways."""

    def __init__(self, text: str, shown: str) -> None:
        self.shown = shown
        found = _WORD.match(text)
        self.keyword = found.group(1).lower() if found else ""
        self.text = text
        self._of_bytes = text.replace("%(body)s::text", "%(body)s::bytea")

    def run(self, tx: psycopg.Connection[Any], values: dict[str, Any], before: str = "") -> None:
        """Execute it. A body that is no text is given as ``bytea``."""
        psycopg.Cursor(tx).execute(
            before + (self._of_bytes if isinstance(values["body"], bytes) else self.text), values
        )


def split(sql: str) -> Iterator[Statement]:
    """Yield the statements of a text, with psycopg's placeholders in place of ``:id`` and the others."""
    text, shown, position = "", "", 0
    for token in _TOKEN.finditer(sql):
        between = sql[position : token.start()]
        text, shown, position = text + between.replace("%", "%%"), shown + between, token.end()
        if token["end"]:
            if text.strip():
                yield Statement(text.strip(), shown.strip())
            text, shown = "", ""
            continue
        shown += token[0]
        if token["name"]:
            text += f"%({token['name']})s::{_TYPES[token['name']]}"
        elif token["blank"]:
            text += " "
        else:
            text += token[0].replace("%", "%%")
    text, shown = text + sql[position:].replace("%", "%%"), shown + sql[position:]
    if text.strip():
        yield Statement(text.strip(), shown.strip())


class PostgresTarget:
    """The PostgreSQL database of a URL, and the statements that are to run there."""

    def __init__(self, url: str, sql: str) -> None:
        self.name = shown(url)
        self._url = url
        self._statements = list(split(sql))
        if not self._statements:
            raise click.UsageError("--sql has no statement")
        self._check()

    def inbox(self) -> PgInbox:
        """Return an inbox of the database."""
        return PgInbox(self._url)

    def handle(self, tx: psycopg.Connection[Any], message: Message) -> None:
        """Run the statements for a message."""
        values = _parameters(message)
        for statement in self._statements:
            statement.run(tx, values)

    def failure(self, error: object) -> EoqError | None:
        """Return the error to end the command with if ``error`` concerns the database as a whole, else None."""
        if isinstance(error, psycopg.Error) and is_outage(error):
            return DatabaseFailed(f"cannot use {self.name}: {error}".strip() + "; check it and start again")
        return None

    def _check(self) -> None:
        """Raise a clear error if a statement cannot run. Change nothing: the check is rolled back."""
        for statement in self._statements:
            if statement.keyword in FORBIDDEN:
                raise click.UsageError(
                    f"`{statement.keyword}` is not allowed in --sql: its statements run inside one transaction of "
                    f"{self.name}, together with the message's id"
                )
        values = _parameters(Delivery(id="", queue="", body=b"{}", receipt=""))
        try:
            with psycopg.connect(with_defaults(self._url)) as connection:
                for statement in self._statements:
                    self._check_one(connection, statement, values)
                connection.rollback()
        except psycopg.Error as error:
            raise self.failure(error) or DatabaseFailed(f"cannot use {self.name}: {error}") from error

    def _check_one(self, connection: psycopg.Connection[Any], statement: Statement, values: dict[str, Any]) -> None:
        try:
            if statement.keyword in EXPLAINED:
                statement.run(connection, values, "explain ")
            elif statement.keyword in SCHEMA_CHANGES:
                statement.run(connection, values)
        except psycopg.Error as error:
            if self.failure(error) is not None:
                raise
            raise click.UsageError(f"--sql cannot run in {self.name}: {error}\n{statement.shown}") from error


class DatabaseFailed(InvalidRequest):
    """The database could not be reached or used. The message was not applied; try again later."""

    exit_status = 75


def _parameters(message: Delivery) -> dict[str, Any]:
    values = parameters(message)
    if isinstance(values["body"], str) and "\0" in values["body"]:
        values["body"] = message.body  # PostgreSQL has no NUL in a text
    return values
