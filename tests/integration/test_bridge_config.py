"""Bridges that the daemon runs from its configuration file, each in a process of its own."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import psycopg
import pytest

import eoq
from eoq.daemon.config.loader import load
from eoq.protocol.durations import read_duration
from tests.integration.bridges import bridge_processes
from tests.support import PATIENCE, Daemon, Shell, eventually, running_daemon


def _bridges(daemon: Daemon) -> list[dict[str, Any]]:
    ran = daemon.shell().run("eoq bridges --json")
    assert ran.status == 0, ran.errors
    return ran.rows


@pytest.mark.slow
def test_a_daemon_forwards_and_ingests_what_its_file_says(folder: Path, database: str) -> None:
    config = folder / "eoq.toml"
    ingest = f'[[ingest]]\nqueue = "back"\nfrom = "{database}"\nas = "till-3"\n'
    config.write_text(f'[[forward]]\nqueue = "[q]"\nto_env = "SHOP_URL"\n{ingest}')
    environment = {"SHOP_URL": f"{database}&password=secret", "EOQ_CONFIG": str(config)}
    with running_daemon(environment=environment) as daemon, eoq.connect(daemon.socket) as client:
        client.send("q", "x", id="m")
        eventually(lambda: client.show("q", "m")["state"] == "forwarded", PATIENCE)
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute("insert into eoq_forward (queue, id, body) values ('back', 'n', 'hello')")
            connection.execute("insert into eoq_forward (queue, id, body) values ('q', 'o', 'x')")
        (message,) = client.receive("back", wait=PATIENCE)
        assert message.text == "hello"

        eventually(lambda: [row["moved"] for row in _bridges(daemon)] == [1, 1], PATIENCE)
        forward, back = _bridges(daemon)
        assert (forward["direction"], forward["there"], forward["here"]) == ("forward", 2, 0)
        assert (back["direction"], back["queue"], back["claimed"], back["here"]) == ("ingest", "back", 0, 1)
        assert back["error"] is None
        assert back["rate"] > 0
        said = str(daemon.ask(op="status")) + daemon.shell().run("eoq bridges").text
        assert "postgresql://" in said
        assert "secret" not in said

        before = bridge_processes(daemon)
        assert len(before) == 2
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        client.send("q", "x", id="later")
        eventually(lambda: client.show("q", "later")["state"] == "forwarded", PATIENCE)

        config.write_text(ingest)
        os.kill(daemon.pid, signal.SIGHUP)
        eventually(lambda: [row["queue"] for row in _bridges(daemon)] == ["back"], PATIENCE)
        eventually(lambda: len(bridge_processes(daemon)) == 1, PATIENCE)
        client.send("q", "x", id="stays")
        left = bridge_processes(daemon)
        daemon.kill()
        eventually(lambda: not any(_is_alive(pid) for pid in left), PATIENCE, what="it ends with its daemon")
        daemon.start()
        assert client.show("q", "stays")["state"] == "ready"
    assert "secret" not in daemon.said


def _is_alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_a_bridge_that_fails_leaves_the_daemon_alone(folder: Path) -> None:
    config = folder / "eoq.toml"
    config.write_text(
        '[[forward]]\nqueue = "a"\nto = "postgresql://127.0.0.1:1/shop"\n'
        '[[ingest]]\nqueue = "b"\nfrom_env = "NOWHERE"\n'
    )
    with running_daemon(environment={"EOQ_CONFIG": str(config)}) as daemon, eoq.connect(daemon.socket) as client:
        client.send("a", "x", id="m")

        def both_say_why() -> bool:
            errors = [str(row["error"]) for row in _bridges(daemon)]
            return "127.0.0.1" in errors[0] and "NOWHERE is not set" in errors[1]

        eventually(both_say_why, PATIENCE)

        def is_untouched() -> bool:
            """While the forwarder holds the message, its state is leased, and that delivery is in its attempts."""
            shown = client.show("a", "m")
            return (shown["state"], shown["attempts"]) == ("ready", 0)

        eventually(is_untouched, PATIENCE)
        assert "NOWHERE is not set" in daemon.said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[[forward]]\nqueue = "q"', "[[forward]] no. 1: needs either `to` or `to_env`"),
        ('[[ingest]]\nqueue = "q"\nfrom = "postgresql:///x"\nfrom_env = "X"', "either `from` or `from_env`"),
        ('[[forward]]\nqueue = "q"\nto = "postgresql://u:secret@h/x"', "no. 1: to: has a password"),
        ('[[forward]]\nqueue = "q"\nto = "postgresql://u:sec/ret@h/x"', "has a password"),
        ('[[forward]]\nqueue = "q"\nto = "postgresql://h/x?password=secret"', "has a password"),
        ('[[forward]]\nqueue = "q"\nto = "host=h password=secret"', "must be a URL"),
        ('[[forward]]\nqueue = "q"\nto_env = "postgresql://u:secret@h/x"', "name of a variable"),
        ('[[forward]]\nqueue = "q"\nto = "postgresql:///x"\n' * 2, "an earlier entry"),
        ('[[ingest]]\nqueue = "q"\nfrom = "postgresql:///x"\nname = "b"', "there are queue, from, from_env, as,"),
        ('[[ingest]]\nqueue = "q"\nfrom = "postgresql:///x"\nkeep = 60', "from a day (1d) to 10 years"),
        ('[[ingest]]\nqueue = "q"\nfrom = "postgresql:///x"\nkeep = "23h"', "from a day (1d) to 10 years"),
        ('[[ingest]]\nqueue = "q"\nfrom = "postgresql:///x"\nkeep = "a month"', "is no duration"),
        ('[[forward]]\nqueue = "or ders"\nto = "postgresql:///x"', "queue"),
        (
            '[[ingest]]\nqueue = "orders.*"\nfrom = "postgresql:///x"',
            "[[ingest]] no. 1: queue: must be a name of letters",
        ),
        (
            '[[forward]]\nqueue = "o*"\nto_env = "X"\n[[ingest]]\nqueue = "orders"\nfrom_env = "X"',
            "its messages would go back at once",
        ),
    ],
)
def test_what_is_wrong_with_a_bridge_is_said_without_its_password(folder: Path, text: str, words: str) -> None:
    file = folder / "eoq.toml"
    file.write_text(text)
    with pytest.raises(eoq.InvalidRequest) as raised:
        load(file)
    said = str(raised.value)
    assert words in said
    assert "sec" not in said.replace("seconds", "")


def test_a_file_with_bridges_is_shown(folder: Path) -> None:
    file = folder / "eoq.toml"
    file.write_text('[[ingest]]\nqueue = "q"\nfrom = "postgresql://eoq@[::1]:5432,db/x"\nas = "b"\nlimit = 5\n')
    assert load(file).ingest[0].name == "b"


@pytest.mark.parametrize(("keep", "seconds"), [('"30d"', 30 * 86400), ("172800", 172800), ('"1.5w"', 1.5 * 7 * 86400)])
def test_a_duration_has_a_unit_or_is_in_seconds(folder: Path, keep: str, seconds: float) -> None:
    file = folder / "eoq.toml"
    file.write_text(
        f'[[forward]]\nqueue = "orders.*"\nto = "postgresql:///x"\nresults = true\n'
        f'[[ingest]]\nqueue = "q"\nfrom = "postgresql:///x"\nkeep = {keep}\n'
    )
    config = load(file)
    assert (config.ingest[0].keep_seconds, config.ingest[0].results) == (seconds, False)
    assert (config.forward[0].queue, config.forward[0].results) == ("orders.*", True)


@pytest.mark.parametrize("text", ["", "d", "1 month", "-1d", "1e3", "nan", "1d2h", "٣d"])
def test_other_texts_are_no_durations(text: str) -> None:
    with pytest.raises(eoq.InvalidRequest, match="is no duration"):
        read_duration(text)


@pytest.mark.parametrize("url", ["mysql://shop/payments", "amqp://host"])
def test_an_engine_that_eoq_does_not_know_is_named(url: str) -> None:
    scheme = url.partition(":")[0]
    with pytest.raises(eoq.InvalidRequest, match=f"knows no {scheme}://; write postgresql://"):
        eoq.Bridge.forward("payments", url)


@pytest.mark.slow
def test_a_url_that_is_no_utf_8_is_refused_without_a_traceback(shell: Shell) -> None:
    for command in ("forward q --to", "ingest q --as a --from"):
        ran = shell.run(f"eoq {command} \"$(printf 'postgresql://x\\377')\"")
        assert (ran.status, "cannot be read" in ran.errors, "Traceback" in ran.errors) == (65, True, False), ran.errors
