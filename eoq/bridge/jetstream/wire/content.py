"""A message of eoq as one of NATS, and back. Any program may have published what comes back.

The id is the header ``Nats-Msg-Id``. Where the server knows it from another queue, it is ``Eoq-Id``, which has no
meaning for the server. The other headers are ``Eoq-Digest``, ``Eoq-Group``, ``Eoq-Priority``, ``Eoq-Expires-At`` (in
seconds since the epoch) and ``Eoq-Headers`` (a JSON object of texts). In an id and a group, spaces, ``%`` and what is
not ASCII are percent-encoded.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Final
from urllib.parse import quote, unquote

from ....errors import EoqError, InvalidRequest
from ....message import AsyncMessage, Outgoing
from ....outbox.rows import read_message
from .names import Names, partition_of

ID: Final = "Nats-Msg-Id"
PLAIN_ID: Final = "Eoq-Id"
DIGEST: Final = "Eoq-Digest"
GROUP: Final = "Eoq-Group"
PRIORITY: Final = "Eoq-Priority"
EXPIRES_AT: Final = "Eoq-Expires-At"
HEADERS: Final = "Eoq-Headers"
MAX_HEADERS: Final = 65_000
"""Bytes of all headers of a message of NATS: the server takes at most 65,535."""
_SAFE: Final = "!\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"


def headers_of(message: AsyncMessage, *, known_elsewhere: bool = False) -> dict[str, str]:
    """Return the headers of a message to publish. ``known_elsewhere``: the server has its id from another queue."""
    headers = {PLAIN_ID if known_elsewhere else ID: quote(message.id, safe=_SAFE)}
    if message.digest:
        headers[DIGEST] = message.digest
    if message.group is not None:
        headers[GROUP] = quote(message.group, safe=_SAFE)
    if message.priority:
        headers[PRIORITY] = str(message.priority)
    if message.expires_at is not None:
        headers[EXPIRES_AT] = repr(message.expires_at)
    if message.headers:
        headers[HEADERS] = json.dumps(dict(message.headers))
    return headers


def size_of(headers: Mapping[str, str]) -> int:
    """Return the bytes that headers have on the wire, at most."""
    return 32 + sum(len(name) + len(value) + 4 for name, value in headers.items())


def id_of(headers: Mapping[str, str]) -> str | None:
    """Return the id of a message, or None."""
    found = headers.get(PLAIN_ID) or headers.get(ID)
    return None if found is None else unquote(str(found), errors="replace")


def read_content(
    names: Names, partition: int, count: int, headers: Mapping[str, str], body: bytes
) -> Outgoing | EoqError:
    """Return what was published to a partition as a message to send, or the error that says what is wrong with it."""
    id, group = id_of(headers), headers.get(GROUP)
    group = None if group is None else unquote(str(group), errors="replace")
    now = time.time()
    try:
        priority = int(headers.get(PRIORITY) or 0)
        ttl = _time_left(headers.get(EXPIRES_AT), now)
    except ValueError as error:
        return InvalidRequest(f"its priority or its time of expiry is no number: {error}")
    if id is not None and (right := partition_of(id if group is None else group, count)) != partition:
        return InvalidRequest(
            f"it was published to the partition {partition}, but its {'id' if group is None else 'group'} belongs to "
            f"{right}; so it could be doubled, or out of order"
        )
    return read_message(names.queue, group, body, headers.get(HEADERS), id, priority, None, ttl, now)


def _time_left(text: str | None, now: float) -> float | None:
    """Return the seconds until a moment. A message whose time is over is stored, so that it is known, and expires."""
    if not text:
        return None
    moment = float(text)
    if not math.isfinite(moment):
        raise ValueError(text)
    return max(moment - now, 0.001)


def parse_headers(block: bytes) -> dict[str, str]:
    """Return the headers of a stored message, from the block that the server has of it.

    They are the same as those that the driver gives of a message that it delivers.
    """
    found = {}
    for line in block.split(b"\r\n")[1:]:
        name, colon, value = line.partition(b":")
        if colon:
            with suppress(UnicodeDecodeError):
                found[name.strip().decode("ascii")] = value.strip().decode(errors="replace")
    return found
