"""What a handler may raise to say more of its message than that it failed, and what each exception does to it.

These are no errors of the wire: a handler raises them, and the inbox or the worker's loop acts on them.
"""

from __future__ import annotations

from .errors import InvalidRequest
from .message import AsyncMessage, Message
from .protocol.limits import MAX_DELAY


class Reject(Exception):
    """The message can never be handled: it becomes a dead letter, kept with ``reason``."""

    def __init__(self, reason: object = None) -> None:
        """``reason`` is a text, or anything that has one: an exception, say."""
        self.reason = None if reason is None else _text(reason)
        super().__init__(self.reason or "rejected")


class Retry(Exception):
    """The message is to be tried again ``delay`` seconds later; ``reason`` is kept with it.

    Without a delay the daemon's growing waits apply, as after any other exception. Raises `InvalidRequest` for a
    delay out of bounds.
    """

    def __init__(self, delay: float | None = None, reason: object = None) -> None:
        if delay is not None and not 0 <= delay <= MAX_DELAY:
            raise InvalidRequest(f"a retry can wait 0 to {MAX_DELAY:,.0f} seconds, and not {delay!r}")
        self.delay = delay
        self.reason = None if reason is None else _text(reason)
        super().__init__(self.reason or "by its handler's wish")


def error_text(error: BaseException) -> str:
    """An exception as it is kept with its message: ``Type: text``."""
    return f"{type(error).__name__}: {_text(error)}"


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception as error:  # noqa: BLE001 # an exception whose text cannot be made must not end who asks for it
        return f"(its text raised {type(error).__name__})"


def give_back(message: Message, error: BaseException) -> None:
    """Rejects or nacks ``message``, as what its handler raised says. Raises what that raises."""
    if isinstance(error, Reject):
        message.reject(error.reason)
    elif isinstance(error, Retry):
        message.nack(error.delay, error.reason)
    else:
        message.nack(error=error_text(error))


async def give_back_async(message: AsyncMessage, error: BaseException) -> None:
    """The asyncio twin of `give_back`."""
    if isinstance(error, Reject):
        await message.reject(error.reason)
    elif isinstance(error, Retry):
        await message.nack(error.delay, error.reason)
    else:
        await message.nack(error=error_text(error))
