"""Leases of messages that wait in a client: extended while they wait, or given back."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from ..errors import EoqError
from ..protocol import calls
from .aio_channel import AsyncChannel


async def extend_all(channel: AsyncChannel, receipts: Sequence[str], seconds: float) -> calls.Extended:
    """Let leases end ``seconds`` from now."""
    replies = await channel.exchange([calls.extend(receipt, seconds).fields for receipt in receipts])
    return calls.read_extended(receipts, replies)


async def release_all(channel: AsyncChannel, receipts: Sequence[str]) -> None:
    """Give back messages that no handler has seen; this does not count as an attempt."""
    if receipts and not channel.closed:
        # If it fails, the leases end with the connection, or by themselves.
        with suppress(EoqError):
            for portion in calls.portions(receipts):
                await channel.run(calls.release(portion))
