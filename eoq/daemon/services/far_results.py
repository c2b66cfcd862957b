"""Requests of bridges: how many messages ended, to tell the machine that sent them; and the results that came back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from ...errors import EoqError
from ...protocol.codec import get_bytes
from .. import requests as ask
from ..broker.events import Events
from ..records import End, FarResult, ResultsTaken
from ..session import Fields, Handlers, Reply, Session, Submitter
from ..store.commands import TakeResults
from ..store.sqlite.reader import Reader
from .monitoring.tasks import SessionTasks
from .queries import result_fields

MOST_BYTES: Final = 1024 * 1024
"""Bytes of the results and reasons in one reply, unless the first is longer."""


class _Wait:
    """A request that waits until one of its messages ends."""

    def __init__(self, ids: Sequence[str]) -> None:
        self.ids = frozenset(ids)
        self.ended = asyncio.Event()


class ResultsService:
    """The handlers of these requests."""

    def __init__(self, writer: Submitter, reader: Reader, events: Events) -> None:
        self._writer = writer
        self._reader = reader
        self._events = events
        self._waits: dict[str, set[_Wait]] = {}
        """The requests that wait, by queue."""
        self._tasks = SessionTasks()
        self._stopping = False
        self.handlers: Handlers = {ask.Results: self._results, ask.TakeResults: self._take}

    async def stop(self) -> None:
        """Answer all requests that wait."""
        self._stopping = True
        for waits in self._waits.values():
            for wait in waits:
                wait.ended.set()
        await asyncio.gather(*self._tasks.all(), return_exceptions=True)

    def ended(self, ends: Sequence[End]) -> None:
        """Let the requests read again that wait for one of these messages."""
        if not self._waits:
            return
        for end in ends:
            for wait in self._waits.get(end.queue, ()):
                if end.id in wait.ids and not end.awaits:
                    wait.ended.set()

    def _results(self, session: Session, request: ask.Results, reply: Reply) -> None:
        async def run() -> None:
            try:
                fields: Fields | EoqError = await self._read(session, request)
            except EoqError as error:
                fields = error
            reply(fields)

        self._tasks.spawn(session, run())

    async def _read(self, session: Session, request: ask.Results) -> Fields:
        wait = _Wait(request.ids)
        waits = self._waits.setdefault(request.queue, set())
        waits.add(wait)  # before the file is read, so that a message that ends meanwhile is not missed
        try:
            fields = await self._found(request)
            if request.wait and not (fields["results"] or fields["unknown"] or self._stopping):
                session.parked(request)
                with suppress(TimeoutError):
                    async with asyncio.timeout(request.wait):
                        await wait.ended.wait()
                fields = await self._found(request)
            return fields
        finally:
            waits.discard(wait)
            if not waits and self._waits.get(request.queue) is waits:
                del self._waits[request.queue]

    async def _found(self, request: ask.Results) -> Fields:
        ended, unknown = await self._reader.results(request.queue, request.ids, MOST_BYTES)
        results = [{"id": row["id"], **result_fields(row["state"], row["result"], row["error"], None)} for row in ended]
        return {"results": results, "unknown": unknown}

    def _take(self, _session: Session, request: ask.TakeResults, reply: Reply) -> None:
        def done(outcome: ResultsTaken | EoqError) -> None:
            if isinstance(outcome, EoqError):
                reply(outcome)
                return
            reply({"early": outcome.early})
            if outcome.ended:
                self._events.resulted(outcome.ended)

        results = [
            FarResult(one.id, one.outcome, get_bytes(one.result, one.result_base64, "result"), one.error)
            for one in request.results
        ]
        self._writer.submit(TakeResults(request.queue, results), done)
