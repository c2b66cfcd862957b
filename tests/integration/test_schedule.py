"""Schedules of real daemons that are restarted and killed, and of the configuration: each occurrence is stored once."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

import eoq
from tests.cases import one_in
from tests.support import PATIENCE, Daemon, Shell, Wire, error_of, eventually, running_daemon


def _settle(client: eoq.Client, wait: float = 0.0) -> list[str]:
    """Settle all messages that are there, and return their ids."""
    messages = client.receive("ticks", 1000, wait)
    for message in messages:
        message.ack()
    return [message.id for message in messages]


def _settle_until(client: eoq.Client, ids: list[str], count: int) -> None:
    """Settle messages as they come, until there are ``count`` ``ids``."""

    def enough() -> bool:
        ids.extend(_settle(client, wait=1))
        return len(ids) >= count

    eventually(enough)


def _error(client: eoq.Client, name: str) -> str | None:
    error: str | None = client.ask("schedule_show", name=name)["schedule"].get("error")
    return error


def _at(id: str) -> float:
    return datetime.fromisoformat(id.partition("@")[2]).timestamp()


def _gaps(ids: list[str]) -> list[float]:
    return [_at(b) - _at(a) for a, b in pairwise(ids)]


@pytest.mark.slow
def test_each_occurrence_is_stored_once_and_in_time(daemon: Daemon) -> None:
    with eoq.connect(daemon.socket) as client:
        # A daemon that comes late, since the machine is busy, sends all that it has missed.
        reply = client.ask("schedule_add", name="tick", queue="ticks", every=1, body="hi", catch_up="all")
        ids, late = [], []
        for _ in range(3):
            (message,) = client.receive("ticks", wait=20)
            assert message.text == "hi"
            message.ack()
            ids.append(message.id)
            late.append(message.enqueued_at - _at(message.id))
    assert 0 <= min(late) < 1
    assert _at(ids[0]) == reply["next_at"]
    assert _gaps(ids) == [1, 1]


@pytest.mark.slow
def test_each_occurrence_is_stored_once_though_the_daemon_is_killed_again_and_again(daemon: Daemon) -> None:
    ids: list[str] = []
    with eoq.connect(daemon.socket) as client:
        # The restart may take longer than a second, and so miss one.
        client.ask("schedule_add", name="tick", queue="ticks", every=1, catch_up="all")
        for round in range(4):
            _settle_until(client, ids, len(ids) + 1)
            if round % 2:
                daemon.terminate()
                daemon.start()
            else:
                daemon.restart()
    assert _gaps(ids) == [1] * (len(ids) - 1)


def _set_back(daemon: Daemon, seconds: int) -> None:
    """Change the file of a daemon that is down as if its schedules had last been looked at so many seconds ago."""
    with closing(sqlite3.connect(daemon.db)) as database, database:
        times = ", ".join(f"{name} = {name} - {seconds}" for name in ("at", "next_at", "try_at", "seen_at"))
        database.execute(f"update schedule set {times}")


@pytest.mark.first_by_default
@pytest.mark.parametrize(("catch_up", "expected"), [("last", 1), ("all", 25), ("none", 0)])
def test_missed_occurrences_are_sent_as_catch_up_says(daemon: Daemon, catch_up: str, expected: int) -> None:
    with eoq.connect(daemon.socket) as client:
        # The next one is nearly an hour away, so that no occurrence is in time by chance.
        at = int(time.time()) + 3500
        client.ask("schedule_add", name="s", queue="ticks", every=3600, at=at, catch_up=catch_up)
        daemon.kill()
        _set_back(daemon, 25 * 3600)
        daemon.start()
        shown = eventually(
            lambda: (found := client.ask("schedule_show", name="s")["schedule"])["next_at"] == at and found,
            what="the next one is planned",
        )
        ids = _settle(client)
        assert [_at(id) for id in ids] == [at - 3600 * n for n in range(expected, 0, -1)]
        assert shown["last_at"] == (at - 3600 if expected else None)
    assert ("missed" in daemon.said) is (catch_up != "all")


@pytest.mark.slow
def test_a_scheduled_message_has_its_group_and_options(daemon: Daemon) -> None:
    with eoq.connect(daemon.socket) as client:
        options = {"group": "g", "priority": 1, "headers": {"a": "b"}}
        client.ask("schedule_add", name="s", queue="ticks", every=1, catch_up="all", **options)
        (first,) = client.receive("ticks", wait=20)
        assert (first.group, first.priority, first.headers, first.body) == ("g", 1, {"a": "b"}, b"")
        assert client.receive("ticks", wait=1.5) == []
        first.ack()
        (second,) = client.receive("ticks", wait=20)
        assert _gaps([first.id, second.id]) == [1]


def test_an_occurrence_goes_to_all_queues_bound_to_its_topic(daemon: Daemon) -> None:
    with eoq.connect(daemon.socket) as client:
        client.bind("ticks", "one")
        client.bind("ticks", "two", {"a": "b"})
        client.bind("ticks", "three", {"a": "c"})
        client.ask("schedule_add", name="s", queue="ticks", every=1, headers={"a": "b"})
        (one,), (two,) = client.receive("one", wait=20), client.receive("two", wait=20)
        assert one.id == two.id
        assert client.receive("three") == client.receive("ticks") == []


def test_a_ttl_counts_from_the_time_of_the_occurrence(daemon: Daemon) -> None:
    with eoq.connect(daemon.socket) as client:
        at = int(time.time()) - 3500
        client.ask("schedule_add", name="s", queue="ticks", every=3600, at=at + 7200, ttl=7300)
        daemon.kill()
        _set_back(daemon, 7200)
        daemon.start()
        id = f"s@{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}"
        message = eventually(lambda: client.ask("peek", queue="ticks")["messages"])[0]
        assert message["id"] == id
        assert client.ask("show", queue="ticks", id=id)["message"]["expires_at"] == at + 7300


@pytest.mark.slow
def test_a_full_queue_gets_its_occurrence_when_it_has_room(folder: Path) -> None:
    config = folder / "eoq.toml"
    config.write_text("[queues.ticks]\nmax_depth = 1\n")
    with running_daemon("--config", str(config)) as daemon, eoq.connect(daemon.socket) as client:
        client.send("ticks", "first")
        at = int(time.time()) + 5  # the request is surely handled before
        client.ask("schedule_add", name="s", queue="ticks", every=1000, at=at)
        shown = eventually(lambda: (s := client.ask("schedule_show", name="s")["schedule"]).get("error") and s)
        assert (shown["next_at"], shown["last_at"]) == (at, None)
        (first,) = client.receive("ticks")
        first.ack()
        (message,) = client.receive("ticks", wait=20)
        assert _at(message.id) == at
        assert "tried again" in daemon.said


@pytest.mark.slow
def test_a_limited_queue_keeps_up_after_it_was_full(folder: Path) -> None:
    config = folder / "eoq.toml"
    config.write_text("[queues.ticks]\nmax_depth = 1\n")
    with running_daemon("--config", str(config)) as daemon, eoq.connect(daemon.socket) as client:
        for name in "ab":
            client.ask("schedule_add", name=name, queue="ticks", every=1)
        for name in "ab":
            eventually(partial(_error, client, name))
        ids: list[str] = []
        start = time.monotonic()
        _settle_until(client, ids, 12)
        assert time.monotonic() - start < 30  # one occurrence for each retry would take a minute
        assert len(set(ids)) == len(ids)


# ── hostile ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"every": 1, "cron": "* * * * *"},
        *({"every": every} for every in (0, -1, 1.5, "1", True, 31_622_401, 10**30)),
        *({"every": 1, "at": at} for at in (-1, 1e12, "now")),
        {"every": 1, "timezone": "UTC"},
        *({"cron": cron} for cron in ("", "* * * *", "61 * * * *", "@reboot", "x" * 201, "* * */20 * 1L", 5, None)),
        *({"cron": "@daily", "timezone": zone} for zone in ("", "Europe", "../../etc/passwd", "x" * 101, "a\0", 1)),
        {"cron": "@daily", "at": 5},
        *({"every": 1, "name": name} for name in ("", "a b", "é", "a@b", "x" * 129, "a\n", None)),
        *({"every": 1, "queue": queue} for queue in ("", "a b", "x" * 129)),
        {"every": 1, "catch_up": "some"},
        {"every": 1, "body": "a", "body_base64": "YQ=="},
        {"every": 1, "body_base64": "?"},
        {"every": 1, "headers": {"a": 1}},
        {"every": 1, "group": ""},
        {"every": 1, "group": "a\tb"},
        {"every": 1, "priority": 2**31},
        {"every": 1, "id": "mine"},
        {"every": 1, "delay": 5},
        {"every": 1, "replace": 1},
    ],
)
def test_an_invalid_schedule_is_refused(wire: Wire, fields: dict[str, object]) -> None:
    request = {"op": "schedule_add", "name": "bad", "queue": "q", **fields}
    assert error_of(wire.ask(request)) == "invalid_request"
    assert wire.ask({"op": "schedules"})["schedules"] == []


def test_a_scheduled_message_that_is_too_large_is_refused(wire: Wire) -> None:
    request = {"op": "schedule_add", "name": "bad", "queue": "q", "every": 1}
    assert error_of(wire.ask({**request, "body": "x" * (1024 * 1024 + 1)})) == "message_too_large"
    assert error_of(wire.ask({**request, "headers": {"x": "x" * 70_000}})) == "message_too_large"


@pytest.mark.parametrize("count", [60, pytest.param(150, marks=pytest.mark.slow)])
def test_slow_schedules_do_not_delay_other_clients(shared_daemon: Daemon, count: int) -> None:
    """It takes 10 ms to find that an expression has no occurrences. Other requests are answered in between."""

    def answered_before_another() -> int:
        """Return how many of them were answered when the request of another client was."""
        with shared_daemon.wire() as hostile, shared_daemon.wire() as other:
            hostile.send(*[{"op": "schedule_add", "name": "n", "queue": "q", "cron": "* * */20 * 1L"}] * count)
            error_of(hostile.read())
            answered = 1
            assert other.ask({"op": "status"})["ok"]
            while not hostile.silent(0):
                error_of(hostile.read())
                answered += 1
            for _ in range(count - answered):
                assert error_of(hostile.read()) == "invalid_request"
            return answered

    # This process may have slept until all were answered, but not each time.
    assert any(answered_before_another() < count for _ in range(10))


# ── the configuration ───────────────────────────────────────────────────────────────────────────────────────

DECLARED = """
[[schedule]]
name = "tick"
queue = "ticks"
every = 1
catch_up = "all"
body = "hi"
headers = { a = "b" }

[[schedule]]
name = "report"
queue = "reports"
cron = "30 6 * * MON-FRI"
timezone = "Europe/Berlin"
catch_up = "all"
"""


@pytest.mark.slow
def test_the_configuration_declares_schedules(folder: Path) -> None:
    config = folder / "eoq.toml"
    config.write_text(DECLARED)
    with running_daemon("--config", str(config)) as daemon, eoq.connect(daemon.socket) as client:
        (message,) = client.receive("ticks", wait=20)
        assert (message.text, message.headers) == ("hi", {"a": "b"})
        ids = [message.id]
        message.ack()
        report, tick = client.ask("schedules")["schedules"]
        assert (report["origin"], report["catch_up"], report["timezone"]) == ("config", "all", "Europe/Berlin")
        with pytest.raises(eoq.InvalidRequest, match="configuration"):
            client.ask("schedule_remove", name="tick")
        client.ask("schedule_add", name="own", queue="q", every=1000)

        daemon.restart()
        _settle_until(client, ids, 4)
        assert _gaps(ids) == [1] * (len(ids) - 1)
        assert client.ask("schedule_show", name="tick")["schedule"]["at"] == tick["at"]

        daemon.kill()
        config.write_text(DECLARED.partition('[[schedule]]\nname = "report"')[0].replace('"hi"', '"ho"'))
        daemon.start()
        assert [row["name"] for row in client.ask("schedules")["schedules"]] == ["own", "tick"]
        assert eventually(lambda: [m for m in client.receive("ticks", wait=1) if m.text == "ho"])
        assert "report is removed" in daemon.said


def test_a_changed_configuration_changes_the_schedules(folder: Path) -> None:
    config = folder / "eoq.toml"
    config.write_text("")
    with running_daemon("--config", str(config)) as daemon, eoq.connect(daemon.socket) as client:
        config.write_text(DECLARED)
        (message,) = client.receive("ticks", wait=20)
        message.ack()
        config.write_text(DECLARED.replace("every = 1", "every = 0"))
        eventually(lambda: client.ask("status")["config_error"])
        assert len(client.ask("schedules")["schedules"]) == 2
        config.write_text("")
        eventually(lambda: not client.ask("schedules")["schedules"])


@pytest.mark.parametrize(
    ("text", "word"),
    one_in(
        3,
        [
            ('queue = "q"\nevery = 1', "name"),
            ('name = "s"\nqueue = "q"', "[[schedule]] no. 1: give either"),
            ('name = "s"\nqueue = "q"\ncron = "bla"', "no. 1: 'bla' is no cron"),
            ('name = "s"\nqueue = "q"\ncron = "@daily"\ntimezone = "Mars"', "no time zone 'Mars'"),
            ('name = "s"\nqueue = "q"\nevery = "1"', "every: must be an integer, not"),
            ('name = "s"\nqueue = "q"\nevery = 1\nreplace = true', "replace: is not a setting"),
            ('name = "a b"\nqueue = "q"\nevery = 1', "name: must be a name"),
            ('name = "s"\nqueue = "q"\ncron = 5', "cron: must be a string"),
            (
                'name = "s"\nqueue = "q"\nevery = 1\n[[schedule]]\nname = "s"\nqueue = "q"\nevery = 2',
                "no. 2: has the name",
            ),
        ],
    ),
)
@pytest.mark.first_by_default
def test_a_wrong_schedule_in_the_configuration_is_reported_at_the_start(
    shell: Shell, folder: Path, text: str, word: str
) -> None:
    config = folder / "eoq.toml"
    config.write_text("[[schedule]]\n" + text)
    ran = shell.run(f"eoq daemon --db {folder}/x.db --socket {folder}/x --config {config}")
    assert ran.status == 65
    assert word in ran.errors


def test_ids_have_their_time_in_utc(daemon: Daemon) -> None:
    with eoq.connect(daemon.socket) as client:
        before = time.time()
        client.ask("schedule_add", name="s", queue="ticks", every=1)
        (message,) = client.receive("ticks", wait=PATIENCE)
        assert message.id.endswith("Z")
        assert before - 1 <= _at(message.id) <= time.time()
