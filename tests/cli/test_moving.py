"""``export`` and ``import``: what a daemon knows of its messages goes to another, whole, also if interrupted."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

import eoq
from eoq.daemon.config.settings import StorageSettings, defaults
from eoq.daemon.rules.schedule_rules import occurrence_id
from eoq.daemon.upkeep.exporting import export
from eoq.daemon.upkeep.importing import STEP_LINES, import_lines
from eoq.protocol import calls
from eoq.protocol.forwarding import MessageEnd, forwarded, take_results
from tests.support import Daemon, Shell, clean_environment, eventually, running_daemon

BAD_DATA, LOCKED = 65, 75
HEAD: Final = '{"type":"export","format":1,"source":"other","exported_at":1767225600.0}'

SETTLED: Final = f'{{"type":"settled","queue":"q","id":"i","outcome":"done","settled_at":1,"digest":"{0:032}"'


def lines_of(database: Path, *queues: str) -> list[dict[str, Any]]:
    """Return the lines of an export without the first, which has the moment."""
    lines = export(database, queues, StorageSettings(), lambda *_: None)
    return [json.loads(line) for line in lines][1:]


def import_text(database: Path, *lines: str) -> None:
    source = io.BytesIO("\n".join(lines).encode())
    asyncio.run(import_lines(source, database, defaults, StorageSettings(), lambda _: None))


@pytest.fixture(scope="module")
def origin() -> Iterator[Daemon]:
    """Run a daemon that has a message in each state."""
    with running_daemon() as daemon, eoq.connect(daemon.socket) as client:
        client.send("q", "done", id="done", headers={"a": "b"})
        (message,) = client.receive("q")
        message.ack(result=b"\xff\x00")
        client.send("dead", "dead", id="dead")
        for error in ("first", "second"):
            (message,) = client.receive("dead")
            message.nack(0, error=error)
        (message,) = client.receive("dead")
        message.reject("third")
        client.send("q", "later", id="later", delay=1000, ttl=5000, priority=3)
        client.send("q", b"\xfe", id="bytes")
        client.send("groups", "1", id="g-1", group="g")
        client.send("groups", "2", id="g-2", group="g")
        client.send("q", "dropped", id="cancelled")
        client.cancel("q", "cancelled")
        client.send("leased", "x", id="leased")
        client.receive("leased", lease=600)
        client.send_many("remote", [eoq.Outgoing("x", id=id) for id in ("paid", "refused", "silent")])
        client.channel.run(forwarded(client.receive("remote", limit=3), "postgresql://db/shop", awaits=True))
        ends = [MessageEnd("paid", "done", b"\xfe", None), MessageEnd("refused", "dead", None, "no such account")]
        client.channel.run(take_results("remote", ends))
        client.once("key", lambda: b"output")
        client.pause("groups")
        client.bind("news", "q", {"kind": "big"})
        client.bind("news", "other")
        client.schedule("daily", "q", {"a": 1}, cron="5 4 * * *", timezone="Europe/Berlin", headers={"h": "v"})
        client.schedule("often", "other", b"\xff", every=3600, at=4_000_000_000, catch_up="none", priority=2)
        client.pause_schedule("often")
        client.send("gone", "x")
        client.purge("gone")
        client.delete_queue("gone", forget_ids=True)
        eventually(lambda: _counts(daemon) == {row["name"]: _nonzero(row["totals"]) for row in client.queues()})
        yield daemon


def _nonzero(counts: dict[str, int]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count}


def _counts(daemon: Daemon) -> dict[str, dict[str, int]]:
    """Return the counts in the file, which follow those of the daemon a little later."""
    lines = lines_of(daemon.db)
    return {line["queue"]: line["counts"] for line in lines if line["type"] == "counts" and "queue" in line}


def test_ids_and_states_are_kept(origin: Daemon, tmp_path: Path) -> None:
    shell = origin.shell()
    exported = shell.run("eoq export").text
    database = tmp_path / "other.db"
    (tmp_path / "all.jsonl").write_text(exported)
    ran = shell.run(
        f"eoq import {tmp_path}/all.jsonl --db {database}; eoq import --db {database} <{tmp_path}/all.jsonl"
    )
    assert (ran.status, ran.lines) == (0, ["23", "0"]), ran.errors
    assert lines_of(database) == lines_of(origin.db)

    with running_daemon("--db", str(database)) as other, eoq.connect(other.socket) as client:
        assert client.send("q", "done", id="done", headers={"a": "b"}).duplicate
        with pytest.raises(eoq.IdConflict):
            client.send("q", "another", id="done")
        result = client.result("q", "done")
        assert result is not None and (result.outcome, result.body) == ("done", b"\xff\x00")
        shown = other.ask(op="show", queue="dead", id="dead")["message"]
        assert [delivery["error"] for delivery in shown["history"]] == ["first", "second", "third"]
        assert (shown["state"], shown["attempts"]) == ("dead", 3)
        later = other.ask(op="show", queue="q", id="later")["message"]
        assert (later["state"], later["priority"]) == ("delayed", 3)
        assert [message.body for message in client.receive("q", limit=10)] == [b"\xfe"]
        assert client.receive("groups") == []
        client.resume("groups")
        assert [message.id for message in client.receive("groups", limit=10)] == ["g-1"]
        assert [message.id for message in client.receive("leased", limit=10)] == ["leased"]
        assert client.once("key", lambda: b"never") == b"output"
        place = "postgresql://db/shop"
        assert client.result("remote", "silent") is None, "it still waits for what comes back"
        assert client.result("remote", "paid") == eoq.Result("done", b"\xfe", None, place)
        assert client.result("remote", "refused") == eoq.Result("dead", None, "no such account", place)
        client.channel.run(take_results("remote", [MessageEnd("silent", "done", b"late", None)]))
        assert client.result("remote", "silent") == eoq.Result("done", b"late", None, place)


def _seen(client: eoq.Client) -> dict[str, Any]:
    """Return what a user sees of a daemon. Who has leased a message does not belong to the messages."""
    queues = client.queues()
    for row in queues:
        row["ready"] += row.pop("leased")
        for name in ("sent_rate", "done_rate", "consumers", "waiting", "since_start"):
            del row[name]
    states = ("ready", "leased", "delayed", "blocked", "dead", "done", "dropped", "cancelled")
    found = [(row["name"], client.peek(row["name"], state, limit=100)) for row in queues for state in states]
    bodies = {(name, one["id"]): (one.get("body"), one["seq"] is None) for name, some in found for one in some}
    return {
        "queues": queues,
        "topics": client.topics(),
        "schedules": [client.channel.run(calls.query("schedule_show", name=s["name"])) for s in client.schedules()],
        "bodies": bodies,
        "totals": client.status()["totals"],
    }


@pytest.mark.slow
def test_a_daemon_from_an_export_is_the_same_for_its_users(origin: Daemon, tmp_path: Path) -> None:
    database = tmp_path / "other.db"
    ran = origin.shell().run(f"eoq export | eoq import --db {database}")
    assert ran.status == 0, ran.errors
    with running_daemon("--db", str(database)) as other, eoq.connect(other.socket) as client:
        with eoq.connect(origin.socket) as before:
            expected = _seen(before)
        assert _seen(client) == expected
        assert {schedule["schedule"]["name"] for schedule in expected["schedules"]} == {"daily", "often"}
        client.send("news", "for all", headers={"kind": "big"})
        assert client.resume_schedule("often")
        assert client.run_schedule("often").duplicate is False


@pytest.mark.slow
def test_a_schedule_goes_on_where_it_was(tmp_path: Path) -> None:
    """What it missed between export and import is sent by its rule, under the ids that the first daemon would use."""
    now = int(time.time()) // 100 * 100
    line = {"type": "schedule", "name": "s", "queue": "q", "every": 100, "at": 1000, "catch_up": "all", "body": "x"}
    line |= {"seen_at": now - 250.0, "next_at": now - 200, "last_at": now - 300}
    import_text(tmp_path / "eoq.db", HEAD, json.dumps(line), '{"type":"end","lines":1}')
    with running_daemon("--db", str(tmp_path / "eoq.db")) as daemon, eoq.connect(daemon.socket) as client:
        eventually(lambda: len(client.peek("q", limit=100)) >= 3)
        sent = [one["id"] for one in client.peek("q", limit=3)]
    assert sent == [occurrence_id("s", now - ago) for ago in (200, 100, 0)]


def test_setups_that_contradict_what_is_known_are_refused(tmp_path: Path) -> None:
    database = tmp_path / "eoq.db"
    binding = '{"type":"binding","topic":"t","queue":"q","headers":{"a":"b"}}'
    schedule = '{"type":"schedule","name":"s","queue":"q","every":10,"at":1000,"body":"x","seen_at":1.0,"next_at":1000}'
    counts = '{"type":"counts","queue":"q","counts":{"sent":3}}'
    import_text(database, HEAD, binding, schedule, counts, '{"type":"end","lines":3}')
    stored = lines_of(database)
    import_text(database, HEAD, binding, schedule, counts.replace("3", "4"), '{"type":"end","lines":3}')
    assert lines_of(database) == stored, "what is known stays"
    for wrong, error in (
        (binding.replace('"b"', '"c"'), "line 2: 'q' is bound to 't' with other headers"),
        (schedule.replace('"x"', '"y"'), "line 2: there is a schedule 's' with another definition"),
        ('{"type":"binding","topic":"q","queue":"r"}', "the bindings up to line 2: 'q' is a topic itself"),
        ('{"type":"binding","topic":"t","queue":"r","headers":{"a":"' + "x" * 5000 + '"}}', "line 2: the headers of"),
        (schedule.replace('"every":10', '"cron":"nonsense"'), "line 2: "),
        (schedule.replace('"every":10,', ""), "line 2: "),
        (counts.replace("sent", "unknown"), "line 2: "),
        (counts.replace("3", "-1"), "line 2: "),
        ('{"type":"message","queue":"x","id":"i","body":"","enqueued_at":1}', "line 3: 'x' is a queue with messages"),
    ):
        more = ['{"type":"binding","topic":"x","queue":"q"}'] if "message" in wrong else []
        with pytest.raises(eoq.EoqError, match=error):
            import_text(database, HEAD, wrong, *more, '{"type":"end","lines":1}')
    assert [line for line in lines_of(database) if line["type"] != "message"] == stored


def test_some_queues_can_be_exported(origin: Daemon) -> None:
    assert {line.get("id") for line in lines_of(origin.db, "dead", "leased")} == {"dead", "leased", None}
    kinds = [(line["type"], line.get("topic") or line.get("name")) for line in lines_of(origin.db, "q")]
    assert kinds[:3] == [("counts", None), ("binding", "news"), ("schedule", "daily")]
    ran = origin.shell().run("eoq export no-such-queue")
    assert (ran.status, ran.text) == (1, "")


def test_a_daemon_that_runs_keeps_its_file_to_itself(origin: Daemon) -> None:
    ran = origin.shell().run(f"echo '{HEAD}' | eoq import --db {origin.db}")
    assert ran.status == LOCKED
    assert "eoq stop" in ran.errors


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        ([], "cut off"),
        ([HEAD], "cut off"),
        (["hello"], "line 1: it is no line of an export"),
        (['{"type":"end","lines":0}'], "line 1: an export begins with"),
        ([HEAD, HEAD], "line 2: an export begins with"),
        ([HEAD, '{"type":"end","lines":7}'], "line 2: the export had 7 entries"),
        ([HEAD, '{"type":"end","lines":0}', "{}"], "line 3: it follows the last line"),
        ([HEAD, "[" * 100_000], "line 2: it is"),
        ([HEAD, '{"type":"message","queue":"a b","id":"i","body":"","enqueued_at":1}'], "line 2: .*queue"),
        ([HEAD, '{"type":"message","queue":"q","id":"\\u0007","body":"","enqueued_at":1}'], "line 2: the id"),
        ([HEAD, '{"type":"message","queue":"q","id":"i","enqueued_at":1}'], "line 2: a message needs"),
        ([HEAD, '{"type":"message","queue":"q","id":"i","body":"","enqueued_at":1e99}'], r"line 2: .*enqueued_at"),
        (
            [HEAD, '{"type":"message","queue":"q","id":"i","body":"","enqueued_at":1,"state":"leased"}'],
            "line 2: .*state",
        ),
        ([HEAD, '{"type":"message","queue":"q","id":"i","body_base64":"!","enqueued_at":1}'], "line 2: .*base64"),
        ([HEAD, '{"type":"settled","queue":"q","id":"i","outcome":"done","settled_at":1}'], "line 2: .*digest"),
        ([HEAD, SETTLED + ',"far_outcome":"awaited"}'], "line 2: only a message that was forwarded"),
        (
            [HEAD, '{"type":"message","queue":"q","id":"i","body":"' + "x" * 1048577 + '","enqueued_at":1}'],
            "line 2: its body",
        ),
        ([HEAD, '"' + "x" * (16 * 1024 * 1024) + '"'], "line 2: it has more than"),
        (
            [
                HEAD,
                '{"type":"message","queue":"q","id":"i","body":"x","enqueued_at":1}',
                '{"type":"message","queue":"q","id":"i","body":"y","enqueued_at":1}',
            ],
            "line 3: the id 'i' is stored in the queue 'q' with other content",
        ),
    ],
    ids=range(19),
)
def test_a_wrong_line_is_refused_with_its_number(lines: Sequence[str], error: str, tmp_path: Path) -> None:
    with pytest.raises(eoq.EoqError, match=error) as raised:
        import_text(tmp_path / "eoq.db", *lines)
    assert raised.value.exit_status == BAD_DATA


def test_what_stands_before_a_wrong_line_is_stored_and_the_rest_follows_when_it_is_mended(tmp_path: Path) -> None:
    database = tmp_path / "eoq.db"
    one, two = (f'{{"type":"message","queue":"q","id":"{id}","body":"x","enqueued_at":1}}' for id in "ab")
    with pytest.raises(eoq.InvalidRequest, match="line 3"):
        import_text(database, HEAD, one, "wrong", two, '{"type":"end","lines":2}')
    assert [line["id"] for line in lines_of(database)[:-1]] == ["a"]
    import_text(database, HEAD, one, two, '{"type":"end","lines":2}')
    assert [line["id"] for line in lines_of(database)[:-1]] == ["a", "b"]


IMPORT: Final = """
import asyncio, os, sys
from pathlib import Path
from eoq.daemon.config.settings import StorageSettings, defaults
from eoq.daemon.upkeep.importing import import_lines
def progress(lines):
    if lines >= int(sys.argv[3]):
        os.kill(os.getpid(), 9)
with open(sys.argv[2], "rb") as source:
    asyncio.run(import_lines(source, Path(sys.argv[1]), defaults, StorageSettings(), progress))
"""


@pytest.mark.slow
def test_an_import_that_is_killed_and_repeated_gives_the_same(tmp_path: Path) -> None:
    entries = [
        f'{{"type":"message","queue":"q","id":"m-{number}","group":"g-{number % 7}","body":"x","enqueued_at":1}}'
        for number in range(3 * STEP_LINES)
    ]
    file = tmp_path / "all.jsonl"
    file.write_text("\n".join([HEAD, *entries, f'{{"type":"end","lines":{len(entries)}}}']))
    whole, killed = tmp_path / "whole.db", tmp_path / "killed.db"
    import_text(whole, file.read_text())
    for stop in (1, STEP_LINES + 1):
        ran = subprocess.run(
            [sys.executable, "-c", IMPORT, str(killed), str(file), str(stop)], env=clean_environment(), check=False
        )
        assert ran.returncode == -9
        assert 0 < len(lines_of(killed)) - 1 < len(entries)
    import_text(killed, file.read_text())
    assert lines_of(killed) == lines_of(whole)


def test_an_export_can_be_read_and_put_together_by_other_programs(alone: Shell) -> None:
    """A digest is only needed for a settled id."""
    entry = '{"type":"message","queue":"q","id":"a","body":"hi","enqueued_at":1}'
    ran = alone.run(f"printf '%s\\n' '{HEAD}' '{entry}' '{{\"type\":\"end\",\"lines\":1}}' | eoq import --json")
    assert ran.status == 0, ran.errors
    assert ran.rows[0]["new"] == 1
    assert alone.run("eoq start && eoq send q hi --id a --json").rows == [{"id": "a", "duplicate": True}]
