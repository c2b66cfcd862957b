"""The names of ingesters: a lock of the server that a name's holder has for as long as its connection lives."""

from __future__ import annotations

import time
from typing import Any, Final

import psycopg

from . import statements

NAME_SECONDS: Final = 2.0
"""How long to wait for a name, which its last holder may just have left."""
NAME_PAUSE: Final = 0.02
"""Seconds between two tries for it."""


def take_name(connection: psycopg.Connection[tuple[Any, ...]], queue: str, owner: str) -> bool:
    """Take the name ``owner`` for a queue, and return whether it was free.

    The server may need a moment to notice that the last holder has gone.
    """
    until = time.monotonic() + NAME_SECONDS
    while True:
        ((taken,),) = connection.execute(statements.LOCK_NAME, (f"{queue} {owner}",)).fetchall()
        if taken or time.monotonic() > until:
            return bool(taken)
        time.sleep(NAME_PAUSE)  # a lock that is waited for would end the transaction where it is not given
