"""A processed id is never forgotten while its message could still be delivered, whatever happens (G9).

The test has the real broker and store, a real inbox file, and one clock that it owns. Hypothesis sends, receives,
processes, loses acks and leases, rejects, kills the daemon and the worker, sets the clock, prunes, and replaces both
files by older backups. After every step each effect exists once. And the inbox knows the id of each effect whose
message is not settled, be it in the daemon's file or in a backup that may still be restored.
"""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

import eoq
from eoq.client.admin import Admin
from eoq.daemon import requests
from eoq.daemon.broker.broker import Broker
from eoq.daemon.broker.events import Events
from eoq.daemon.config.settings import QueueSettings
from eoq.daemon.services.admin import AdminService
from eoq.daemon.services.topics import Topics
from eoq.daemon.session import Reply, Session
from eoq.daemon.store.commands import Command
from eoq.daemon.store.sqlite.store import SqliteStore
from eoq.protocol import admin_calls, calls
from eoq.protocol.codec import Fields, encode
from tests.model.hands import Dice, ManualClock

T = TypeVar("T")

EXAMPLES: Final = 8
MANY_EXAMPLES: Final = 500
STEPS: Final = 60
PATIENCE: Final = 1000
KEEP: Final = 100.0
MOST_KEPT: Final = 6
"""Messages that the worker keeps at most, for any length of time."""
LEASE: Final = 30.0
LIFE: Final = 15
"""The least number of steps between two events that leave little to forget."""
SETTINGS: Final = QueueSettings(max_attempts=3)
UNSETTLED: Final = """
    select queue.name, message.id
    from message
    join queue on queue.number = message.queue
    where message.state not in ('done', 'expired', 'dropped')
    """

queues = st.sampled_from(["a", "a", "a", "b"])
picks = st.integers(0, 2**16)
acks = st.sampled_from(["arrives", "arrives", "is lost"])


class Daemon(Admin):
    """A broker and its store without a socket. Every request is committed and answered before the next."""

    def __init__(self, path: Path, clock: ManualClock) -> None:
        super().__init__(self)  # type: ignore[arg-type] # it runs requests as a channel does
        self.path = path
        self._clock = clock
        self._loop = asyncio.new_event_loop()
        self._starts = 0
        self.session = Session()
        self.acks_arrive = True
        self._start()

    def _start(self) -> None:
        self._starts += 1
        self._submitted: list[tuple[Command[Any], Callable[[Any], None]]] = []
        self._store = self._loop.run_until_complete(SqliteStore.open(self.path, settings=lambda _: SETTINGS))
        events = Events()
        broker = Broker(
            self,
            self._clock,
            life=self._store.token,
            events=events,
            rng=Dice(1.0),
            settings=lambda _: SETTINGS,
        )
        admin = AdminService(self, self._clock, broker.due_times, events, Topics(self), lambda _: SETTINGS)
        self._handlers = {**broker.handlers, **admin.handlers, requests.Tail: self._tail, requests.Status: self._status}
        broker.start()
        self.rest()

    def _end(self) -> None:
        self._clock.forget()
        self.session = Session()
        self._loop.run_until_complete(self._store.close())

    def _tail(self, _session: Session, _request: Any, reply: Reply) -> None:
        """Return the last seq, for a purge."""
        (last,) = self._store.database.execute("select coalesce(max(seq), 0) from message").fetchone()
        reply({"messages": [], "after": last})

    def _status(self, _session: Session, _request: Any, reply: Reply) -> None:
        """Return the time, for a change of all dead letters."""
        reply({"now": self._clock.wall()})

    def submit(self, command: Command[Any], done: Callable[[Any], None], durable: bool = True) -> None:
        """Take a command from the broker, as the writer does."""
        self._submitted.append((command, done))

    def rest(self) -> None:
        """Commit, answer and fire timers until nothing is under way."""
        for _ in range(PATIENCE):
            if self._submitted:
                batch, self._submitted = self._submitted, []
                outcomes = self._store.transact([command for command, _ in batch])
                for (_, done), outcome in zip(batch, outcomes, strict=True):
                    done(outcome)
            elif self._clock.waits:
                self._clock.fire()
            else:
                return
        raise AssertionError("the daemon never comes to rest")

    def pass_time(self, seconds: float) -> None:
        """Let time pass. All timers fire in time."""
        target = self._clock.monotonic() + seconds
        while (due := self._clock.next_due()) is not None and due <= target:
            self._clock.move_to(due)
            self.rest()
        self._clock.move_to(target)

    def run(self, call: calls.Call[T]) -> T:
        """Send one request, as a client does."""
        replies: list[Fields | eoq.EoqError] = []
        request = requests.decode(encode(call.fields))
        try:
            self._handlers[type(request)](self.session, request, replies.append)
        except eoq.EoqError as refusal:
            raise refusal from None
        self.rest()
        (reply,) = replies
        if isinstance(reply, eoq.EoqError):
            raise reply
        return call.read(reply)

    def purge(self, queue: str) -> int:
        """Purge without asking for the last message first, as earlier clients do: this daemon answers no queries."""
        count, upto = self.run(admin_calls.purge(queue, sys.maxsize))
        while upto is not None:
            more, upto = self.run(admin_calls.purge(queue, upto))
            count += more
        return count

    def hang_up(self) -> None:
        """End the connection."""
        self.session.close()
        self.session = Session()
        self.rest()

    def restart(self) -> None:
        """Kill the daemon and start it again."""
        self._end()
        self._start()

    def replace(self, file: Path | None) -> None:
        """Replace its file by a backup, or remove it."""
        self._end()
        _replace(self.path, file)
        self._start()

    def close(self) -> None:
        """End the test."""
        self._end()
        self._loop.close()

    # ── what messages need of their client ──────────────────────────────────────────────────────────

    def ack(self, receipt: str, result: object = None, send: Iterable[eoq.Outgoing] = ()) -> None:
        if self.acks_arrive:
            self.run(calls.ack(receipt, result, list(send)))

    def ack_many(self, acks: Sequence[tuple[eoq.Message, object]]) -> None:
        if self.acks_arrive:
            self.run(calls.settle(acks, ()))

    def nack(self, receipt: str, delay: float | None = None, error: str | None = None) -> None:
        self.run(calls.nack(receipt, delay, error))

    def reject(self, receipt: str, error: str | None = None) -> None:
        self.run(calls.reject(receipt, error))

    def extend(self, receipt: str, seconds: float) -> None:
        self.run(calls.extend(receipt, seconds))


def _replace(path: Path, backup: Path | None) -> None:
    for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
        path.with_name(name).unlink(missing_ok=True)
    if backup is not None:
        shutil.copy(backup, path)


@dataclass(frozen=True)
class Backup:
    """A copy of the daemon's file, and when it was made (monotonic)."""

    file: Path
    made: float


def _effect(tx: sqlite3.Connection, message: eoq.Message) -> str:
    tx.execute("insert into effect (queue, id) values (?, ?)", (message.queue, message.id))
    return message.id


class Machine(RuleBasedStateMachine):
    """The rules."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="eoq-forget-"))
        self.app = self.folder / "app.db"
        self.clock = ManualClock()
        with closing(sqlite3.connect(self.app)) as database:
            database.execute("create table effect (queue text, id text)")
        self.daemon = Daemon(self.folder / "eoq.db", self.clock)
        self.inbox = self._open_inbox()
        self.kept: list[eoq.Message] = []
        self.backups: list[Backup] = []
        self.app_backup: Path | None = None
        self.serial = 0
        self.groups: dict[str, str | None] = {}
        """The group of each id, which is part of its content."""
        self.age = 0

    def _open_inbox(self) -> eoq.Inbox:
        return eoq.Inbox(self.app, keep=KEEP, clock=self.clock.wall)

    def teardown(self) -> None:
        try:
            self.inbox.close()
            self.daemon.close()
        finally:
            shutil.rmtree(self.folder)

    # ── messages ────────────────────────────────────────────────────────────────────────────────────────

    @rule(
        queue=queues,
        count=st.integers(1, 4),
        group=st.sampled_from([None, None, "g"]),
        delay=st.sampled_from([None, None, None, 50.0, 300.0]),
        ttl=st.sampled_from([None, None, None, 40.0]),
    )
    def send(self, queue: str, count: int, group: str | None, delay: float | None, ttl: float | None = None) -> None:
        for _ in range(count):
            self.serial += 1
            message = eoq.Outgoing(b"x", id=f"n{self.serial}", group=group, delay=delay, ttl=ttl)
            self.groups[f"n{self.serial}"] = group
            self.daemon.run(calls.send(queue, message))

    @rule(queue=queues, limit=st.integers(1, 3), bound=st.booleans())
    def receive(self, queue: str, limit: int, bound: bool) -> None:
        call = calls.receive(queue, eoq.Message, self.daemon, limit=limit, wait=0, lease=LEASE, bound=bound)
        received_at = self.clock.wall()
        self.kept += [replace(message, received_at=received_at) for message in self.daemon.run(call)]

    def _waiting(self) -> list[eoq.Message]:
        """Return the messages that the worker keeps. It may have handled or lost some of them before."""
        self.kept = self.kept[-MOST_KEPT:]
        return self.kept

    @rule(queue=queues, pick=picks, ack=acks, fails=st.sampled_from([False, False, False, True]))
    def process(self, queue: str, pick: int, ack: str, fails: bool) -> None:
        def handler(tx: sqlite3.Connection, message: eoq.Message) -> str:
            result = _effect(tx, message)
            if fails:
                raise OSError("no")
            return result

        if not self._waiting():
            self.send(queue, 1, None, None)
            self.receive(queue, 1, bound=False)
        if messages := self._waiting():
            self.daemon.acks_arrive = ack == "arrives"
            with suppress(eoq.LeaseLost, OSError):
                self.inbox.process(messages[pick % len(messages)], handler)

    @rule(queue=queues, ack=acks, seconds=st.sampled_from([0.0, 0.0, 1.0, 110.0]))
    def process_all(self, queue: str, ack: str, seconds: float) -> None:
        """An ordinary worker handles all messages, so that watermarks move on."""
        self.kept.clear()
        self.daemon.pass_time(seconds)
        self.send(queue, 3, None, None)
        self.receive(queue, 6, bound=False)
        self.process_kept(ack)

    @rule(ack=acks)
    def process_kept(self, ack: str) -> None:
        """Handle also messages that came long ago, from an earlier daemon, or twice."""
        self.daemon.acks_arrive = ack == "arrives"
        with suppress(eoq.LeaseLost):
            self.inbox.process_many(self._waiting(), _effect)

    @rule(queue=queues, how=st.sampled_from(["nack", "reject", "nothing"]), delay=st.sampled_from([0.0, 60.0, 300.0]))
    def process_without_ack(self, queue: str, how: str, delay: float) -> None:
        """A message has its effect, but no ack reaches the daemon. It stays there for any length of time."""
        self.kept.clear()
        self.receive(queue, 1, bound=False)
        self.process(queue, 0, "is lost", fails=False)
        if how != "nothing":
            self.give_up(0, how, delay)

    @rule(pick=picks, how=st.sampled_from(["nack", "reject"]), delay=st.sampled_from([0.0, 60.0, 300.0]))
    def give_up(self, pick: int, how: str, delay: float) -> None:
        """Nack or reject a message, which may have been processed, with its ack lost."""
        if not (messages := self._waiting()):
            return
        message = messages[pick % len(messages)]
        with suppress(eoq.LeaseLost):
            if how == "nack":
                message.nack(delay)
            else:
                message.reject()

    @rule(queue=queues, how=st.sampled_from(["redrive", "redrive", "drop", "purge"]))
    def decide(self, queue: str, how: str) -> None:
        """Redrive or drop dead letters, or purge a queue. Some messages may have been processed, their acks lost."""
        with suppress(eoq.NotFound):
            if how == "purge":
                self.daemon.purge(queue)
            elif how == "redrive":
                self.daemon.redrive(queue, everything=True)
            else:
                self.daemon.drop(queue, everything=True)

    @rule(queue=queues, how=st.sampled_from(["drop", "purge", "expire"]))
    def give_up_after_a_backup(self, queue: str, how: str) -> None:
        """A message had its effect long ago, and its ack was lost. It is given up right after a backup."""
        self.decide(queue, "purge")
        self.send(queue, 1, None, None, ttl=KEEP + 70 if how == "expire" else None)
        self.process_without_ack(queue, "reject" if how == "drop" else "nack", 300.0)
        self.time_passes(KEEP + 60)
        self.back_up(queue, then_work=False)
        if how == "expire":
            self.time_passes(10.0)
        else:
            self.decide(queue, how)
        self.process_all(queue, "arrives", 1.0)
        self.prune(elsewhere=False)

    # ── time, and what happens to the processes ────────────────────────────────────────────────────────────

    @rule(seconds=st.sampled_from([1.0, 10.0, 31.0, 70.0, 110.0, 110.0]))
    def time_passes(self, seconds: float) -> None:
        self.daemon.pass_time(seconds)

    @precondition(lambda self: self.age > LIFE)
    @rule(seconds=st.sampled_from([-500.0, -50.0, 50.0, 500.0]))
    def the_clock_is_set(self, seconds: float) -> None:
        self.age = 0
        self.clock.jump(seconds)
        if seconds > 0:
            # `keep` is counted by this clock, so that only the watermark protects.
            self.backups.clear()

    @rule()
    def the_daemon_is_killed(self) -> None:
        self.daemon.restart()

    @rule()
    def the_connection_ends(self) -> None:
        self.daemon.hang_up()

    @rule()
    def the_worker_starts_again(self) -> None:
        self.inbox.close()
        self.inbox = self._open_inbox()

    @rule(elsewhere=st.booleans())
    def prune(self, elsewhere: bool) -> None:
        """Prune here, or elsewhere, as a cron job does that has received no watermark itself."""
        with self._open_inbox() as other:
            (other if elsewhere else self.inbox).prune()

    # ── backups ─────────────────────────────────────────────────────────────────────────────────────────

    @rule(queue=queues, then_work=st.booleans())
    def back_up(self, queue: str, then_work: bool) -> None:
        """Back up the daemon's file. Messages that are not settled in it may be settled a moment later."""
        self.send(queue, 1, None, None)
        file = self.folder / f"backup{self.serial}-{len(self.backups)}-{self.clock.monotonic()}"
        _copy(self.daemon.path, file)
        self.backups = [*self._restorable()[-3:], Backup(file, self.clock.monotonic())]
        if then_work:
            for _ in range(2):
                self.process_all(queue, "arrives", 1.0)
            self.prune(elsewhere=False)

    def _restorable(self) -> list[Backup]:
        return [backup for backup in self.backups if backup.made >= self.clock.monotonic() - KEEP]

    @precondition(lambda self: self._restorable())
    @rule(pick=picks, queue=queues, then=st.sampled_from(["go on", "be quiet", "work"]))
    def restore(self, pick: int, queue: str, then: str) -> None:
        """Restore the daemon's file from a backup. Later backups then belong to a time that has not happened."""
        restorable = self._restorable()
        chosen = pick % len(restorable)
        self.backups = restorable[: chosen + 1]
        self.app_backup = None  # as in `begin_anew`
        self.daemon.replace(restorable[chosen].file)
        if then == "work":
            self.kept.clear()
            self.receive(queue, 6, bound=False)
            self.give_up(0, "reject", 0.0)
        if then != "go on":
            self.time_passes(KEEP + 10)
        if then == "work":
            self.process_all(queue, "arrives", 0.0)
        if then != "go on":
            self.prune(elsewhere=False)

    @precondition(lambda self: self.age > LIFE)
    @rule(again=st.booleans(), queue=queues)
    def begin_anew(self, again: bool, queue: str) -> None:
        """Start the daemon with a new file: its seqs begin with 1 again, and an id may get another seq."""
        self.age = 0
        self.backups.clear()
        self.app_backup = None  # both files replaced is not covered: see the first lines of eoq/inbox/rules/pruning.py
        with closing(sqlite3.connect(self.app)) as database:
            known = database.execute("select id from eoq_processed where queue = ? order by seq", (queue,)).fetchall()
        self.daemon.replace(None)
        if again and known:
            for _ in range(2):
                self.process_all(queue, "arrives", 0.0)
            id = known[0][0]
            self.daemon.run(calls.send(queue, eoq.Outgoing(b"x", id=id, group=self.groups.get(id))))
            self.process_without_ack(queue, "nack", 300.0)
            self.process_all(queue, "arrives", 110.0)
            self.prune(elsewhere=False)

    @rule()
    def back_up_the_application(self) -> None:
        self.app_backup = self.folder / "app-backup"
        self.app_backup.unlink(missing_ok=True)
        _copy(self.app, self.app_backup)

    @precondition(lambda self: self.app_backup and self.age > LIFE)
    @rule()
    def restore_the_application(self) -> None:
        """Restore the application's file: effects and ids go back together. Backups of the daemon count no more."""
        self.age = 0
        self.inbox.close()
        _replace(self.app, self.app_backup)
        self.inbox = self._open_inbox()
        self.backups.clear()

    # ── what must hold ──────────────────────────────────────────────────────────────────────────────────

    @invariant()
    def holds(self) -> None:
        self.age += 1
        with closing(sqlite3.connect(self.app)) as database:
            effects = database.execute("select queue, id from effect").fetchall()
            known = set(database.execute("select queue, id from eoq_processed").fetchall())
        assert len(effects) == len(set(effects)), "an effect happened twice"
        forgotten = set(effects) - known
        for file in (self.daemon.path, *(backup.file for backup in self._restorable())):
            with closing(sqlite3.connect(file)) as database:
                wrong = forgotten.intersection(database.execute(UNSETTLED))
            assert not wrong, f"forgotten, and can still be delivered: {wrong}"


def _copy(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as from_, closing(sqlite3.connect(target)) as to:
        from_.backup(to)
        to.execute("pragma journal_mode = delete")


def _run(examples: int) -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            deadline=None,  # a slow disk is no failure
            derandomize=True,
            database=None,
            print_blob=True,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )


# ── single cases ──────────────────────────────────────────────────────────────


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine()
    try:
        yield machine
        machine.holds()
    finally:
        machine.teardown()


def _known(machine: Machine) -> int:
    with closing(sqlite3.connect(machine.app)) as database:
        (count,) = database.execute("select count(*) from eoq_processed").fetchone()
    return int(count)


def test_an_old_id_below_the_watermark_is_forgotten(machine: Machine) -> None:
    machine.process_all("a", "arrives", 0.0)
    machine.process_all("a", "arrives", KEEP + 1)
    assert machine.inbox.prune() == 3
    assert machine.inbox.prune() == 0
    assert _known(machine) == 3


@pytest.mark.parametrize("how", ["nack", "reject", "nothing"])
def test_a_message_that_is_not_settled_stops_the_watermark(machine: Machine, how: str) -> None:
    machine.process_without_ack("a", how, 300.0)
    machine.receive("a", 1, bound=False)
    machine.process_all("a", "is lost", KEEP + 1)
    assert machine.inbox.prune() == 0
    machine.holds()


def test_an_id_is_kept_whose_message_a_backup_may_bring_back(machine: Machine) -> None:
    machine.back_up("a", then_work=True)
    assert machine.inbox.prune() == 0


@pytest.mark.parametrize("how", ["drop", "purge", "expire"])
def test_an_id_is_kept_whose_message_was_processed_and_then_given_up(machine: Machine, how: str) -> None:
    """Its ack was lost, so only the inbox knows that. A backup may bring the message back much later."""
    machine.give_up_after_a_backup("a", how)
    machine.holds()


@pytest.mark.parametrize("then", ["be quiet", "work"])
def test_an_id_is_kept_while_its_message_is_back_from_a_backup(machine: Machine, then: str) -> None:
    """The watermark from before the restore counts no more, however long ago the id was processed."""
    machine.back_up("a", then_work=True)
    machine.restore(0, "a", then)
    machine.holds()
    assert _known(machine) > 0
    machine.process_all("a", "arrives", 0.0)


def test_a_redelivered_message_is_remembered_from_its_redelivery_on(machine: Machine) -> None:
    """Its ack was lost long ago. A backup from before the second ack may bring it back once more."""
    machine.process_without_ack("a", "nack", KEEP + 50)
    machine.time_passes(KEEP + 60)
    machine.back_up("a", then_work=True)
    machine.holds()


@pytest.mark.parametrize("restarted", [False, True])
def test_a_new_file_of_the_daemon_begins_with_low_seqs(machine: Machine, restarted: bool) -> None:
    for _ in range(3):
        machine.process_all("a", "arrives", 0.0)
    if restarted:
        machine.the_worker_starts_again()
    machine.begin_anew(again=True, queue="a")


def test_the_watermark_of_an_old_delivery_does_not_count(machine: Machine) -> None:
    """The delivery came before the restore, and is handled long after it."""
    machine.back_up("a", then_work=True)
    machine.send("a", 1, None, None)
    machine.receive("a", 1, bound=False)
    machine.restore(0, "a", "go on")
    machine.time_passes(KEEP + 10)
    machine.process_kept("is lost")
    machine.prune(elsewhere=False)


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("by_another", [False, True])
def test_a_late_delivery_whose_id_may_be_forgotten_is_refused(machine: Machine, many: bool, by_another: bool) -> None:
    """Its lease ended long ago. Another worker has processed the message since, and its record is gone."""
    machine.send("a", 1, None, None)
    machine.receive("a", 1, bound=False)
    (late,) = machine.kept
    machine.time_passes(LEASE + 1)
    machine.process_all("a", "arrives", 0.0)
    machine.process_all("a", "arrives", KEEP + 1)
    machine.prune(elsewhere=False)
    assert not machine.inbox.seen("a", late.id)
    if by_another:
        machine.the_worker_starts_again()
    if many:
        (outcome,) = machine.inbox.process_many([late], _effect)
        assert isinstance(outcome, eoq.LeaseLost)
    else:
        with pytest.raises(eoq.LeaseLost, match="delivered more than 100 s ago"):
            machine.inbox.process(late, _effect)


def test_a_late_delivery_is_processed_if_its_lease_lives_and_nothing_was_received_since(machine: Machine) -> None:
    """No later watermark was received, so nothing can have been forgotten."""
    machine.send("a", 1, None, None)
    machine.receive("a", 1, bound=False)
    for _ in range(10):
        machine.daemon.extend(machine.kept[0].receipt, LEASE)
        machine.time_passes(LEASE - 1)
    assert machine.inbox.process(machine.kept[0], _effect) == b"n1"


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_clock_that_was_ahead_for_a_moment_makes_no_id_old_and_stops_no_pruning(
    machine: Machine, elsewhere: bool
) -> None:
    machine.process_all("a", "arrives", 0.0)
    machine.the_clock_is_set(500.0)
    machine.process_all("a", "arrives", 0.0)
    machine.prune(elsewhere)
    machine.the_worker_starts_again()
    machine.process_all("a", "arrives", 0.0)
    assert _known(machine) == 9, "no id is as old as it seems"
    machine.the_clock_is_set(-500.0)
    machine.prune(elsewhere)
    assert _known(machine) == 9, "moments from when the clock was ahead do not count"
    machine.process_all("a", "arrives", KEEP + 1)
    machine.process_all("a", "arrives", KEEP + 1)
    machine.prune(elsewhere=False)
    assert _known(machine) == 9, "the six ids that are dated in the future, and the last ones"


def test_a_slow_worker_is_found_out_although_the_clock_was_ahead_for_a_moment(machine: Machine) -> None:
    """Its message was processed by another worker. Nobody has forgotten that, whatever the clock said meanwhile."""
    machine.send("a", 1, None, None)
    machine.receive("a", 1, bound=False)
    (slow,) = machine.kept
    machine.time_passes(LEASE + 1)
    machine.process_all("a", "arrives", 0.0)
    machine.the_clock_is_set(2 * 86400.0)
    machine.the_worker_starts_again()
    machine.process_all("a", "arrives", 0.0)
    machine.prune(elsewhere=True)
    machine.the_clock_is_set(-2 * 86400.0)
    with suppress(eoq.LeaseLost):
        machine.inbox.process(slow, _effect)
    machine.holds()


def test_a_clock_that_is_behind_for_a_moment_makes_no_id_old(machine: Machine) -> None:
    """The ids that were processed then seem old as soon as the clock is right again. A backup brings one back."""
    for _ in range(3):
        machine.process_all("a", "arrives", KEEP)
    machine.back_up("a", then_work=False)
    machine.clock.jump(-10 * 86400.0)
    machine.the_worker_starts_again()
    machine.process_all("a", "arrives", 0.0)
    machine.clock.jump(10 * 86400.0)
    for _ in range(2):
        machine.process_all("a", "arrives", 1.0)
        machine.prune(elsewhere=False)
    machine.restore(0, "a", "go on")
    machine.process_all("a", "arrives", 0.0)
    machine.holds()


def test_a_long_pause_only_delays_pruning(machine: Machine) -> None:
    machine.process_all("a", "arrives", 0.0)
    machine.process_all("a", "arrives", 30 * 86400.0)
    machine.prune(elsewhere=False)
    assert _known(machine) == 6, "it may be the clock"
    machine.process_all("a", "arrives", 2 * KEEP + 1)
    machine.prune(elsewhere=False)
    assert _known(machine) == 6, "the oldest three are forgotten"


def test_a_clock_that_is_set_back_makes_no_id_older_than_it_is(machine: Machine) -> None:
    """Ids processed then are dated before a watermark that was received earlier, and may have earlier seqs."""
    machine.back_up("a", then_work=True)
    machine.process_all("a", "arrives", 0.0)
    machine.prune(elsewhere=False)
    machine.restore(0, "a", "go on")
    machine.age = LIFE + 1
    machine.the_clock_is_set(-500.0)
    machine.back_up("a", then_work=False)
    machine.process_all("a", "arrives", 1.0)
    machine.restore(1, "a", "go on")
    machine.time_passes(600.0)
    machine.prune(elsewhere=True)


@pytest.mark.slow
def test_no_id_is_forgotten_whose_message_can_still_be_delivered() -> None:
    _run(EXAMPLES)


@pytest.mark.slow
def test_no_id_is_forgotten_whose_message_can_still_be_delivered_at_length() -> None:
    _run(MANY_EXAMPLES)
