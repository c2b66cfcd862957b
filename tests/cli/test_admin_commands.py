"""Test ``eoq dead pause resume purge bind unbind topics tail`` and the filters of ``peek`` in a real shell."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

import eoq
from tests.cases import one_in
from tests.support import PATIENCE, Daemon, Shell, eventually, kill_group, read_line_of


@pytest.fixture
def client(shared_daemon: Daemon) -> Iterator[eoq.Client]:
    """Return a client that sends messages and sees their outcomes."""
    with eoq.connect(shared_daemon.socket) as client:
        yield client


def _make_dead(client: eoq.Client, queue: str, *ids: str) -> None:
    """Send messages and reject them."""
    client.send_many(queue, [eoq.Outgoing(f"body of {id}", id=id) for id in ids])
    for message in client.receive(queue, 100):
        message.reject(f"{message.id} is no good")


# ── dead letters ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_dead_letters_are_listed_and_shown_with_their_errors(shell: Shell, client: eoq.Client, queue: str) -> None:
    assert shell.run(f"eoq dead list {queue}").status == 1
    _make_dead(client, queue, "a", "b")
    listed = shell.run(f"eoq dead list {queue}")
    assert listed.status == 0
    assert [line.split()[0] for line in listed.lines] == ["a", "b"]
    assert "a is no good" in listed.lines[0]
    rows = shell.run(f"eoq dead list {queue} --contains 'of b' --json").rows
    assert [(row["id"], row["error"]) for row in rows] == [("b", "b is no good")]
    shown = shell.run(f"eoq dead show {queue} a").text
    assert "delivery 1" in shown and "pid" in shown and "a is no good" in shown
    (row,) = shell.run(f"eoq dead show {queue} a --json").rows
    assert row["history"][0]["error"] == "a is no good"


@pytest.mark.slow
def test_dead_letters_are_redriven_by_id_by_age_or_all(shell: Shell, client: eoq.Client, queue: str) -> None:
    _make_dead(client, queue, "a", "b", "c")
    ran = shell.run(f"eoq dead redrive {queue} b")
    assert (ran.status, ran.lines) == (0, ["b"])
    ran = shell.run(f"eoq dead redrive {queue} b a")
    assert (ran.status, ran.lines) == (1, ["a"])  # b is no longer a dead letter
    assert "b" in ran.errors and "eoq dead list" in ran.errors
    assert shell.run(f"eoq dead redrive {queue} --older-than 3600").status == 1
    ran = shell.run(f"eoq dead redrive {queue} --all --json")
    assert ran.rows == [{"queue": queue, "id": "c"}]
    assert [message.id for message in client.receive(queue, 10)] == ["a", "b", "c"]


@pytest.mark.slow
def test_drop_needs_confirmation(shell: Shell, client: eoq.Client, queue: str) -> None:
    _make_dead(client, queue, "a", "b")
    refused = shell.run(f"eoq dead drop {queue} --all")
    assert (refused.status, refused.text) == (2, "")
    assert "--yes" in refused.errors
    ran = shell.run(f"eoq dead drop {queue} a --yes")
    assert (ran.status, ran.lines) == (0, ["a"])
    ran = shell.run(f"eoq dead drop {queue} --older-than 0 --yes")
    assert (ran.status, ran.lines) == (0, ["b"])
    assert shell.run(f"eoq dead list {queue}").status == 1
    ran = shell.run(f"eoq result {queue} a")
    assert ran.status == 65 and "was dropped" in ran.errors


@pytest.mark.parametrize(
    ("which", "how"),
    one_in(
        3,
        [
            (which, how)
            for which in ("", "a --all", "--all --older-than 1", "a --older-than 1", "--older-than -1")
            for how in ("redrive", "drop --yes")
        ],
    ),
)
@pytest.mark.first_by_default
def test_dead_letters_must_be_selected_in_exactly_one_way(shell: Shell, queue: str, how: str, which: str) -> None:
    ran = shell.run(f"eoq dead {how} {queue} {which}")
    assert (ran.status, ran.text) == (2, "")


@pytest.mark.slow
def test_a_queue_that_does_not_exist_is_1(shell: Shell) -> None:
    for command in (
        "dead redrive nowhere --all",
        "dead drop nowhere --all --yes",
        "purge nowhere --yes",
        "resume nowhere",
    ):
        ran = shell.run(f"eoq {command}")
        assert (ran.status, ran.text) == (1, "")
        assert "nowhere" in ran.errors and "eoq queues" in ran.errors


# ── pause, resume, purge ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_pause_stops_deliveries_until_resume(shell: Shell, client: eoq.Client, queue: str) -> None:
    assert shell.run(f"eoq pause {queue}").status == 0
    client.send(queue, "waits")
    assert shell.run(f"eoq receive {queue}").status == 1
    line = next(line for line in shell.run("eoq queues").lines if line.split()[0] == queue)
    assert line.split()[-1] == "paused"
    assert "already" in shell.run(f"eoq pause {queue}").errors
    ran = shell.run(f"eoq resume {queue}")
    assert (ran.status, ran.errors) == (0, "")
    assert "not paused" in shell.run(f"eoq resume {queue}").errors
    assert shell.run(f"eoq receive {queue}").text == "waits\n"


@pytest.mark.slow
def test_purge_without_a_terminal_needs_yes(shell: Shell, client: eoq.Client, queue: str) -> None:
    client.send_many(queue, [b""] * 3)
    refused = shell.run(f"eoq purge {queue}")
    assert (refused.status, refused.text) == (2, "")
    assert "--yes" in refused.errors
    assert shell.run(f"eoq purge {queue} --yes").text == "3\n"
    assert shell.run(f"eoq purge {queue} --yes --json").rows == [{"queue": queue, "count": 0}]


@pytest.mark.parametrize(("answer", "status", "remaining"), [("y", 0, 0), ("n", 1, 3), ("", 1, 3)])
@pytest.mark.first_by_default
def test_purge_at_a_terminal_asks_for_confirmation(
    shell: Shell, client: eoq.Client, queue: str, answer: str, status: int, remaining: int
) -> None:
    client.send_many(queue, [b""] * 3)
    user, command = os.openpty()
    process = shell.start(f"eoq purge {queue}", stdin=command, stdout=subprocess.DEVNULL, stderr=command)
    with process:
        os.close(command)
        try:
            question = b""
            while b"[y/N]" not in question:
                question += os.read(user, 1000)
            assert queue in question.decode()
            os.write(user, answer.encode() + b"\n")
            assert process.wait(PATIENCE) == status
        finally:
            kill_group(process)
            os.close(user)
    assert len(client.peek(queue)) == remaining


# ── topics ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_topic_copies_messages_to_its_queues(shell: Shell) -> None:
    ran = shell.run(
        """
        eoq bind news news.mail && eoq bind news news.paper --header kind=big
        eoq send news 'small' --id 1 && eoq send news 'big' --id 2 --header kind=big
        eoq receive news.mail --limit 10; echo --; eoq receive news.paper --limit 10; echo --
        eoq topics; eoq unbind news news.mail; eoq topics --json; eoq unbind news news.mail
        """
    )
    assert ran.status == 1
    assert "not bound" in ran.errors
    assert ran.lines == [
        *("1", "2", "small", "big", "--", "big", "--"),
        *("news  news.mail", "news  news.paper  kind=big"),
        '{"topic": "news", "queue": "news.paper", "headers": {"kind": "big"}}',
    ]
    assert shell.run("eoq unbind news news.paper").status == 0


@pytest.mark.slow
def test_bad_topic_names_are_refused(shell: Shell) -> None:
    assert shell.run("eoq bind 'no name' q").status == 2
    assert shell.run("eoq bind t 'no name'").status == 2
    assert shell.run("eoq bind t t").status == 65


# ── tail and peek ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_tail_follows_a_queue_until_ctrl_c(shell: Shell, client: eoq.Client, queue: str) -> None:
    client.send_many(queue, [eoq.Outgoing(b"", id=str(number)) for number in range(5)])
    process = shell.start(f"exec eoq tail {queue} -n 1 --json", stdout=subprocess.PIPE)
    with process:
        try:
            assert b'"id": "4"' in read_line_of(process)
            client.send(queue, "\x1b[31mred", id="new")
            assert b'"id": "new"' in read_line_of(process)
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) == 130
        finally:
            kill_group(process)


def test_tail_goes_on_after_the_daemon_restarts(daemon: Daemon) -> None:
    process = daemon.shell().start("exec eoq tail q", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with process, eoq.connect(daemon.socket) as client:
        try:
            eventually(lambda: daemon.ask(op="status")["connections"] >= 2)
            client.send("q", "one", id="1")
            assert b"1  one" in read_line_of(process)
            daemon.kill()
            daemon.restart()
            client.send("q", "\x1b[2Jtwo", id="2")
            line = read_line_of(process)
            assert b"2  " in line and b"two" in line and b"\x1b" not in line
        finally:
            kill_group(process)


@pytest.mark.slow
def test_peek_filters_by_group_header_and_body(shell: Shell, client: eoq.Client, queue: str) -> None:
    client.send(queue, "apple", id="1", group="g", headers={"k": "v"})
    client.send(queue, "pear", id="2")
    for options, ids in (("--group g", ["1"]), ("--header k=v", ["1"]), ("--contains ear", ["2"])):
        assert [row["id"] for row in shell.run(f"eoq peek {queue} {options} --json").rows] == ids
    assert shell.run(f"eoq peek {queue} --header k=w").status == 1
    assert shell.run(f"eoq peek {queue} --header kv").status == 2


@pytest.mark.slow
def test_a_search_that_ends_early_reports_it(daemon: Daemon) -> None:
    with eoq.connect(daemon.socket) as client:
        client.send_many("q", [b""] * 50_001)
        client.send("q", "needle")
    ran = daemon.shell().run("eoq peek q --contains needle")
    assert (ran.status, ran.text) == (1, "")
    assert "not all messages of q were searched" in ran.errors and "there may be more matches" in ran.errors


@pytest.mark.slow
def test_a_message_with_a_ttl_expires(shell: Shell, client: eoq.Client, queue: str) -> None:
    shell.run(f"eoq send {queue} over --id over --ttl 0.05")
    ran = shell.run(f"eoq result {queue} over --wait 20")
    assert ran.status == 65 and "has expired" in ran.errors
    ran = shell.run(f"""echo '{{"body": "x", "id": "j", "ttl": 600}}' | eoq send {queue} --jsonl""")
    assert ran.status == 0
    assert "expires_at" in client.show(queue, "j")
    assert shell.run(f"eoq send {queue} x --ttl 0").status == 2


@pytest.mark.slow
def test_a_send_to_a_topic_says_to_how_many_queues_it_went(shell: Shell, queue: str) -> None:
    topic = f"{queue}-topic"
    shell.run(f"eoq bind {topic} {queue}-a --header risk=high && eoq bind {topic} {queue}-b --header risk=high")
    both = shell.run(f"eoq send {topic} x --header risk=high --json")
    assert (both.rows[0]["queues"], both.errors) == (2, "")
    none = shell.run(f"eoq send {topic} x --json")
    assert (none.status, none.rows[0]["queues"]) == (0, 0)
    assert f"stored nowhere: no queue that is bound to the topic {topic} matches the headers" in none.errors
    lines = shell.run(f"eoq send {topic} --lines", b"1\n2\n")
    assert (lines.status, "eoq: 2 messages are stored nowhere" in lines.errors) == (0, True)
    spooling = shell.run(f"eoq send {topic} x --spool spool")
    assert (spooling.status, "stored nowhere" in spooling.errors) == (0, True)
    plain = shell.run(f"eoq send {queue} x --json")
    assert ("queues" in plain.rows[0], plain.errors) == (False, "")


# ── many queues ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_queues_are_listed_in_pages_and_in_orders(shell: Shell, client: eoq.Client, queue: str) -> None:
    for number in range(4):
        client.send(f"{queue}{number}", "x")
    client.send_many(f"{queue}2", ["x", "x"])

    def listed(options: str) -> list[str]:
        ran = shell.run(f"eoq queues {options}")
        assert ran.status == 0, ran.errors
        return [line.split()[0].removeprefix(queue) for line in ran.lines]

    assert listed(f"--prefix {queue}") == ["0", "1", "2", "3"]
    assert listed(f"--prefix {queue} --after {queue}1 --limit 1") == ["2"]
    assert listed(f"--contains {queue.upper()} --order depth --limit 2") == ["2", "0"]
    assert listed(f"--contains {queue}") == ["0", "1", "2", "3"]
    assert shell.run(f"eoq queues --json --prefix {queue}3").rows[0]["ready"] == 1
    refused = shell.run("eoq queues --order busy --prefix a")
    assert (refused.status, refused.text) == (2, "")
    assert "leave out --prefix" in refused.errors
