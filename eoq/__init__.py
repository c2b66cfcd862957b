"""eoq, the exactly-once queue: the public names, and nothing else.

Names are loaded when they are first used, so that a program pays only for what it needs: a shell command that
sends one message starts without asyncio and without SQLite.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .aio import AsyncClient as AsyncClient
    from .aio import connect_async as connect_async
    from .aio_inbox import AsyncInbox as AsyncInbox
    from .client import Client as Client
    from .client import connect as connect
    from .errors import EoqError as EoqError
    from .errors import Forbidden as Forbidden
    from .errors import IdConflict as IdConflict
    from .errors import InvalidRequest as InvalidRequest
    from .errors import LeaseLost as LeaseLost
    from .errors import MessageTooLarge as MessageTooLarge
    from .errors import NotFound as NotFound
    from .errors import Overloaded as Overloaded
    from .errors import QueueFull as QueueFull
    from .errors import StorageFailed as StorageFailed
    from .errors import StorageFull as StorageFull
    from .errors import Unavailable as Unavailable
    from .guest_inbox import GuestInbox as GuestInbox
    from .held import Summary as Summary
    from .inbox import Inbox as Inbox
    from .message import AsyncMessage as AsyncMessage
    from .message import Message as Message
    from .message import Outgoing as Outgoing
    from .message import Result as Result
    from .message import Sent as Sent
    from .outbox import AsyncOutbox as AsyncOutbox
    from .outbox import Outbox as Outbox
    from .relay import Relay as Relay
    from .spool import Spool as Spool
    from .transaction import AsyncTransaction as AsyncTransaction
    from .transaction import Transaction as Transaction
    from .verdicts import Reject as Reject
    from .verdicts import Retry as Retry

__version__ = "0.1.0"

_HOMES = {
    "aio": ("AsyncClient", "connect_async"),
    "client": ("Client", "connect"),
    "errors": (
        "EoqError",
        "Forbidden",
        "IdConflict",
        "InvalidRequest",
        "LeaseLost",
        "MessageTooLarge",
        "NotFound",
        "Overloaded",
        "QueueFull",
        "StorageFailed",
        "StorageFull",
        "Unavailable",
    ),
    "held": ("Summary",),
    "aio_inbox": ("AsyncInbox",),
    "guest_inbox": ("GuestInbox",),
    "inbox": ("Inbox",),
    "outbox": ("AsyncOutbox", "Outbox"),
    "relay": ("Relay",),
    "spool": ("Spool",),
    "message": ("AsyncMessage", "Message", "Outgoing", "Result", "Sent"),
    "transaction": ("AsyncTransaction", "Transaction"),
    "verdicts": ("Reject", "Retry"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *_HOME_OF]  # noqa: PLE0604 # they are strings, listed once above


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'eoq' has no attribute {name!r}")
    value = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
