"""The place of a bridge: a URL, or the environment variable that holds it, and the engine that is there."""

from __future__ import annotations

import os

from ..errors import InvalidRequest
from .engine import Engine


def find_url(url: str | None, variable: str | None) -> str:
    """Return the URL of the engine. Raises `InvalidRequest` unless exactly one of the two names it."""
    if (url is None) == (variable is None):
        raise InvalidRequest("give either the URL of the database, or the name of the variable that holds it")
    if variable is None:
        return url or ""
    found = os.environ.get(variable)
    if not found:
        raise InvalidRequest(
            f"the environment variable {variable} is not set: put the URL of the database in it, such as "
            "postgresql://USER:PASSWORD@HOST/DATABASE"
        )
    return found


def open_engine(url: str) -> Engine:
    """Return the engine of a URL. Without a scheme of another engine it is a connection string of PostgreSQL.

    Raises `InvalidRequest` if it cannot be read, without a word of it, and without the packages that it needs.
    """
    from .postgres.engine import PostgresEngine

    return PostgresEngine(url)
