"""Attempts: of the deliveries that end without being settled, only those count that were being handled.

A receive says by ``handles`` how many of its messages are handled at once. The first ones that are not settled count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pytest

from tests.support import Daemon, Fields, Wire, error_of, eventually

IDS: Final = ["a", "b", "c", "d"]


def _fill(wire: Wire, **options: object) -> None:
    messages = [{"id": id, "body": "x", **options} for id in IDS]
    assert wire.ask({"op": "send_many", "queue": "q", "messages": messages})["ok"]


def _receive(wire: Wire, **options: object) -> list[Fields]:
    reply = wire.ask({"op": "receive", "queue": "q", "limit": 10, "wait": 5, "lease": 3600, **options})
    messages: list[Fields] = reply["messages"]
    return messages


def _shown(wire: Wire) -> dict[str, Fields]:
    """Return all messages, once none is leased."""

    def look() -> dict[str, Fields] | None:
        found = {id: wire.ask({"op": "show", "queue": "q", "id": id})["message"] for id in IDS}
        return None if "leased" in [one["state"] for one in found.values()] else found

    return eventually(look, what="all leases end") or {}


def _attempts(wire: Wire) -> dict[str, int]:
    """Return how many deliveries of each message have counted, once none is leased."""
    shown = _shown(wire)
    assert {one["state"] for one in shown.values()} == {"ready"}
    for one in shown.values():
        assert one["attempts"] == sum("failed_at" in delivery for delivery in one.get("history", ()))
    return {id: one["attempts"] for id, one in shown.items() if one["attempts"]}


def _hang_up(_daemon: Daemon, consumer: Wire) -> None:
    consumer.close()


def _kill(daemon: Daemon, _consumer: Wire) -> None:
    daemon.kill()
    daemon.start()


def _stop(daemon: Daemon, _consumer: Wire) -> None:
    assert daemon.terminate() == 0
    daemon.start()


ENDS: Final[dict[str, Callable[[Daemon, Wire], None]]] = {"hung-up": _hang_up, "killed": _kill}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
@pytest.mark.parametrize(
    ("handles", "counted"), [(None, IDS), (0, []), (1, ["a"]), (2, ["a", "b"]), (1000, IDS)], ids=str
)
@pytest.mark.first_by_default
def test_the_first_messages_count_as_many_as_are_handled_at_once(
    daemon: Daemon, end: Callable[[Daemon, Wire], None], handles: int | None, counted: list[str]
) -> None:
    with daemon.wire() as consumer:
        _fill(consumer)
        options = {} if handles is None else {"handles": handles}
        assert len(_receive(consumer, bound=True, **options)) == len(IDS)
        end(daemon, consumer)
        with daemon.wire() as wire:
            assert _attempts(wire) == dict.fromkeys(counted, 1)


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
def test_settled_and_released_messages_do_not_count_among_the_first(
    daemon: Daemon, end: Callable[[Daemon, Wire], None]
) -> None:
    with daemon.wire() as consumer:
        _fill(consumer)
        first, second, third, _ = (one["receipt"] for one in _receive(consumer, bound=True, handles=1))
        assert consumer.ask({"op": "reject", "receipt": first})["ok"]
        assert consumer.ask({"op": "release", "receipts": [second]})["ok"]
        assert consumer.ask({"op": "nack", "receipt": third, "delay": 0})["ok"]
        end(daemon, consumer)
        with daemon.wire() as wire:
            shown = _shown(wire)
    assert {id: (one["state"], one["attempts"]) for id, one in shown.items()} == {
        "a": ("dead", 1),
        "b": ("ready", 0),
        "c": ("ready", 1),
        "d": ("ready", 1),
    }


def test_leases_that_end_by_time_count_as_many_as_are_handled_at_once(daemon: Daemon) -> None:
    with daemon.wire() as wire:
        _fill(wire)
        assert len(_receive(wire, lease=0.1, handles=1)) == len(IDS)
        assert _attempts(wire) == {"a": 1}


@pytest.mark.parametrize("bound", [True, False])
def test_a_clean_stop_of_the_daemon_counts_nothing(daemon: Daemon, bound: bool) -> None:
    with daemon.wire() as consumer:
        _fill(consumer)
        receipts = [one["receipt"] for one in _receive(consumer, bound=bound)]
        _stop(daemon, consumer)
    with daemon.wire() as wire:
        assert _attempts(wire) == {}
        assert error_of(wire.ask({"op": "ack", "receipt": receipts[0]})) == "lease_lost"
        assert [one["attempt"] for one in _receive(wire)] == [1] * len(IDS)


def test_a_message_that_kills_its_consumer_is_dead_alone(daemon: Daemon) -> None:
    for _ in range(10):
        with daemon.wire() as consumer:
            if not consumer.ask({"op": "show", "queue": "q", "id": "a"})["ok"]:
                _fill(consumer)
            _shown(consumer)
            assert _receive(consumer, bound=True, handles=1)[0]["id"] == "a"
    with daemon.wire() as wire:
        shown = _shown(wire)
    assert [(one["state"], one["attempts"]) for one in shown.values()] == [("dead", 10), *[("ready", 0)] * 3]


@pytest.mark.parametrize("op", ["ack", "reject"])
def test_what_a_receipt_has_done_is_repeated_after_a_kill_and_nothing_else(daemon: Daemon, op: str) -> None:
    with daemon.wire() as wire:
        _fill(wire)
        mine, other, *_ = (one["receipt"] for one in _receive(wire))
        assert wire.ask({"op": op, "receipt": mine})["ok"]
        daemon.kill()
        daemon.start()
    with daemon.wire() as wire:
        assert wire.ask({"op": op, "receipt": mine})["ok"]
        for receipt, wrong in ((mine, "reject" if op == "ack" else "ack"), (other, op)):
            assert error_of(wire.ask({"op": wrong, "receipt": receipt})) == "lease_lost"
        # The same messages have the same numbers in this life, and are another's.
        assert [one["id"] for one in _receive(wire)] == IDS[1:]
        assert error_of(wire.ask({"op": "ack", "receipt": other})) == "lease_lost"
        assert error_of(wire.ask({"op": "extend", "receipt": other, "seconds": 9})) == "lease_lost"
        sends = [{"queue": "out", "id": "x", "body": ""}]
        assert error_of(wire.ask({"op": "settle", "acks": [{"receipt": other}], "send": sends})) == "lease_lost"
        assert error_of(wire.ask({"op": "show", "queue": "out", "id": "x"})) == "not_found"


@pytest.mark.parametrize("id", ["a b'c$(d)", "ü" * 200, " " * 200, "=a", "%41", "x.y.z", "-", "…, 1/2:3"])
@pytest.mark.first_by_default
def test_any_id_can_be_in_a_receipt(daemon: Daemon, id: str) -> None:
    with daemon.wire() as wire:
        assert wire.ask({"op": "send", "queue": "q", "id": id, "body": ""})["ok"]
        ((message),) = _receive(wire)
        receipt = message["receipt"]
        assert len(receipt) <= 400
        assert wire.ask({"op": "ack", "receipt": receipt})["ok"]
        assert wire.ask({"op": "ack", "receipt": receipt})["ok"], "repeated"
        daemon.kill()
        daemon.start()
    with daemon.wire() as wire:
        assert wire.ask({"op": "ack", "receipt": receipt})["ok"], "repeated after a restart"


@pytest.mark.parametrize("bound", [True, False], ids=["hung-up", "expired"])
def test_a_delivery_that_is_given_back_in_steps_counts_its_first_messages_only(daemon: Daemon, bound: bool) -> None:
    count, handles = 1000, 250
    with daemon.wire() as consumer, daemon.wire() as other:
        messages = [{"id": f"{number:04}", "body": "x"} for number in range(count)]
        assert other.ask({"op": "send_many", "queue": "q", "messages": messages})["ok"]
        options = {"bound": True, "lease": 3600} if bound else {"lease": 2}
        leased = consumer.ask({"op": "receive", "queue": "q", "limit": count, "handles": handles, **options})
        assert len(leased["messages"]) == count
        acks = [{"op": "ack", "receipt": message["receipt"]} for message in leased["messages"][:10]]
        consumer.send(*acks)  # together, since the leases may be short
        assert all(consumer.read()["ok"] for _ in acks)
        consumer.close()
        eventually(lambda: other.ask({"op": "status"})["leased"] == 0)
        again = other.ask({"op": "receive", "queue": "q", "limit": count})["messages"]
        counted = {message["id"] for message in again if message["attempt"] == 2}
        assert counted == {f"{number:04}" for number in range(10, 10 + handles)}
