"""The dedup service, from the caller's side: run what a key stands for once, and have its output ever after.

The first caller of a key runs; others wait for it, and get what it stored. A caller that dies opens the key again. So
what runs may run twice if its process is killed in the middle: what it does outside must itself be idempotent, under
the same key. (Stripe's idempotency keys work like this on a server; here the daemon of this machine keeps them.)
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from ..backoff import DAEMON_WIDE, FIRST_PAUSE, LONGEST_PAUSE
from ..errors import EoqError, LeaseLost, MessageTooLarge, Overloaded
from ..ids import new_id
from ..message import encode_payload
from ..protocol import calls
from ..protocol.calls import OnceState
from ..protocol.limits import MAX_OUTPUT, POLL_SECONDS
from ..protocol.validation import check_ttl

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from .aio import AsyncClient
    from .blocking import Client

log = logging.getLogger("eoq.client.once")

HEARTBEAT_SECONDS: Final = 5.0
"""How often a caller that runs says so: a daemon that was restarted waits 30 s for it."""


class Ran(NamedTuple):
    """What came of a key: its exit status, its output (None where it was too large to keep) and the bytes it had."""

    status: int
    output: bytes | None
    output_bytes: int


def once(
    client: Client,
    key: str,
    function: Callable[[], object],
    *,
    ttl: float | None,
    fingerprint: str | None,
    wait: float | None,
) -> bytes:
    """See `Client.once`."""

    def run() -> tuple[Ran, Literal[True]]:
        return _ran(function()), True

    return output_of(key, once_status(client, key, run, ttl=ttl, fingerprint=fingerprint, wait=wait))


def once_status(
    client: Client,
    key: str,
    run: Callable[[], tuple[Ran, bool]],
    *,
    ttl: float | None,
    fingerprint: str | None,
    wait: float | None,
) -> Ran:
    """What ``run`` returned, now or for its first caller.

    ``run`` also says whether to keep that; where not, or where it raises, the key is open again.
    """
    token = new_id()
    check_ttl(ttl)
    deadline = None if wait is None else time.monotonic() + wait
    while True:
        left = POLL_SECONDS if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            found = client._run(calls.once(key, token, fingerprint, min(left, POLL_SECONDS)))
        except EoqError:
            raise
        except BaseException:
            client._tell(calls.once_release(key, token))  # Ctrl-C, say: its turn would come all the same
            raise
        if found.state == "done":
            return _stored(found)
        if found.state == "run":
            break
        _give_up_waiting(key, wait, deadline)
    kept = False
    try:
        with _heartbeats(client, key, token, fingerprint):
            ran, keep = run()
        if keep:
            done = calls.once_done(key, token, ran.status, ran.output, ran.output_bytes, ttl)
            for pause in _pauses(client.timeout):
                try:
                    client._run(done)
                    break
                except DAEMON_WIDE:
                    if pause is None:
                        raise
                    time.sleep(pause)
            kept = True
    finally:
        if not kept:
            with suppress(EoqError):  # it opens with the end of the connection as well
                client._run(calls.once_release(key, token))
    return ran


async def once_async(
    client: AsyncClient,
    key: str,
    function: Callable[[], Awaitable[object]],
    *,
    ttl: float | None,
    fingerprint: str | None,
    wait: float | None,
) -> bytes:
    """See `AsyncClient.once`."""
    token = new_id()
    check_ttl(ttl)
    deadline = None if wait is None else time.monotonic() + wait
    while True:
        left = POLL_SECONDS if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            found = await client._run(calls.once(key, token, fingerprint, min(left, POLL_SECONDS)))
        except asyncio.CancelledError:
            client._tell(calls.once_release(key, token))  # its turn would come all the same
            raise
        if found.state == "done":
            return output_of(key, _stored(found))
        if found.state == "run":
            break
        _give_up_waiting(key, wait, deadline)
    try:
        async with _async_heartbeats(client, key, token, fingerprint):
            ran = _ran(await function())
        done = calls.once_done(key, token, ran.status, ran.output, ran.output_bytes, ttl)
        for pause in _pauses(client.timeout):
            try:
                await client._run(done)
                break
            except DAEMON_WIDE:
                if pause is None:
                    raise
                await asyncio.sleep(pause)
    except BaseException:
        with suppress(EoqError):  # it opens with the end of the connection as well
            await client._run(calls.once_release(key, token))
        raise
    return output_of(key, ran)


def _pauses(seconds: float) -> Iterator[float | None]:
    """Growing ones between tries to store what came of a key, ``seconds`` in all; None at the last try.

    It has run, and a disk that is full for a moment is no reason to run it again.
    """
    pause = FIRST_PAUSE
    while seconds > 0:
        yield min(pause, seconds)
        seconds -= pause
        pause = min(pause * 2, LONGEST_PAUSE)
    yield None


def output_of(key: str, ran: Ran) -> bytes:
    """The output of a key; raises `MessageTooLarge` where it could not be kept, and `EoqError` where it failed."""
    if ran.status:
        raise EoqError(
            f"the key {key!r} stands for a command that ended with status {ran.status}, kept by `eoq once "
            "--keep-failure`; use another key for this function"
        )
    if ran.output is None:
        raise MessageTooLarge(
            f"the key {key!r} is done and will not run again, but its output had {ran.output_bytes:,} bytes, and "
            f"{MAX_OUTPUT:,} can be kept; have it write to a file and return its name"
        )
    return ran.output


def _ran(returned: object) -> Ran:
    output = b"" if returned is None else encode_payload(returned)[0]
    return Ran(0, output if len(output) <= MAX_OUTPUT else None, len(output))


def _stored(found: OnceState) -> Ran:
    return Ran(found.status, found.output, found.output_bytes)


def _give_up_waiting(key: str, wait: float | None, deadline: float | None) -> None:
    if deadline is not None and time.monotonic() >= deadline:
        raise Overloaded(f"another caller still runs the key {key!r} after {wait:g} s of waiting; try again later")


@contextmanager
def _heartbeats(client: Client, key: str, token: str, fingerprint: str | None) -> Iterator[None]:
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(HEARTBEAT_SECONDS):
            try:
                found = client._run(calls.once(key, token, fingerprint, 0.0))
                if found.state != "run":
                    raise LeaseLost(f"the key {key!r} was taken by another caller")
            except EoqError as error:
                # What it runs cannot be called back; the daemon decides when it stores what came of it.
                log.warning("the daemon cannot be told that %r still runs: %s", key, error)

    thread = threading.Thread(target=beat, name=f"eoq once {key}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        # One under way would take the key again after it was opened.
        thread.join()


@asynccontextmanager
async def _async_heartbeats(client: AsyncClient, key: str, token: str, fingerprint: str | None) -> AsyncIterator[None]:
    async def beat() -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            try:
                found = await client._run(calls.once(key, token, fingerprint, 0.0))
                if found.state != "run":
                    raise LeaseLost(f"the key {key!r} was taken by another caller")
            except EoqError as error:
                log.warning("the daemon cannot be told that %r still runs: %s", key, error)

    task = asyncio.create_task(beat())
    try:
        yield
    finally:
        task.cancel()
