"""The callers' side of the dedup service: run the function of a key once, and return its output from then on.

The first caller of a key runs; the others wait for it and get the output that it stored. A caller that dies opens the
key again. So the function may run twice if its process is killed while it runs: what it does elsewhere must be
idempotent itself, under the same key. (Idempotency keys of web services work like this; here the daemon of this machine
keeps them.)
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, Literal

from ..backoff import DAEMON_WIDE, pauses
from ..errors import EoqError, LeaseLost, MessageTooLarge, Overloaded
from ..ids import new_id
from ..message import encode_payload
from ..protocol import calls
from ..protocol.calls import Call, OnceOutcome
from ..protocol.limits import MAX_OUTPUT, POLL_SECONDS, REPEAT_SECONDS
from ..protocol.validation import check_ttl
from ..system.aio_repeat import repeating
from ..transport.aio_channel import AsyncChannel

log = logging.getLogger("eoq.once")

HEARTBEAT_SECONDS: Final = 5.0
"""How often a caller that runs tells the daemon so. A daemon that was restarted waits 30 s for it."""


async def once(
    channel: AsyncChannel,
    key: str,
    function: Callable[[], Awaitable[object]],
    *,
    ttl: float | None,
    fingerprint: str | None,
    wait: float | None,
) -> bytes:
    """Run ``function`` unless ``key`` is done, and return its output. `AsyncClient.once` says what it promises."""

    async def run() -> tuple[OnceOutcome, Literal[True]]:
        returned = await function()
        output = b"" if returned is None else encode_payload(returned)[0]
        return OnceOutcome(0, output if len(output) <= MAX_OUTPUT else None, len(output)), True

    outcome = await once_status(channel, key, run, ttl=ttl, fingerprint=fingerprint, wait=wait)
    if outcome.status:
        raise EoqError(
            f"the key {key!r} stands for a command that ended with status {outcome.status}, kept by `eoq once "
            "--keep-failure`; use another key for this function"
        )
    if outcome.output is None:
        raise MessageTooLarge(
            f"the key {key!r} is done and will not run again, but its output had {outcome.output_bytes:,} bytes, and "
            f"{MAX_OUTPUT:,} can be kept; have it write to a file and return its name"
        )
    return outcome.output


async def once_status(
    channel: AsyncChannel,
    key: str,
    run: Callable[[], Awaitable[tuple[OnceOutcome, bool]]],
    *,
    ttl: float | None,
    fingerprint: str | None,
    wait: float | None,
    token: str | None = None,
) -> OnceOutcome:
    """Return the outcome of ``run``, now or from its first caller.

    ``run`` also returns whether to keep the outcome. Where it is not kept, or where ``run`` raises, the key is opened
    again. ``token`` is that of an earlier request for the key by this caller.
    """
    token = new_id() if token is None else token
    check_ttl(ttl)
    if (found := await _wait_for_key(channel, key, token, fingerprint, wait)) is not None:
        return found

    async def heartbeat() -> None:
        try:
            found = await channel.run(calls.once(key, token, fingerprint, 0.0))
            if found.state != "run":
                raise LeaseLost(f"the key {key!r} was taken by another caller")
        except EoqError as error:
            # The function cannot be stopped. The daemon decides when its outcome is to be stored.
            log.warning("the daemon cannot be told that %r still runs: %s", key, error)

    kept = False
    try:
        async with repeating(HEARTBEAT_SECONDS, heartbeat, f"eoq once {key}"):
            outcome, keep = await run()
        if keep:
            await _store(channel, calls.once_done(key, token, outcome, ttl))
            kept = True
    finally:
        if not kept:
            with suppress(EoqError):  # the key is opened with the end of the connection as well
                await channel.run(calls.once_release(key, token))
    return outcome


async def _wait_for_key(
    channel: AsyncChannel, key: str, token: str, fingerprint: str | None, wait: float | None
) -> OnceOutcome | None:
    """Wait for the key. Return its outcome if it is done, or None if this caller is to run."""
    deadline = None if wait is None else time.monotonic() + wait
    while True:
        left = POLL_SECONDS if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            found = await channel.run(calls.once(key, token, fingerprint, min(left, POLL_SECONDS)))
        except EoqError:
            raise
        except BaseException:
            # Interrupted (by Ctrl-C, say). Without this, the daemon would later tell this caller to run.
            channel.tell(calls.once_release(key, token))
            raise
        if found.outcome is not None:
            return found.outcome
        if found.state == "run":
            return None
        if deadline is not None and time.monotonic() >= deadline:
            raise Overloaded(f"another caller still runs the key {key!r} after {wait:g} s of waiting; try again later")
        await asyncio.sleep(REPEAT_SECONDS)


async def _store(channel: AsyncChannel, done: Call[None]) -> None:
    """Store an outcome, trying again for as long as a daemon that went away is waited for.

    The function has run already, and a disk that is full for a moment is no reason to run it again.
    """
    waits = pauses(total=channel.timeout)
    while True:
        try:
            await channel.run(done)
            return
        except DAEMON_WIDE:
            if (pause := next(waits, None)) is None:
                raise
        await asyncio.sleep(pause)
