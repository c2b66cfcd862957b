"""The table of crash points of the daemon, and one crash: kill the daemon, check the disk, let the client repeat.

The client itself repeats the request that was in flight when the daemon died, with the same ids and receipts. So the
next daemon listens on a socket that the client does not know. It gets the client's path after the disk was checked.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

import eoq
from tests.faults.daemons import PlantedDaemon, ids_of, left, planted_daemon, settle_all, show
from tests.faults.planted_daemon import Die, Plant
from tests.faults.planted_daemon import Point as PlantedPoint
from tests.support import PATIENCE, Wire, eventually

Point: TypeAlias = PlantedPoint | Literal["replied"]
POINTS: Final[tuple[Point, ...]] = (*get_args(PlantedPoint), "replied")
"""The points of `Die`, and ``replied``: the client has read the reply, and then the daemon is killed."""
COMMITTED: Final[tuple[Point, ...]] = ("committed", "replying", "replied")
"""The points after which the operation is on disk: all points at which the client may have a confirmation (G1)."""

Leased: TypeAlias = Sequence[eoq.Message]
ABSENT: Final = "absent"
LOST: Final = "ready 1 the daemon ended before the message was settled"
"""A message that was leased when the daemon was killed: it is delivered again, and the lost delivery counts."""


@dataclass(frozen=True)
class Operation:
    """A client's request, and the ``command`` of the store whose transaction it becomes.

    ``before`` and ``after`` are what a restarted daemon shows of each message without and with that transaction on
    disk: state, attempts unless it is settled, and the error or the result.
    """

    name: str
    command: str
    call: Callable[[eoq.Client, Leased], object]
    before: Mapping[str, str]
    after: Mapping[str, str]
    prepared: tuple[eoq.Outgoing, ...] = ()
    """The messages that are in the queue before; they are leased if ``leases``."""
    leases: bool = False
    dead: bool = False
    """Whether the prepared messages are dead letters."""
    if_repeated: Literal["answered", "lease lost"] = "answered"
    """The answer to a repetition of a request that is on disk. If it is not on disk, the lease is always lost."""


def _send(client: eoq.Client, _leased: Leased) -> object:
    return client.send("work", "body of a", id="a")


def _send_many(client: eoq.Client, _leased: Leased) -> object:
    return client.send_many("work", [eoq.Outgoing(f"body of {id}", id=id) for id in "abc"])


def _receive(client: eoq.Client, _leased: Leased) -> object:
    return client.receive("work", 10, wait=10, bound=True)


def _send_to_waiting_receiver(client: eoq.Client, _leased: Leased) -> object:
    client.send("work", "x")
    settle_all(client, "work")
    with Wire(client.path) as waiting:
        waiting.send({"op": "receive", "queue": "work", "wait": 60})
        eventually(lambda: client.ask("status")["waiting"], what="a receiver waits")
        return client.send("work", "body of a", id="a")


def _ack(_client: eoq.Client, leased: Leased) -> None:
    leased[0].ack(result="r")


def _settle(client: eoq.Client, leased: Leased) -> None:
    with client.transaction() as tx:
        tx.ack(leased[0], result="r")
        tx.ack(leased[1])
        tx.send("next", "joined", id="out")


def _nack(_client: eoq.Client, leased: Leased) -> None:
    leased[0].nack(delay=0, error="why")


def _reject(_client: eoq.Client, leased: Leased) -> None:
    leased[0].reject(error="why")


def _redrive(client: eoq.Client, _leased: Leased) -> object:
    return client.redrive("work", ["a"])


def _drop(client: eoq.Client, _leased: Leased) -> object:
    return client.drop("work", everything=True)


def _purge(client: eoq.Client, _leased: Leased) -> object:
    return client.purge("work")


def _send_to_topic(client: eoq.Client, _leased: Leased) -> object:
    client.bind("topic", "work")
    client.bind("topic", "next")
    return client.send("topic", "body of a", id="a")


_A: Final = (eoq.Outgoing("body of a", id="a"),)
_A_AND_B: Final = (*_A, eoq.Outgoing("body of b", id="b"))
_A_BEFORE_B: Final = (eoq.Outgoing("body of a", id="a", group="g"), eoq.Outgoing("body of b", id="b", group="g"))

OPERATIONS: Final = (
    Operation(
        "send",
        "put",
        _send,
        before={"work/a": ABSENT},
        after={"work/a": "ready 0"},
    ),
    Operation(
        "send_many",
        "put",
        _send_many,
        before={"work/a": ABSENT, "work/b": ABSENT, "work/c": ABSENT},
        after={"work/a": "ready 0", "work/b": "ready 0", "work/c": "ready 0"},
    ),
    Operation(
        "send to a waiting receiver",
        "store_and_claim",
        _send_to_waiting_receiver,
        before={"work/a": ABSENT},
        after={"work/a": LOST},
    ),
    Operation(
        "claim",
        "claim",
        _receive,
        before={"work/a": "ready 0"},
        after={"work/a": LOST},
        prepared=_A,
    ),
    Operation(
        "ack",
        "settle",
        _ack,
        before={"work/a": LOST, "work/b": "blocked 0"},
        after={"work/a": "done r", "work/b": "ready 0"},
        prepared=_A_BEFORE_B,
        leases=True,
    ),
    Operation(
        "settle",
        "settle",
        _settle,
        before={"work/a": LOST, "work/b": LOST, "next/out": ABSENT},
        after={"work/a": "done r", "work/b": "done", "next/out": "ready 0"},
        prepared=_A_AND_B,
        leases=True,
    ),
    Operation(
        "nack",
        "retry",
        _nack,
        before={"work/a": LOST},
        after={"work/a": "ready 1 why"},
        prepared=_A,
        leases=True,
        if_repeated="lease lost",
    ),
    Operation(
        "reject",
        "reject",
        _reject,
        before={"work/a": LOST},
        after={"work/a": "dead 1 why"},
        prepared=_A,
        leases=True,
    ),
    Operation(
        "redrive",
        "redrive",
        _redrive,
        before={"work/a": "dead 1 why", "work/b": "dead 1 why"},
        after={"work/a": "ready 0 why", "work/b": "dead 1 why"},
        prepared=_A_BEFORE_B,
        dead=True,
    ),
    Operation(
        "drop",
        "drop",
        _drop,
        before={"work/a": "dead 1 why", "work/b": "dead 1 why"},
        after=dict.fromkeys(
            ("work/a", "work/b"),
            "dropped an operator dropped the dead letter; it was delivered before, so it may have taken effect",
        ),
        prepared=_A_AND_B,
        dead=True,
    ),
    Operation(
        "purge",
        "purge",
        _purge,
        before={"work/a": "ready 0", "work/b": "blocked 0"},
        after=dict.fromkeys(("work/a", "work/b"), "dropped the queue was purged"),
        prepared=_A_BEFORE_B,
    ),
    Operation(
        "send to a topic",
        "put",
        _send_to_topic,
        before={"work/a": ABSENT, "next/a": ABSENT},
        after={"work/a": "ready 0", "next/a": "ready 0"},
    ),
)


def crash(operation: Operation, point: Point, quick_commit: float | None = None) -> None:
    """Kill a daemon at ``point`` of ``operation``. Check the disk, the client's answer, and the state at the end."""
    die = None if point == "replied" else Die(point, operation.command)
    with (
        planted_daemon(Plant(die, quick_commit)) as daemon,
        eoq.connect(daemon.socket, timeout=PATIENCE) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        leased = _prepare(client, operation)
        answer = pool.submit(operation.call, client, leased)
        if point == "replied":
            answer.result(PATIENCE)
            daemon.kill()
        assert daemon.wait() == -signal.SIGKILL
        happened = point in COMMITTED
        known, daemon.socket = daemon.socket, daemon.socket.with_name("check")
        daemon.start_plain()
        assert _on_disk(daemon, operation) == (operation.after if happened else operation.before)
        link = known.with_name("link")
        link.symlink_to(daemon.socket)
        link.replace(known)  # at once: the client always finds a path there
        _check_answer(operation, point, answer)
        client.close()
        _check_end(daemon, operation, happened)


def _prepare(client: eoq.Client, operation: Operation) -> Leased:
    client.ask("status")  # from now on the client waits for a daemon that is gone
    if operation.prepared:
        client.send_many("work", operation.prepared)
    while operation.dead and (leased := client.receive("work", 10)):
        for message in leased:
            message.reject(error="why")
    return client.receive("work", 10) if operation.leases else []


def _on_disk(daemon: PlantedDaemon, operation: Operation) -> dict[str, str]:
    with eoq.connect(daemon.socket) as client:
        return {path: _state(client, *path.split("/")) for path in operation.after}


def _state(client: eoq.Client, queue: str, id: str) -> str:
    message = show(client, queue, id)
    if message is None:
        return ABSENT
    more = [message[name] for name in ("error", "result") if name in message]
    attempts = [str(message["attempts"])] if "attempts" in message else []
    return " ".join([message["state"], *attempts, *more])


def _check_answer(operation: Operation, point: Point, answer: Future[object]) -> None:
    """Check that the client has the right answer in the end, although the first daemon is gone."""
    if point not in COMMITTED:
        lost = operation.leases
    else:
        lost = operation.if_repeated == "lease lost" and point == "committed"
    error = answer.exception(2 * PATIENCE)
    if point == "replying" and operation.if_repeated == "lease lost":
        assert error is None or isinstance(error, eoq.LeaseLost)  # the reply may or may not have arrived
    elif lost:
        assert isinstance(error, eoq.LeaseLost)
    else:
        assert error is None


def _check_end(daemon: PlantedDaemon, operation: Operation, happened: bool) -> None:
    """Check that all unsettled messages are delivered once, and that nothing is left then."""
    done = happened or not operation.leases  # a request that lost no lease was repeated until it was done
    states = operation.after if done else operation.before
    expected = [path for path, state in states.items() if state.startswith(("ready", "blocked"))]
    settled: list[str] = []
    with eoq.connect(daemon.socket) as client:

        def drained() -> bool:
            settled.extend(f"{queue}/{id}" for queue in ("work", "next") for id in ids_of(settle_all(client, queue)))
            return not any(left(client, queue).keys() - {"dead"} for queue in ("work", "next"))

        eventually(drained, what="all is settled")
    assert sorted(settled) == sorted(expected)
