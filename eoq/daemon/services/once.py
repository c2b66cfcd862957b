"""The dedup service: of all callers with one key, the first runs. The others wait, and get the output of its run.

A caller owns its key for as long as its connection lives. The file also says which caller runs which key. So a restart
of the daemon does not start a second run beside the first: the first caller has some time to reconnect.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from ...errors import EoqError, InvalidRequest, MessageTooLarge
from ...protocol.codec import get_bytes, put_bytes
from ...protocol.limits import MAX_OUTPUT
from .. import requests as ask
from ..broker.wait_list import Waiter, WaitList
from ..clock import Clock, Timer
from ..records import OnceRecord
from ..request_values import require_printable
from ..session import Fields, Handlers, Reply, Session, Submitter
from ..store.commands import Command, OnceBegin, OnceFinish, OnceRelease, OnceRunning

RETURN_SECONDS: Final = 30.0
"""How long a caller may take to reconnect after a restart of the daemon, before its key is open again."""
RETRY_SECONDS: Final = 1.0
"""Seconds until a command that the disk refused is tried again."""


class Runner:
    """The caller that runs a key, and its connections.

    A runner without connections has disconnected, and its key is about to be opened. Or it ran before a restart of the
    daemon, and has not reconnected yet.
    """

    def __init__(self, key: str, token: str) -> None:
        self.key = key
        self.token = token
        self.sessions: set[Session] = set()
        self.timer: Timer | None = None
        """Opens the key, unless the caller reconnects after a restart."""


class Caller(Waiter, eq=False, kw_only=True):
    """A caller that has not been answered. Its name in the list is its key and token."""

    request: ask.Once
    patient: bool
    """Whether it waits in the list if another caller runs its key."""
    was_first: bool = False
    """Whether it was first in its line, and the store is asked again for it. Others may wait behind it."""


class OnceService:
    """The runners of all keys, and the callers that wait for them."""

    def __init__(self, writer: Submitter, clock: Clock) -> None:
        self._writer = writer
        self._clock = clock
        self._runners: dict[str, Runner] = {}
        """By key."""
        self._by_session: dict[Session, dict[Runner, None]] = {}
        self._waiting: WaitList[Caller] = WaitList(clock, self._end_wait)
        self._stopping = False
        self.handlers: Handlers = {
            ask.Once: self._once,
            ask.OnceDone: self._finish,
            ask.OnceRelease: self._release_request,
        }

    def start(self) -> None:
        """Read which callers ran keys when the last daemon ended, and give them time to reconnect."""

        def done(outcome: list[tuple[str, str]] | EoqError) -> None:
            if isinstance(outcome, EoqError):
                self._clock.call_later(RETRY_SECONDS, self.start)
                return
            for key, token in outcome:
                if key not in self._runners:
                    runner = self._runners[key] = Runner(key, token)
                    runner.timer = self._clock.call_later(RETURN_SECONDS, partial(self._release, runner))

        self._writer.submit(OnceRunning(), done, durable=False)

    def stop(self) -> None:
        """Answer all callers that wait."""
        self._stopping = True
        for caller in self._waiting.all_waiters():
            self._end_wait(caller)
        for runner in self._runners.values():
            if runner.timer is not None:
                runner.timer.cancel()

    # ── running, or waiting for the run of another caller ───────────────────────────────────────────────

    def _once(self, session: Session, request: ask.Once, reply: Reply) -> None:
        require_printable("key", request.key)
        require_printable("fingerprint", request.fingerprint or "")
        caller = Caller(
            session=session,
            reply=reply,
            key=request.key,
            name=(request.key, request.token),
            request=request,
            patient=request.wait > 0,
        )
        if caller.patient:
            self._waiting.start_timer(caller, request.wait)
        self._begin(caller)

    def _begin(self, caller: Caller) -> None:
        request = caller.request
        runner = self._runners.get(request.key)
        if runner is not None and runner.token == request.token:
            # Done now, because its earlier connection may end while the store is asked.
            self._connect(runner, caller.session)
        command = OnceBegin(self._clock.wall(), request.key, request.token, request.fingerprint)
        # Not durable: a run that a loss of power undoes belongs to a process that has ended as well.
        self._writer.submit(command, partial(self._begun, caller), durable=False)

    def _begun(self, caller: Caller, outcome: OnceRecord | EoqError) -> None:
        key = caller.request.key
        if isinstance(outcome, EoqError):
            self._answer(caller, outcome)
            if caller.was_first:
                self._next(key)
        elif outcome.state == "done":
            self._answer(caller, fields := _done(outcome))
            self._answer_alike(caller, fields)
        elif outcome.mine:
            self._run(caller)
            self._answer(caller, {"state": "run"})
        elif caller.patient and not self._stopping and not caller.session.closed:
            self._waiting.join(caller, first=caller.was_first)
            caller.session.parked(caller.request)
        else:
            self._answer(caller, {"state": "running"})

    def _run(self, caller: Caller) -> None:
        """Note that a caller runs its key."""
        key, token = caller.request.key, caller.request.token
        runner = self._runners.get(key)
        if runner is None or runner.token != token:
            if runner is not None:
                self._forget_connections(runner)
            runner = self._runners[key] = Runner(key, token)
        if not caller.session.closed:
            self._connect(runner, caller.session)
        elif not runner.sessions:
            self._release(runner)

    def _connect(self, runner: Runner, session: Session) -> None:
        """Note that a runner has a connection."""
        runner.sessions.add(session)
        if runner.timer is not None:
            runner.timer.cancel()
            runner.timer = None
        runners = self._by_session.get(session)
        if runners is None:
            runners = self._by_session[session] = {}
            session.on_close(partial(self._disconnect, session))
        runners[runner] = None

    def _disconnect(self, session: Session) -> None:
        """Open the keys whose runners have no other connection."""
        for runner in self._by_session.pop(session):
            runner.sessions.discard(session)
            if not runner.sessions and not self._stopping:
                self._release(runner)

    def _answer(self, caller: Caller, outcome: Fields | EoqError) -> None:
        self._waiting.leave(caller)
        caller.reply(outcome)

    def _end_wait(self, caller: Caller) -> None:
        """Answer a caller that waits. If the store is being asked for it, that outcome answers it."""
        caller.patient = False
        if self._waiting.leave(caller):
            caller.reply({"state": "running"})

    def _next(self, key: str) -> None:
        """Let the first caller in the line ask the store again: the key may be open, or done."""
        first = self._waiting.pop_first(key)
        if first is not None:
            first.was_first = True
            self._begin(first)

    def _answer_alike(self, answered: Caller, done: Fields) -> None:
        """Give all waiting callers with the same fingerprint one reply, which may have megabytes, so it exists once."""
        request = answered.request
        for caller in list(self._waiting.line(request.key)):
            if caller.request.fingerprint == request.fingerprint:
                self._answer(caller, done)
        self._next(request.key)

    # ── ending ──────────────────────────────────────────────────────────────────────────────────────────

    def _finish(self, _session: Session, request: ask.OnceDone, reply: Reply) -> None:
        require_printable("key", request.key)
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

    def _release_request(self, _session: Session, request: ask.OnceRelease, reply: Reply) -> None:
        key, token = request.key, request.token
        runner = self._runners.get(key)

        def answer(outcome: Fields | EoqError) -> None:
            reply(outcome)
            if isinstance(outcome, EoqError) and runner is not None and runner.token == token:
                # The caller will not run, even if the disk has failed now.
                self._forget_connections(runner)
                self._clock.call_later(RETRY_SECONDS, partial(self._release, runner))

        self._end(key, token, OnceRelease(key, token), answer, durable=False)

    def _end(self, key: str, token: str, command: Command[None], reply: Reply, *, durable: bool) -> None:
        def done(outcome: EoqError | None) -> None:
            if isinstance(outcome, EoqError):
                reply(outcome)
                return
            reply({})
            runner = self._runners.get(key)
            if runner is not None and runner.token == token:
                self._forget_connections(runner)
                del self._runners[key]
            for caller in self._waiting.named((key, token)):
                self._end_wait(caller)  # the caller has given up
            self._next(key)

        self._writer.submit(command, done, durable)

    def _forget_connections(self, runner: Runner) -> None:
        for session in runner.sessions:
            del self._by_session[session][runner]
        runner.sessions.clear()

    def _release(self, runner: Runner) -> None:
        """Open the key of a runner without connections. If the disk fails, keep trying until the runner reconnects."""
        key = runner.key
        if runner.sessions or self._runners.get(key) is not runner:
            return

        def done(outcome: EoqError | None) -> None:
            if isinstance(outcome, EoqError):
                if not self._stopping:
                    self._clock.call_later(RETRY_SECONDS, partial(self._release, runner))
                return
            if not runner.sessions and self._runners.get(key) is runner:
                del self._runners[key]
            self._next(key)

        self._writer.submit(OnceRelease(key, runner.token), done, durable=False)


def _done(once: OnceRecord) -> Fields:
    fields: Fields = {"state": "done", "status": once.status, "output_bytes": once.output_bytes}
    if once.output is not None:
        put_bytes(fields, "output", once.output)
    return fields
