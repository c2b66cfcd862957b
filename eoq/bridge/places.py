"""The database of a bridge: its URL, or the name of the environment variable that holds the URL."""

from __future__ import annotations

import os

from ..errors import InvalidRequest


def find_url(url: str | None, variable: str | None) -> str:
    """Return the URL of the database. Raises `InvalidRequest` unless exactly one of the two names it."""
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
