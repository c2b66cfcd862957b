"""Random, mutated and nonsensical lines: the daemon answers each, stays alive, and serves the others."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.lines import CODES, VALID
from tests.fuzz.mutations import STRANGE, mutated
from tests.support import HAS_PROC, Daemon, Fields, Wire, running_daemon

MARK = "the end"


def _replies(wire: Wire, *lines: bytes) -> list[Fields]:
    """Return all replies that come before the reply to a last, harmless request."""
    wire.write(b"".join(line + b"\n" for line in lines))
    wire.send({"op": "status", "rid": MARK})
    replies = []
    while (reply := wire.read()).get("rid") != MARK:
        replies.append(reply)
    return replies


def _check(reply: Fields) -> None:
    assert reply["ok"] or reply["error"]["code"] in CODES, reply


@pytest.mark.parametrize("valid", VALID, ids=lambda valid: valid["op"])
@pytest.mark.first_by_default
def test_every_field_with_every_strange_value(shared_daemon: Daemon, valid: Fields) -> None:
    fields = [*valid, "rid", "extra"]
    with shared_daemon.wire() as wire:
        for field in fields:
            for value in STRANGE:
                # Long waits are left out: the reply may take an hour.
                if (field, type(value)) not in (("wait", int), ("wait", float)):
                    _check(wire.ask({**valid, field: value}))


@pytest.mark.parametrize("valid", VALID, ids=lambda valid: valid["op"])
def test_every_field_left_out(shared_daemon: Daemon, valid: Fields) -> None:
    with shared_daemon.wire() as wire:
        for field in valid:
            _check(wire.ask({name: value for name, value in valid.items() if name != field}))


@given(st.lists(st.binary(max_size=200).map(lambda line: line.replace(b"\n", b"")), min_size=1, max_size=20))
@settings(max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_bytes(shared_daemon: Daemon, lines: list[bytes]) -> None:
    with shared_daemon.wire() as wire:
        replies = _replies(wire, *lines)
    assert len(replies) == len(lines)
    assert {reply["error"]["code"] for reply in replies} == {"invalid_request"}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


requests_with_more = st.lists(
    st.tuples(st.sampled_from(VALID), st.dictionaries(st.text(max_size=8), json_values)), max_size=10
)


def _check_random_fields(daemon: Daemon, requests: list[tuple[Fields, Fields]]) -> None:
    lines = [json.dumps({**valid, **extra}).encode() for valid, extra in requests]
    with daemon.wire() as wire:
        replies = _replies(wire, *lines)
    assert len(replies) <= len(lines)
    for reply in replies:
        _check(reply)


@given(requests_with_more)
@settings(max_examples=20, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.slow
def test_requests_with_random_fields(shared_daemon: Daemon, requests: list[tuple[Fields, Fields]]) -> None:
    _check_random_fields(shared_daemon, requests)


@pytest.mark.slow
@given(requests_with_more)
@settings(max_examples=200, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_requests_with_random_fields_at_length(shared_daemon: Daemon, requests: list[tuple[Fields, Fields]]) -> None:
    _check_random_fields(shared_daemon, requests)


def _line(rng: random.Random) -> bytes:
    return json.dumps(rng.choice(VALID)).encode()


def _mutate_for_a_while(rounds: int, seed: int) -> None:
    rng = random.Random(seed)
    with running_daemon() as daemon, daemon.wire() as other:
        for number in range(rounds):
            lines = [mutated(rng, _line(rng), _line(rng)) for _ in range(100)]
            with daemon.wire() as wire:
                for reply in _replies(wire, *lines):
                    _check(reply)
            assert other.ask({"op": "send", "queue": "other", "id": f"{number}", "body": "x"})["ok"]
        stored = other.ask({"op": "receive", "queue": "other", "limit": 1000})["messages"]
        assert {message["id"] for message in stored} >= {f"{number}" for number in range(min(rounds, 1000))}
        if HAS_PROC:
            assert daemon.resident_kilobytes() < 150 * 1024


def test_mutated_requests() -> None:
    _mutate_for_a_while(40, seed=17)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_mutated_requests_for_long(seed: int) -> None:
    _mutate_for_a_while(900, seed)
