"""Many queues: they are listed in pages, summed and ranked by the daemon, and their metrics come in parts."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import pytest

import eoq
from eoq.protocol.admin_calls import some_queues
from tests.integration.clients import AnyClient
from tests.support import Daemon, Wire, error_of, running_daemon

NAMES = [f"mail.{number:03}" for number in range(5)] + ["mailing", "other", "Zeta"]


@contextmanager
def _ranked() -> Iterator[Daemon]:
    with running_daemon() as daemon:
        with eoq.connect(daemon.socket) as client:
            for name in NAMES:
                client.send(name, "x")
            client.send_many("mail.001", ["x"] * 3)
            client.send("mail.001", "later", delay=1000)
            client.send_many("mail.001", [eoq.Outgoing("x", group="g"), eoq.Outgoing("y", group="g")])
            client.send_many("other", ["x"] * 9)
            for message in client.receive("other", 10):
                client.ack(message)
            client.pause("Zeta")
        with daemon.wire() as wire:
            (message,) = wire.ask({"op": "receive", "queue": "mail.003", "lease": 1000})["messages"]
            wire.ask({"op": "reject", "receipt": message["receipt"]})
            wire.ask({"op": "receive", "queue": "mailing", "lease": 1000})
        yield daemon


@pytest.fixture(scope="module")
def ranked() -> Iterator[Daemon]:
    """A daemon with a few queues: ``other`` is the busiest, ``mail.003`` has dead letters, ``mail.001`` a backlog."""
    with _ranked() as daemon:
        yield daemon


def _names(rows: list[dict[str, Any]]) -> list[str]:
    return [row["name"] for row in rows]


def _pages(wire: Wire, **fields: Any) -> list[list[str]]:
    pages = []
    while True:
        reply = wire.ask({"op": "queues", **fields})
        pages.append(_names(reply["queues"]))
        if not reply["more"]:
            return pages
        fields["after"] = pages[-1][-1]


def test_queues_come_in_pages_by_name(ranked: Daemon) -> None:
    with ranked.wire() as wire:
        whole = wire.ask({"op": "queues"})
        assert "more" not in whole, "the old form of the request has the old reply"
        assert _names(whole["queues"]) == sorted(NAMES)
        assert list(chain(*_pages(wire, limit=3))) == sorted(NAMES)
        assert [len(page) for page in _pages(wire, limit=3)] == [3, 3, 2]
        assert [len(page) for page in _pages(wire, limit=8)] == [8]
        assert wire.ask({"op": "queues", "limit": 1000})["queues"] == whole["queues"]


def test_a_prefix_selects_queues(ranked: Daemon) -> None:
    with ranked.wire() as wire:
        assert _pages(wire, limit=2, prefix="mail.") == [NAMES[:2], NAMES[2:4], NAMES[4:5]]
        assert _pages(wire, limit=9, prefix="mail", after="mail.003") == [["mail.004", "mailing"]]
        assert _pages(wire, limit=9, prefix="mail.", after="A") == [NAMES[:5]]
        assert _pages(wire, limit=9, prefix="mail.", after="z") == [[]]
        assert _pages(wire, limit=9, prefix="mail.%'_\u00e9") == [[]]
        assert _names(wire.ask({"op": "queues", "prefix": "mail."})["queues"]) == NAMES[:5]


@pytest.mark.parametrize("field", [{"limit": 0}, {"limit": 1001}, {"after": 1}, {"prefix": "x" * 129}])
def test_a_page_that_cannot_be_asked_for_is_refused(ranked: Daemon, field: dict[str, Any]) -> None:
    with ranked.wire() as wire:
        assert error_of(wire.ask({"op": "queues", **field})) == "invalid_request"


@pytest.mark.parametrize(
    ("order", "first"),
    [
        ("name", ["Zeta", "mail.000"]),
        ("depth", ["mail.001", "Zeta"]),
        ("ready", ["mail.001", "Zeta"]),
        ("dead", ["mail.003", "Zeta"]),
        ("age", ["mail.000", "mail.001"]),
    ],
)
def test_the_first_queues_in_an_order(ranked: Daemon, order: str, first: list[str]) -> None:
    _check_order(ranked, order, first)


def test_the_first_queues_in_an_order_by_what_happened_in_the_last_minute() -> None:
    with _ranked() as just_now:
        _check_order(just_now, "busy", ["other", "mail.001"])
        _check_order(just_now, "sent", ["other", "mail.001"])
        _check_order(just_now, "done", ["other", "Zeta"])


def _check_order(daemon: Daemon, order: str, first: list[str]) -> None:
    with daemon.wire() as wire:
        reply = wire.ask({"op": "overview", "order": order, "limit": 2})
        assert _names(reply["queues"]) == first
        assert (reply["count"], reply["matching"]) == (len(NAMES), len(NAMES))
        every = wire.ask({"op": "overview", "order": order})["queues"]
        assert sorted(_names(every)) == sorted(NAMES)
        skipped = [wire.ask({"op": "overview", "order": order, "skip": n, "limit": 1})["queues"] for n in range(9)]
        assert _names(list(chain(*skipped))) == _names(every)


def test_the_overview_has_the_same_rows_as_the_list_and_sums_them(ranked: Daemon) -> None:
    with ranked.wire() as wire:
        listed = wire.ask({"op": "queues"})["queues"]
        reply = wire.ask({"op": "overview"})
    rates = ("sent_rate", "done_rate")
    without = [{name: value for name, value in row.items() if name not in rates} for row in listed]
    assert [{name: value for name, value in row.items() if name not in rates} for row in reply["queues"]] == without
    for state in ("ready", "leased", "delayed", "blocked", "dead"):
        assert reply["sums"][state] == sum(row[state] for row in listed) > 0
    assert reply["sums"]["sent_rate"] == pytest.approx(sum(row["sent_rate"] for row in reply["queues"]), rel=0.5)


def test_the_overview_of_some_names(ranked: Daemon) -> None:
    with ranked.wire() as wire:
        reply = wire.ask({"op": "overview", "contains": "ETA"})
        assert (_names(reply["queues"]), reply["matching"], reply["count"]) == (["Zeta"], 1, len(NAMES))
        assert reply["queues"][0]["paused"] is True
        nothing = wire.ask({"op": "overview", "contains": "%", "skip": 5})
        assert (nothing["queues"], nothing["matching"], nothing["sums"]["dead"]) == ([], 0, 1)


def test_a_daemon_without_queues_has_empty_pages(daemon: Daemon) -> None:
    with daemon.wire() as wire:
        assert _pages(wire, limit=5) == [[]]
        reply = wire.ask({"op": "overview", "order": "age"})
        assert (reply["queues"], reply["count"], set(reply["sums"].values())) == ([], 0, {0})


def test_both_clients_ask_in_pages(client: AnyClient, queue: str) -> None:
    names = [f"{queue}{number:03}" for number in range(205)]
    for name in names:
        client.send(name, "x")
    assert _names(client.queues(prefix=queue)) == names
    assert set(names) <= set(_names(client.queues()))
    assert _names(client.queues(prefix=queue, after=names[3], limit=201)) == names[4:]
    assert _names(client.queues(prefix=queue, limit=0)) == []
    answer = client.overview("name", contains=queue.upper(), skip=4, limit=2)
    assert (_names(answer["queues"]), answer["matching"]) == (names[4:6], len(names))
    with pytest.raises(eoq.InvalidRequest):
        client.overview("backwards")  # type: ignore[arg-type] # what a program without types may do
    assert client.metrics().count("eoq_queue_consumers{") >= len(names)


def test_the_pages_of_an_earlier_daemon_are_cut_from_its_list() -> None:
    rows = [{"name": name} for name in sorted(NAMES)]
    assert _names(some_queues(rows, "", "", None)) == sorted(NAMES)
    assert _names(some_queues(rows, "mail.001", "mail", 2)) == ["mail.002", "mail.003"]


@pytest.mark.slow
def test_the_metrics_of_many_queues_come_in_parts_and_are_spared() -> None:
    """They are made once for all who ask soon, and each gets the parts of one moment."""
    queues = 2500
    with running_daemon() as daemon, daemon.wire() as wire, daemon.wire() as other:
        for start in range(0, queues, 500):
            wire.send(*({"op": "send", "queue": f"q{n:04}", "body": "x"} for n in range(start, start + 500)))
            for _ in range(500):
                wire.read()
        first = wire.ask({"op": "metrics", "after": 0})
        texts, reply = [first["text"]], first
        while "after" in reply:
            other.ask({"op": "send", "queue": "q0000", "body": "y"})
            reply = wire.ask({"op": "metrics", "after": reply["after"]})
            texts.append(reply["text"])
        whole = "".join(texts)
        assert len(texts) > 3
        assert whole.count("eoq_queue_consumers{") == queues
        assert whole.endswith("\n")
        again = other.ask({"op": "metrics"})["text"]
        of_queues = "# HELP eoq_queues "
        assert again[again.index(of_queues) :] == whole[whole.index(of_queues) :]
        assert again != whole, "what is cheap is new"
        assert error_of(wire.ask({"op": "metrics", "after": 999_000_000})) == "not_found"


def test_packed_parts_are_one_text() -> None:
    from eoq.daemon.services.monitoring.text import pack, unpack

    parts = [pack(b"a 1\n" * 1000), pack(b""), pack(b"b 2\n")]
    assert b"".join(map(unpack, parts)) == b"a 1\n" * 1000 + b"b 2\n"
    text, rest = b"", b"".join(parts)
    while rest:
        one = zlib.decompressobj(31)
        text += one.decompress(rest)
        rest = one.unused_data
    assert text == b"a 1\n" * 1000 + b"b 2\n"
