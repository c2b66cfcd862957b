"""What is stored about a processed message, and what follows for its next delivery: the same in every database."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from ...errors import LeaseLost
from ...message import Delivery
from ...outcomes import Reject

Key: TypeAlias = tuple[str, str]
"""A queue and an id."""


class Effect(NamedTuple):
    """What is stored about a processed message. There is no digest if it came from an earlier version."""

    result: bytes | None
    digest: bytes | None


def digest_of(message: Delivery) -> bytes | None:
    """Return the digest of a delivery as it is stored, or None if the daemon has sent none."""
    if not message.digest:
        return None
    try:
        return bytes.fromhex(message.digest)
    except ValueError:
        return message.digest.encode()


def result_of(message: Delivery, effect: Effect) -> bytes | None:
    """Return the result that is stored for a message which was processed before.

    Raises `Reject` if the message has other content than the one that was processed under this id: the daemon has
    forgotten that one. To ack it with the old result would lose it.
    """
    result, digest = effect
    if digest is not None and message.digest and digest != digest_of(message):
        raise Reject(
            f"a message with the id {message.id!r} and other content was processed before, and the daemon has "
            "forgotten that one since, so this one was not applied: send it under an id of its own, and drop this"
        )
    return result


def too_late(message: Delivery, keep: float) -> LeaseLost:
    """Return the error for a delivery that is so old that its id, which was not found, may have been pruned."""
    return LeaseLost(
        f"the message {message.id!r} was delivered more than {keep:g} s ago (`keep`), or the clock was set back since. "
        "It may have been processed and pruned since, so its handler was not run. If it was not processed, it is "
        "delivered again"
    )
