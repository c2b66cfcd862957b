"""The dedup service: of all who call with one key, the first runs, the others wait and get what came of it.

A caller holds its key as long as its connection lives. Who runs what is also in the file, so that a restart of the
daemon does not start a second run beside the first: the first has some time to come back.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import Final

from ...errors import EoqError, InvalidRequest, MessageTooLarge
from ...protocol.codec import get_bytes, put_bytes
from ...protocol.limits import MAX_OUTPUT
from .. import requests as ask
from ..clock import Clock, Timer
from ..records import OnceRecord
from ..session import Fields, Reply, Session, Submitter
from ..store.commands import Command, OnceBegin, OnceFinish, OnceRelease, OnceRunning

RETURN_SECONDS: Final = 30.0
"""How long a caller may take to come back after a restart of the daemon, before its key is open again."""
FAILED_RELEASE: Final = 1.0
"""Seconds until a release that the disk refused is tried again."""


class _Holder:
    """The caller that runs a key, and the connections over which it has said so.

    Without any it is gone, and its key about to be open; or it is one of before a restart, and has not come back yet.
    """

    def __init__(self, token: str) -> None:
        self.token = token
        self.sessions: set[Session] = set()
        self.timer: Timer | None = None

    def join(self, session: Session) -> None:
        """It is there, over this connection."""
        self.sessions.add(session)
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class _Waiter:
    """A caller that waits for the one before it."""

    def __init__(self, session: Session, request: ask.Once, reply: Reply) -> None:
        self.session = session
        self.request = request
        self.reply = reply
        self.timer: Timer | None = None
        self.patient = request.wait > 0
        """Its time is not over: it stands in line again where the store, when asked, has found its key taken."""
        self.was_first = False
        """Whether it asks again, and others stand behind it."""


class OnceService:
    """Who runs which key, and who waits for it."""

    handles = (ask.Once, ask.OnceDone, ask.OnceRelease)

    def __init__(self, writer: Submitter, clock: Clock) -> None:
        self._writer = writer
        self._clock = clock
        self._holders: dict[str, _Holder] = {}
        self._waiters: dict[str, deque[_Waiter]] = {}
        self._stopping = False

    def start(self) -> None:
        """Finds out who ran what when the daemon before ended, and gives them time to come back."""

        def done(outcome: list[tuple[str, str]] | EoqError) -> None:
            if isinstance(outcome, EoqError):
                self._clock.call_later(FAILED_RELEASE, self.start)
                return
            for key, token in outcome:
                if key not in self._holders:
                    holder = self._holders[key] = _Holder(token)
                    holder.timer = self._clock.call_later(RETURN_SECONDS, partial(self._release, key, holder))

        self._writer.submit(OnceRunning(), done, durable=False)

    def stop(self) -> None:
        """Answers all who wait."""
        self._stopping = True
        for waiters in list(self._waiters.values()):
            for waiter in list(waiters):
                self._waited(waiter)
        for holder in self._holders.values():
            if holder.timer is not None:
                holder.timer.cancel()

    def closed(self, session: Session) -> None:
        """A connection has ended: what it ran is open again, and what it waited for is forgotten."""
        for waiters in list(self._waiters.values()):
            for waiter in [waiter for waiter in waiters if waiter.session is session]:
                self._leave(waiter)
        for key, holder in list(self._holders.items()):
            if session in holder.sessions:
                holder.sessions.remove(session)
                if not holder.sessions and not self._stopping:
                    self._release(key, holder)

    def handle(self, session: Session, request: ask.Request, reply: Reply) -> None:
        """Acts on a request; ``reply`` is called once, now or later. Raises `EoqError` for what is refused."""
        match request:
            case ask.Once():
                ask.require_printable("key", request.key)
                ask.require_printable("fingerprint", request.fingerprint or "")
                waiter = _Waiter(session, request, reply)
                if waiter.patient:
                    waiter.timer = self._clock.call_later(request.wait, partial(self._waited, waiter))
                self._begin(waiter)
            case ask.OnceDone():
                ask.require_printable("key", request.key)
                self._finish(request, reply)
            case ask.OnceRelease(key=key, token=token):
                self._give_up(key, token, reply)

    # ── running, or waiting for the one who does ────────────────────────────────────────────────────────

    def _begin(self, waiter: _Waiter) -> None:
        request = waiter.request
        holder = self._holders.get(request.key)
        if holder is not None and holder.token == request.token:
            holder.join(waiter.session)  # at once: the connection it had before may end while the store is asked
        command = OnceBegin(self._clock.wall(), request.key, request.token, request.fingerprint)
        # A run that is lost with the power was one of a process that is gone as well.
        self._writer.submit(command, partial(self._began, waiter), durable=False)

    def _began(self, waiter: _Waiter, outcome: OnceRecord | EoqError) -> None:
        key = waiter.request.key
        if isinstance(outcome, EoqError):
            self._answer(waiter, outcome)
            if waiter.was_first:
                self._next(key)
        elif outcome.state == "done":
            self._answer(waiter, fields := _done(outcome))
            self._answer_alike(waiter, fields)
        elif outcome.mine:
            self._hold(waiter)
            self._answer(waiter, {"state": "run"})
        elif waiter.patient and not self._stopping and not waiter.session.closed:
            waiters = self._waiters.setdefault(key, deque())
            (waiters.appendleft if waiter.was_first else waiters.append)(waiter)
        else:
            self._answer(waiter, {"state": "running"})

    def _hold(self, waiter: _Waiter) -> None:
        key = waiter.request.key
        holder = self._holders.get(key)
        if holder is None or holder.token != waiter.request.token:
            holder = self._holders[key] = _Holder(waiter.request.token)
        if not waiter.session.closed:
            holder.join(waiter.session)
        elif not holder.sessions:
            self._release(key, holder)

    def _answer(self, waiter: _Waiter, outcome: Fields | EoqError) -> None:
        if waiter.timer is not None:
            waiter.timer.cancel()
        waiter.reply(outcome)

    def _waited(self, waiter: _Waiter) -> None:
        """The time of a waiter is over. What it asks of the store still answers it."""
        waiter.patient = False
        if self._leave(waiter):
            waiter.reply({"state": "running"})

    def _leave(self, waiter: _Waiter) -> bool:
        """Takes a waiter off its line; False where it stands in none."""
        if waiter.timer is not None:
            waiter.timer.cancel()
        waiters = self._waiters.get(waiter.request.key, deque())
        if waiter not in waiters:
            return False
        waiters.remove(waiter)
        if not waiters:
            del self._waiters[waiter.request.key]
        return True

    def _next(self, key: str) -> None:
        """The key may be open, or done: of those who wait, the first asks again."""
        if waiters := self._waiters.get(key):
            first = waiters.popleft()
            if not waiters:
                del self._waiters[key]
            first.was_first = True
            self._begin(first)

    def _answer_alike(self, answered: _Waiter, done: Fields) -> None:
        """All who wait for the same as ``answered`` have it now: an output may have megabytes, and is there once."""
        request = answered.request
        for waiter in list(self._waiters.get(request.key, ())):
            if waiter.request.fingerprint == request.fingerprint and self._leave(waiter):
                waiter.reply(done)
        self._next(request.key)

    # ── ending ──────────────────────────────────────────────────────────────────────────────────────────

    def _finish(self, request: ask.OnceDone, reply: Reply) -> None:
        output = get_bytes(request.output, request.output_base64, "output")
        size = len(output) if output is not None else request.output_bytes
        if output is not None and len(output) > MAX_OUTPUT:
            raise MessageTooLarge(
                f"the output has {len(output):,} bytes and {MAX_OUTPUT:,} is the limit; send `output_bytes` without it"
            )
        if size is None:
            raise InvalidRequest("give `output`, `output_base64`, or `output_bytes` where it is too large to keep")
        expires_at = None if request.ttl is None else self._clock.wall() + request.ttl
        command = OnceFinish(request.key, request.token, request.status, output, size, expires_at)
        self._end(request.key, request.token, command, reply, durable=True)

    def _give_up(self, key: str, token: str, reply: Reply) -> None:
        holder = self._holders.get(key)

        def answer(outcome: Fields | EoqError) -> None:
            reply(outcome)
            if isinstance(outcome, EoqError) and holder is not None and holder.token == token:
                # It will not run, whatever the disk says now.
                holder.sessions.clear()
                self._clock.call_later(FAILED_RELEASE, partial(self._release, key, holder))

        self._end(key, token, OnceRelease(key, token), answer, durable=False)

    def _end(self, key: str, token: str, command: Command[None], reply: Reply, *, durable: bool) -> None:
        def done(outcome: EoqError | None) -> None:
            if isinstance(outcome, EoqError):
                reply(outcome)
                return
            reply({})
            holder = self._holders.get(key)
            if holder is not None and holder.token == token:
                del self._holders[key]
            for waiter in list(self._waiters.get(key, ())):
                if waiter.request.token == token:
                    self._waited(waiter)  # who asked for it has given up
            self._next(key)

        self._writer.submit(command, done, durable)

    def _release(self, key: str, holder: _Holder) -> None:
        """The caller is gone; goes on trying if the disk refuses, until it is back."""
        if holder.sessions or self._holders.get(key) is not holder:
            return

        def done(outcome: object) -> None:
            if isinstance(outcome, EoqError):
                if not self._stopping:
                    self._clock.call_later(FAILED_RELEASE, partial(self._release, key, holder))
                return
            if not holder.sessions and self._holders.get(key) is holder:
                del self._holders[key]
            self._next(key)

        self._writer.submit(OnceRelease(key, holder.token), done, durable=False)


def _done(once: OnceRecord) -> Fields:
    fields: Fields = {"state": "done", "status": once.status, "output_bytes": once.output_bytes}
    if once.output is not None:
        put_bytes(fields, "output", once.output)
    return fields
