"""psycopg, the driver of PostgreSQL: what is said without it, which names of databases may be shown, and its errors."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

from ..errors import InvalidRequest
from ..outcomes import Reject, Retry
from ..protocol.limits import MAX_ERROR


class DriverMissing(InvalidRequest, ImportError):
    """psycopg is not installed, or cannot be loaded."""


_failure: ImportError | None = None
try:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict, make_conninfo
except ImportError as error:
    _failure = error
if _failure is not None:
    raise DriverMissing(
        f"PostgreSQL needs the driver psycopg 3, which cannot be loaded ({_failure}): pip install 'eoq[postgres]'"
    )

CONNECT_SECONDS: Final = 10
"""How long opening a connection may take, unless the connection string says otherwise."""
FROZEN_SECONDS: Final = 30
"""After how long a network that confirms nothing counts as lost."""
_SECRETS: Final = ("password", "sslpassword")
_CONFLICTS: Final = ("40001", "40P01")
"""Serialization failure, deadlock."""
_TRIES: Final = 5
"""How often a transaction is tried that conflicts with others."""
_PAUSE: Final = 0.02
"""Seconds before the second try, on average. They double with each further one."""


def read_conninfo(conninfo: str) -> dict[str, str]:
    """Return the settings of a connection string: a URL, or ``host=… dbname=…``, as libpq reads them.

    Raises `InvalidRequest` without a word of the string, which may have a password.
    """
    settings: dict[str, str] | None = None
    with suppress(psycopg.Error, UnicodeError):  # their texts repeat a part of the string, so no chain may lead to it
        settings = {name: str(value) for name, value in conninfo_to_dict(conninfo).items() if value is not None}
    if settings is None or not _is_plain(settings):
        raise InvalidRequest(
            "the connection string of the database cannot be read: write postgresql://USER@HOST/DATABASE or "
            "`service=NAME`, and characters such as @ / : in a name as %40 %2F %3A"
        )
    return settings


def _is_plain(settings: dict[str, str]) -> bool:
    # A password with a slash that is not written as %2F ends up in the port and the name of the database.
    ports = settings.get("port", "").split(",")
    names = (settings.get("host", ""), settings.get("dbname", ""))
    return all(not port or port.isdecimal() for port in ports) and not any("@" in name for name in names)


def shown(conninfo: str) -> str:
    """Return the name of a database as it may be printed and logged: without user and password."""
    settings = read_conninfo(conninfo)
    if "service" in settings and not settings.get("dbname"):
        return f"postgresql service {settings['service']}"
    host = settings.get("host") or settings.get("hostaddr") or "local"
    port = f":{settings['port']}" if settings.get("port") else ""
    return f"postgresql://{host}{port}/{settings.get('dbname', '')}"


def refuse_password(conninfo: str) -> None:
    """Raise `InvalidRequest` for a connection string with a password on a command line, where all users can read it."""
    settings = read_conninfo(conninfo)
    if any(name in settings for name in _SECRETS):
        raise InvalidRequest(
            "every user of this machine can read a password on a command line: leave it out of the URL, and put it in "
            "~/.pgpass (PGPASSFILE), in a service (postgresql:///?service=NAME) or in the variable PGPASSWORD"
        )


def with_defaults(conninfo: str) -> str:
    """Return the connection string for a connection that eoq opens."""
    defaults = {
        "connect_timeout": str(CONNECT_SECONDS),
        "fallback_application_name": "eoq",
        "tcp_user_timeout": str(FROZEN_SECONDS * 1000),
    }
    return make_conninfo("", **{**defaults, **read_conninfo(conninfo)})


def encoding_of(connection: psycopg.BaseConnection[Any]) -> str:
    """Return the encoding of the texts of a database."""
    return connection.info.parameter_status("server_encoding") or "UTF8"


def refuse_encoding(connection: psycopg.BaseConnection[Any]) -> None:
    """Raise `InvalidRequest` for a database that takes any bytes as text: nobody knows what an id in it means."""
    if encoding_of(connection) == "SQL_ASCII":
        raise InvalidRequest(
            "the database has the encoding SQL_ASCII, in which texts are any bytes; create one with `encoding 'UTF8'`"
        )


def storable_error(text: str, connection: psycopg.BaseConnection[Any]) -> str:
    """Return the text of an error as a text of a database, which has no NUL and no lone surrogates. It may be cut."""
    encoding = "utf-8" if encoding_of(connection) == "UTF8" else "ascii"
    errors = "replace" if encoding == "utf-8" else "backslashreplace"
    return text[:MAX_ERROR].replace("\0", "·").encode(encoding, errors).decode()


def error_of_database(error: BaseException | None) -> psycopg.Error | None:
    """Return psycopg's error behind the one that a library raised in its place, or None."""
    while error is not None and not isinstance(error, psycopg.Error):
        if isinstance(error, Reject | Retry):
            return None
        error = getattr(error, "orig", None) or error.__cause__
    return error


def is_conflict(error: BaseException) -> bool:
    """Return whether a transaction failed only because of another one at the same time, so that it is to be repeated.

    That is a serialization failure, a deadlock, or the same message processed meanwhile by another worker.
    """
    found = error_of_database(error)
    if found is None:
        return isinstance(error, Conflict)
    if found.sqlstate == "23505":
        return found.diag.table_name == "eoq_processed"
    return found.sqlstate in _CONFLICTS


def cut(connection: psycopg.BaseConnection[Any]) -> None:
    """Cut a forked child off from a connection of its parent, so that nothing it does there reaches the database."""
    with suppress(psycopg.Error):  # it is closed
        nothing = os.open(os.devnull, os.O_RDWR)
        try:
            os.dup2(nothing, connection.pgconn.socket)
        finally:
            os.close(nothing)


class Conflict(Exception):
    """Raised where another transaction has deleted what this one has read."""


def conflict_pauses() -> Iterator[float | None]:
    """Yield the seconds before each next try of a transaction, and None when there is none."""
    for number in range(_TRIES - 1):
        yield _PAUSE * 2**number * random.uniform(0.5, 1.5)  # noqa: S311 # no secret
    yield None
