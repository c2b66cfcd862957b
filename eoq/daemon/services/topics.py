"""Topics: what is sent to one goes to each queue that is bound to it, in one transaction, under the same id."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Final

from msgspec.structs import replace

from ...errors import EoqError, InvalidRequest
from .. import requests as ask
from ..records import Binding, NewMessage, Routed
from ..session import Reply, Session, Submitter
from ..store import commands
from ..topic_rules import check_bindings

MAX_BINDING_HEADERS: Final = 4096
"""Characters, as JSON."""

log = logging.getLogger("eoq.topics")


class Topics:
    """All bindings: those in the file, and those of the configuration."""

    handles = (ask.Bind, ask.Unbind, ask.Topics)

    def __init__(self, writer: Submitter) -> None:
        self._writer = writer
        self._stored: list[Binding] = []
        self._configured: list[Binding] = []
        self._by_topic: dict[str, list[Binding]] = {}

    def load(self, stored: Sequence[Binding]) -> None:
        """What the file has: at the start of the daemon, and as it changes."""
        self._stored = list(stored)
        self._arrange()

    def configure(self, configured: Sequence[Binding]) -> None:
        """From now on these stand in the configuration. For the same topic and queue it counts before the file."""
        self._configured = list(configured)
        try:
            check_bindings([*self._stored, *configured])
        except EoqError as error:
            log.warning("the bindings of the configuration and those made with `eoq bind` do not agree: %s", error)
        self._arrange()

    def _arrange(self) -> None:
        together = {(binding.topic, binding.queue): binding for binding in [*self._stored, *self._configured]}
        by_topic: dict[str, list[Binding]] = {}
        for key in sorted(together):
            by_topic.setdefault(key[0], []).append(together[key])
        # As a whole, since threads look things up meanwhile.
        self._by_topic = by_topic

    def is_topic(self, name: str) -> bool:
        """Whether anything is bound to ``name``."""
        return name in self._by_topic

    def route(self, messages: Sequence[NewMessage]) -> Routed:
        """Where messages go: each to its queue, or to all that are bound to its topic and want it."""
        by_topic = self._by_topic
        if not by_topic or not any(message.queue in by_topic for message in messages):
            return Routed(messages, None)
        routed: list[NewMessage] = []
        origins: list[int] = []
        for index, message in enumerate(messages):
            for queue in _queues_of(message, by_topic.get(message.queue)):
                routed.append(replace(message, queue=queue))
                origins.append(index)
        return Routed(routed, origins)

    # ── requests ────────────────────────────────────────────────────────────────────────────────────────

    def handle(self, _session: Session, request: ask.Request, reply: Reply) -> None:
        """Acts on a request; ``reply`` is called once, now or later."""

        def done(outcome: list[Binding] | EoqError) -> None:
            if isinstance(outcome, EoqError):
                reply(outcome)
                return
            self.load(outcome)
            reply({})

        match request:
            case ask.Bind(topic=topic, queue=queue, headers=headers):
                if headers and len(json.dumps(headers)) > MAX_BINDING_HEADERS:
                    raise InvalidRequest(f"the headers of a binding have {MAX_BINDING_HEADERS:,} characters at most")
                binding = Binding(topic, queue, headers or {})
                self._writer.submit(commands.Bind(binding, tuple(self._configured)), done)
            case ask.Unbind(topic=topic, queue=queue):
                self._writer.submit(commands.Unbind(topic, queue), done)
            case ask.Topics():
                bindings = [b for topic in sorted(self._by_topic) for b in self._by_topic[topic]]
                reply({"bindings": [_shown(binding) for binding in bindings]})


def _queues_of(message: NewMessage, bindings: Sequence[Binding] | None) -> list[str]:
    if bindings is None:
        return [message.queue]
    headers = json.loads(message.headers) if message.headers else {}
    return [b.queue for b in bindings if b.headers.items() <= headers.items()]


def _shown(binding: Binding) -> dict[str, object]:
    fields: dict[str, object] = {"topic": binding.topic, "queue": binding.queue}
    return {**fields, "headers": binding.headers} if binding.headers else fields
