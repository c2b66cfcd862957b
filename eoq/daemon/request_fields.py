"""The types of the fields of requests, with their bounds."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

from ..message import MAX_DELAY
from ..protocol.limits import (
    MAX_BATCH,
    MAX_ERROR,
    MAX_ID,
    MAX_LEASE,
    MAX_PRIORITY,
    MAX_RECEIPT,
    MAX_WAIT,
    QUEUE_PATTERN,
)

Rid: TypeAlias = int | str | None
QueueName = Annotated[str, Meta(pattern=QUEUE_PATTERN)]
Id = Annotated[str, Meta(min_length=1, max_length=MAX_ID)]
Receipt = Annotated[str, Meta(min_length=1, max_length=MAX_RECEIPT)]
Token = Annotated[str, Meta(min_length=1, max_length=100)]
Limit = Annotated[int, Meta(ge=1, le=MAX_BATCH)]
Wait = Annotated[float, Meta(ge=0, le=MAX_WAIT)]
Seconds = Annotated[float, Meta(ge=0, le=MAX_DELAY)]
LeaseSeconds = Annotated[float, Meta(gt=0, le=MAX_LEASE)]
Priority = Annotated[int, Meta(ge=-MAX_PRIORITY, le=MAX_PRIORITY)]
ErrorText = Annotated[str, Meta(max_length=MAX_ERROR)]
Moment = Annotated[float, Meta(ge=0, le=1e11)]
Handles = Annotated[int, Meta(ge=0, le=MAX_BATCH)]
Seq = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class FarResultItem(Struct, forbid_unknown_fields=True):
    """One result of `TakeResults`."""

    id: Id
    outcome: Literal["done", "forwarded", "dead", "expired", "dropped", "cancelled"]
    result: str | None = None
    result_base64: str | None = None
    error: ErrorText | None = None
