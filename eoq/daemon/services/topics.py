"""Topics: a message sent to a topic goes to each queue that is bound to it, in one transaction, under the same id."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import partial

from msgspec.structs import replace

from ...errors import EoqError
from .. import requests as ask
from ..records import Binding, NewMessage, Routed
from ..rules.topic_rules import check_bindings, check_headers
from ..session import Handlers, Reply, Session, Submitter
from ..store import commands

log = logging.getLogger("eoq.topics")


class Topics:
    """All bindings: those in the file, and those of the configuration."""

    def __init__(self, writer: Submitter) -> None:
        self._writer = writer
        self._stored: list[Binding] = []
        self._configured: list[Binding] = []
        self._by_topic: dict[str, list[Binding]] = {}
        self._ever: set[str] = set()
        """All names that have been topics since the start."""
        self.handlers: Handlers = {ask.Bind: self._bind, ask.Unbind: self._unbind, ask.Topics: self._list}

    def load(self, stored: Sequence[Binding]) -> None:
        """Replace the bindings of the file. Called at the start of the daemon, and when they have changed."""
        self._stored = list(stored)
        self._arrange()

    def configure(self, configured: Sequence[Binding]) -> None:
        """Replace the bindings of the configuration. They take precedence over those of the file."""
        self._configured = list(configured)
        try:
            check_bindings([*self._stored, *configured])
        except EoqError as error:
            log.warning("the bindings of the configuration and those made with `eoq bind` do not agree: %s", error)
        self._arrange()

    def _arrange(self) -> None:
        by_pair = {(binding.topic, binding.queue): binding for binding in [*self._stored, *self._configured]}
        by_topic: dict[str, list[Binding]] = {}
        for pair in sorted(by_pair):
            by_topic.setdefault(pair[0], []).append(by_pair[pair])
        self._by_topic = by_topic
        self._ever.update(by_topic)

    def was_topic(self, name: str) -> bool:
        """Return whether any queue is or was bound to ``name`` since the start."""
        return name in self._ever

    def configured_names(self) -> frozenset[str]:
        """Return the topics and the queues that the bindings of the configuration name."""
        return frozenset(name for binding in self._configured for name in (binding.topic, binding.queue))

    def is_topic(self, name: str) -> bool:
        """Return whether any queue is bound to ``name``."""
        return name in self._by_topic

    def route(self, messages: Sequence[NewMessage]) -> Routed:
        """Return messages in their queues: their own, or all that are bound to their topic and match their headers."""
        by_topic = self._by_topic
        if not by_topic or not any(message.queue in by_topic for message in messages):
            return Routed(messages, None)
        # Queue by queue: then one statement stores several of them.
        by_queue: dict[str, list[int]] = {}
        for index, message in enumerate(messages):
            for queue in _queues_of(message, by_topic.get(message.queue)):
                by_queue.setdefault(queue, []).append(index)
        origins = [index for indexes in by_queue.values() for index in indexes]
        routed = [replace(messages[index], queue=queue) for queue, indexes in by_queue.items() for index in indexes]
        return Routed(routed, origins)

    # ── requests ────────────────────────────────────────────────────────────────────────────────────────

    def _bind(self, _session: Session, request: ask.Bind, reply: Reply) -> None:
        headers = request.headers or {}
        check_headers(headers)
        binding = Binding(request.topic, request.queue, headers)
        self._writer.submit(commands.Bind(binding, tuple(self._configured)), partial(self._changed, reply))

    def _unbind(self, _session: Session, request: ask.Unbind, reply: Reply) -> None:
        self._writer.submit(commands.Unbind(request.topic, request.queue), partial(self._changed, reply))

    def _changed(self, reply: Reply, outcome: list[Binding] | EoqError) -> None:
        if isinstance(outcome, EoqError):
            reply(outcome)
            return
        self.load(outcome)
        reply({})

    def _list(self, _session: Session, _request: ask.Topics, reply: Reply) -> None:
        bindings = [binding for topic in sorted(self._by_topic) for binding in self._by_topic[topic]]
        reply({"bindings": [_shown(binding) for binding in bindings]})


def _queues_of(message: NewMessage, bindings: Sequence[Binding] | None) -> list[str]:
    if bindings is None:
        return [message.queue]
    headers = json.loads(message.headers) if message.headers else {}
    return [binding.queue for binding in bindings if binding.headers.items() <= headers.items()]


def _shown(binding: Binding) -> dict[str, object]:
    fields: dict[str, object] = {"topic": binding.topic, "queue": binding.queue}
    return {**fields, "headers": binding.headers} if binding.headers else fields
