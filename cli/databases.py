"""The databases of applications on a command line: a file, or the URL of PostgreSQL without a password."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import click

Database: TypeAlias = Path | str
"""The path of a SQLite file, or the URL of a PostgreSQL database."""


def is_url(text: str) -> bool:
    """Return whether an argument is the URL of a PostgreSQL database."""
    return text.startswith(("postgresql:", "postgres:"))


class DatabaseType(click.ParamType):  # type: ignore[type-arg] # generic only in the stubs of click 8.2
    """An existing file, or a URL. Raises `InvalidRequest` for a URL with a password, or without the driver."""

    name = "database"

    def convert(self, value: str | Path, param: click.Parameter | None, ctx: click.Context | None) -> Database:
        if isinstance(value, str) and is_url(value):
            from eoq.postgres.driver import refuse_password

            refuse_password(value)
            return value
        path: Path = click.Path(exists=True, dir_okay=False, path_type=Path).convert(value, param, ctx)
        return path


def shown(database: Database) -> str:
    """Return the name of a database as it may be printed."""
    if isinstance(database, Path):
        return str(database)
    from eoq.postgres.driver import shown as shown_url

    return shown_url(database)
