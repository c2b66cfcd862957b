"""The stream between the machines: it is made where there is none, and refused where it could lose or double messages.

What a stream forgets early is lost, and what it keeps for longer than a destination remembers ids could be doubled.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from typing import Any, Final

from ...errors import InvalidRequest
from .wire.names import Names, bucket_of
from .wire.nats_connection import NatsConnection, ServerRefusal

log = logging.getLogger("eoq.bridge")

MAX_AGE: Final = 6 * 86400
"""For how many seconds a new stream keeps messages: 6/7 of the retention of queues, unless that is changed."""
NO_STREAM: Final = 10059
NAME_IN_USE: Final = 10058
_NANOSECONDS: Final = 1_000_000_000
_warned: Final[set[str]] = set()
"""The servers of which this process has said that they may lose what they have confirmed."""


@dataclass(frozen=True)
class Stream:
    """A stream as it is: how many seconds it keeps messages, its ends, and on how many servers it is.

    ``made`` is when it was made, as digits. Places count from 1 again in a stream that was made anew.
    """

    max_age: float
    first_seq: int
    last_seq: int
    replicas: int
    made: str


async def open_stream(connection: NatsConnection, *, remembers: float | None) -> Stream:
    """Return the stream of a connection, and make it and what belongs to it if there is none.

    ``remembers`` is for how many seconds a destination surely remembers an id; None on the sending side, which does not
    know the destinations. Raises `InvalidRequest` for a stream that is of no use.
    """
    name = connection.address.stream
    max_age = MAX_AGE if remembers is None else min(MAX_AGE, int(remembers))
    info = await _find(connection, name) or await _make(connection, _config(name, max_age))
    config = info["config"]
    _check(connection, name, config, remembers)
    _warn(connection)
    replicas = int(config.get("num_replicas") or 1)
    for stream in (_bucket(name, replicas), _aside(name, replicas)):
        if await _find(connection, str(stream["name"])) is None:
            await _make(connection, stream)
    state = info["state"]
    age = int(config.get("max_age") or 0) / _NANOSECONDS
    made = re.sub("[^0-9]", "", str(info.get("created", "")))
    return Stream(age, int(state["first_seq"]), int(state["last_seq"]), replicas, made)


def _config(name: str, max_age: int) -> dict[str, Any]:
    return {
        "name": name,
        "subjects": [f"{name}.>"],
        "retention": "limits",
        "storage": "file",
        "discard": "new",  # a full stream refuses, and forgets nothing that is still to be taken
        "max_age": max_age * _NANOSECONDS,
        "num_replicas": 1,
    }


def _bucket(name: str, replicas: int) -> dict[str, Any]:
    bucket = bucket_of(name)
    return {
        "name": f"KV_{bucket}",
        "subjects": [f"$KV.{bucket}.>"],
        "max_msgs_per_subject": 1,
        "storage": "file",
        "discard": "new",
        "deny_delete": True,
        "allow_rollup_hdrs": True,
        "num_replicas": replicas,
    }


def _aside(name: str, replicas: int) -> dict[str, Any]:
    aside = Names(name, "").aside
    return {
        "name": aside,
        "subjects": [f"{aside}.>"],
        "max_msgs_per_subject": 1,  # one that is set aside again replaces itself
        "storage": "file",
        "num_replicas": replicas,
    }


async def _find(connection: NatsConnection, name: str) -> dict[str, Any] | None:
    try:
        return await connection.api(f"STREAM.INFO.{name}")
    except ServerRefusal as refusal:
        if refusal.number == NO_STREAM:
            return None
        raise


async def _make(connection: NatsConnection, config: dict[str, Any]) -> dict[str, Any]:
    name = str(config["name"])
    try:
        return await connection.api(f"STREAM.CREATE.{name}", config)
    except ServerRefusal as refusal:
        # Another machine has made it just now, and its settings are checked like those of any other.
        if refusal.number == NAME_IN_USE and (found := await _find(connection, name)) is not None:
            return found
        raise


def _check(connection: NatsConnection, name: str, config: dict[str, Any], remembers: float | None) -> None:
    problem = _problem(name, config, remembers)
    if problem is not None:
        raise InvalidRequest(f"the stream {name!r} at {connection.name} {problem}")


def _problem(name: str, config: dict[str, Any], remembers: float | None) -> str | None:
    """Return why a stream cannot be used, or None."""
    max_age = int(config.get("max_age") or 0) / _NANOSECONDS
    bounded = [one for one in ("max_msgs", "max_bytes", "max_msgs_per_subject") if int(config.get(one) or -1) > 0]
    if config.get("retention") != "limits":
        return (
            f"has the retention {json.dumps(config.get('retention'))}, under which the server forgets the ids of taken "
            "messages when it is started again; make one with the retention `limits`"
        )
    if f"{name}.>" not in (config.get("subjects") or ()):
        return f"does not have the subjects `{name}.>`; add them"
    if config.get("storage") != "file" or config.get("persist_mode") == "async":
        return "confirms messages that are not in a file yet; make one with file storage (and no asynchronous writes)"
    if config.get("no_ack") or config.get("subject_transform") or config.get("sealed"):
        return "confirms no messages, changes their subjects, or is sealed; make one that does none of this"
    if bounded and (config.get("discard") != "new" or "max_msgs_per_subject" in bounded):
        return (
            f"forgets messages that were not taken yet ({', '.join(bounded)}); set its discard policy to `new`, and no "
            "limit for a subject"
        )
    if remembers is not None and not 0 < max_age <= remembers:
        keeps = f"keeps messages for {max_age:,.0f} s" if max_age else "keeps messages for ever"
        return (
            f"{keeps}, but this daemon surely remembers ids for {remembers:,.0f} s only, 6/7 of the shortest "
            "retention: what comes again after that would be doubled. Set the stream's max_age to that or less, or "
            "raise the retention of the queues"
        )
    return None


def _warn(connection: NatsConnection) -> None:
    """Say once that the server may lose what it has confirmed. It does not tell its clients whether it syncs."""
    if not connection.address.synced and connection.name not in _warned:
        _warned.add(connection.name)
        log.warning(
            "%s: a NATS server confirms messages before they are synced, unless its configuration says `sync_interval: "
            "always`, and does not tell which it does. Without it, a loss of power of the server can lose what was "
            "forwarded. Set it, and add synced=yes to the URL",
            connection.name,
        )
