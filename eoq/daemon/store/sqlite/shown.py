"""Rows as operators see them: which a filter selects, with their leases, as fields of a reply."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple, TypeAlias

from ....protocol.codec import put_bytes

Fields: TypeAlias = dict[str, Any]

# Waits are stored without what the wall clock was set by; see `ClockNotes`.
SET_BY: Final = "coalesce((select set_by from clock where only_row = 1), 0.0)"


class Filter(NamedTuple):
    """A selection of messages: of a group, with all of these headers, with a text in their body. None selects all."""

    group: str | None = None
    headers: Mapping[str, str] | None = None
    contains: str | None = None

    def selects(self, row: Fields) -> bool:
        """Return whether the filter selects a row."""
        if self.group is not None and row["group"] != self.group:
            return False
        if self.headers and not self.headers.items() <= json.loads(row["headers"] or "{}").items():
            return False
        return self.contains is None or self.contains.encode() in (row["body"] or b"")


class Found(NamedTuple):
    """Messages, and whether there may be more."""

    messages: list[Fields]
    more: bool


def with_lease(row: Fields, deliveries: Mapping[int, tuple[float, str | None]]) -> Fields:
    """Return a row as it is with its lease, which is not stored in it."""
    if row["state"] != "ready" or row["seq"] not in deliveries:
        return row
    delivered_at, consumer = deliveries[row["seq"]]
    leased = {"state": "leased", "attempts": row["attempts"] + 1, "delivered_at": delivered_at, "consumer": consumer}
    if "deliveries" in row:
        leased["deliveries"] = row["deliveries"] + 1
    return row | leased


def shown(columns: Iterable[tuple[str, Any]]) -> Fields:
    """Return a row as the fields of a reply: without nulls, headers as an object, bytes as the wire writes them."""
    fields: Fields = {}
    for name, value in columns:
        if value is None:
            continue
        if name == "headers":
            fields[name] = json.loads(value)
        elif isinstance(value, bytes):
            put_bytes(fields, name, value)
        else:
            fields[name] = value
    return fields
