"""`eoq forward` or `eoq ingest` that kills itself at some step: before or after a statement, a commit or a request.

python -m tests.bridge_kills.stepped SEED ONE_IN forward|ingest …
"""

from __future__ import annotations

import importlib.util
import os
import random
import runpy
import sys
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

import psycopg

from eoq.transport.aio_channel import AsyncChannel
from tests.bridge_kills.parts import die


def _dying(work: Callable[..., Any], dice: Callable[[], bool]) -> Callable[..., Any]:
    @wraps(work)
    def run(*args: Any, **keywords: Any) -> Any:
        if dice():
            die()
        result = work(*args, **keywords)
        if dice():
            die()
        return result

    return run


def _dying_later(work: Callable[..., Awaitable[Any]], dice: Callable[[], bool]) -> Callable[..., Awaitable[Any]]:
    @wraps(work)
    async def run(*args: Any, **keywords: Any) -> Any:
        if dice():
            die()
        result = await work(*args, **keywords)
        if dice():
            die()
        return result

    return run


if __name__ == "__main__":
    seed, one_in = int(sys.argv[1]), int(sys.argv[2])
    rng = random.Random(seed * 1000 + int(os.environ["START"]))

    def dice() -> bool:
        return rng.randrange(one_in) == 0

    # Steps of the library, not of eoq's own code: statements (begin and commit among them), and requests to the daemon.
    for kind in (psycopg.Connection, psycopg.AsyncConnection):
        kind.wait = (_dying if kind is psycopg.Connection else _dying_later)(kind.wait, dice)  # type: ignore[method-assign,assignment] # to be killed there
    if importlib.util.find_spec("nats") is not None:
        import nats.aio.client

        nats.aio.client.Client.publish = _dying_later(nats.aio.client.Client.publish, dice)  # type: ignore[method-assign,assignment] # to be killed there
    AsyncChannel.run = _dying_later(AsyncChannel.run, dice)  # type: ignore[method-assign,assignment] # to be killed there
    sys.argv = ["eoq", *sys.argv[3:]]
    runpy.run_module("eoq.cli", run_name="__main__", alter_sys=True)
