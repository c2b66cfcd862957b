"""The rules of bindings: which may exist together, and how many."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Final

from ...errors import InvalidRequest, QueueFull
from ..records import Binding

MAX_BINDINGS: Final = 10_000
MAX_QUEUES_OF_TOPIC: Final = 100
MAX_BINDING_HEADERS: Final = 4096
"""Characters of the headers of a binding, as JSON."""


def check_headers(headers: Mapping[str, str]) -> None:
    """Raise `InvalidRequest` where the headers of a binding are too long."""
    if headers and len(json.dumps(headers)) > MAX_BINDING_HEADERS:
        raise InvalidRequest(f"the headers of a binding have {MAX_BINDING_HEADERS:,} characters at most")


def check_bindings(bindings: Sequence[Binding]) -> None:
    """Raise `InvalidRequest` or `QueueFull` where bindings contradict each other or are too many."""
    topics = {binding.topic for binding in bindings}
    count: dict[str, int] = {}
    for binding in bindings:
        if binding.queue in topics:
            raise InvalidRequest(
                f"{binding.queue!r} is a topic itself, and what is sent to a topic goes to queues; bind a queue"
            )
        count[binding.topic] = count.get(binding.topic, 0) + 1
        if count[binding.topic] > MAX_QUEUES_OF_TOPIC:
            raise QueueFull(f"{MAX_QUEUES_OF_TOPIC} queues are bound to {binding.topic!r}, and no more can be")
    if len(bindings) > MAX_BINDINGS:
        raise QueueFull(f"there are {MAX_BINDINGS:,} bindings, and no more can be made")
