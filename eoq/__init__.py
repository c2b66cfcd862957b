"""eoq, the exactly-once queue: the public names.

Each is loaded when it is first used, so that a program loads only what it needs: a shell command that sends one message
starts without asyncio and without SQLite.
"""

from __future__ import annotations

TYPE_CHECKING = False  # without an import of `typing`, which takes milliseconds
if TYPE_CHECKING:
    from typing import Any

    from .bridge.bridge import Bridge as Bridge
    from .client.aio import AsyncClient as AsyncClient
    from .client.aio import connect_async as connect_async
    from .client.aio_transaction import AsyncTransaction as AsyncTransaction
    from .client.blocking import Client as Client
    from .client.blocking import connect as connect
    from .client.transaction import Transaction as Transaction
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
    from .errors import TooLate as TooLate
    from .errors import Unavailable as Unavailable
    from .inbox.aio import AsyncInbox as AsyncInbox
    from .inbox.aio_guest import AsyncGuestInbox as AsyncGuestInbox
    from .inbox.blocking import Inbox as Inbox
    from .inbox.guest import GuestInbox as GuestInbox
    from .message import AsyncMessage as AsyncMessage
    from .message import Message as Message
    from .message import Outgoing as Outgoing
    from .message import Result as Result
    from .message import Sent as Sent
    from .outbox.relay import Relay as Relay
    from .outbox.writer import AsyncOutbox as AsyncOutbox
    from .outbox.writer import Outbox as Outbox
    from .outcomes import Reject as Reject
    from .outcomes import Retry as Retry
    from .postgres.aio_guest import AsyncPgGuestInbox as AsyncPgGuestInbox
    from .postgres.aio_inbox import AsyncPgInbox as AsyncPgInbox
    from .postgres.aio_outbox import AsyncPgOutbox as AsyncPgOutbox
    from .postgres.guest import PgGuestInbox as PgGuestInbox
    from .postgres.inbox import PgInbox as PgInbox
    from .postgres.outbox import PgOutbox as PgOutbox
    from .protocol.admin_calls import FoundMessage as FoundMessage
    from .spool.sender import Spool as Spool
    from .worker.in_flight import Summary as Summary

__version__ = "0.1.0"

_HOMES = {
    "client.aio": ("AsyncClient", "connect_async"),
    "client.blocking": ("Client", "connect"),
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
        "TooLate",
        "Unavailable",
    ),
    "worker.in_flight": ("Summary",),
    "inbox.aio": ("AsyncInbox",),
    "inbox.aio_guest": ("AsyncGuestInbox",),
    "inbox.guest": ("GuestInbox",),
    "inbox.blocking": ("Inbox",),
    "outbox.writer": ("AsyncOutbox", "Outbox"),
    "outbox.relay": ("Relay",),
    "protocol.admin_calls": ("FoundMessage",),
    "spool.sender": ("Spool",),
    "message": ("AsyncMessage", "Message", "Outgoing", "Result", "Sent"),
    "client.aio_transaction": ("AsyncTransaction",),
    "client.transaction": ("Transaction",),
    "outcomes": ("Reject", "Retry"),
}
_HOMES_OF_EXTRAS = {
    "bridge.bridge": ("Bridge",),
    "postgres.aio_guest": ("AsyncPgGuestInbox",),
    "postgres.aio_inbox": ("AsyncPgInbox",),
    "postgres.aio_outbox": ("AsyncPgOutbox",),
    "postgres.guest": ("PgGuestInbox",),
    "postgres.inbox": ("PgInbox",),
    "postgres.outbox": ("PgOutbox",),
}
"""Names that need an extra. Without it their use raises an error that says so, so ``import *`` leaves them out."""
_HOME_OF = {name: home for homes in (_HOMES, _HOMES_OF_EXTRAS) for home, names in homes.items() for name in names}

__all__ = ["__version__", *(name for names in _HOMES.values() for name in names)]  # noqa: PLE0604 # strings, see above


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'eoq' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
