"""The place of a bridge: a URL, or the environment variable that holds it, and the engine that is there."""

from __future__ import annotations

import os
import re

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
            "postgresql://USER:PASSWORD@HOST/DATABASE or nats://USER:PASSWORD@HOST/STREAM"
        )
    return found


def open_engine(url: str, partitions: int | None = None, partition: str | None = None) -> Engine:
    """Return the engine of a URL. Without a scheme of another engine it is a connection string of PostgreSQL.

    ``partitions`` is how many a queue has in a stream, and ``partition`` which of them belong to this machine, such as
    ``0-3``.

    Raises `InvalidRequest` if it cannot be read, without a word of it, and without the packages that it needs.
    """
    if url.startswith(("nats:", "tls:")):
        from .jetstream.engine import JetStreamEngine
        from .jetstream.wire.address import read_address
        from .jetstream.wire.names import Partitions

        return JetStreamEngine(read_address(url), Partitions.read(partitions, partition))
    if (scheme := re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", url)) and scheme[1] not in ("postgresql", "postgres"):
        raise InvalidRequest(
            f"eoq moves messages through PostgreSQL or NATS JetStream, and knows no {scheme[1]}://; write "
            "postgresql://USER@HOST/DATABASE or nats://HOST:4222/STREAM"
        )
    from .postgres.engine import PostgresEngine

    if partitions is not None or partition is not None:
        raise InvalidRequest("only a stream of NATS has partitions; PostgreSQL gives each message to one machine")
    return PostgresEngine(url)
