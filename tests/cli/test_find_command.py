"""``eoq find`` as people and scripts run it."""

from __future__ import annotations

import pytest

import eoq
from tests.support import Daemon, Shell, run_at_terminal

pytestmark = pytest.mark.slow


def test_the_queues_that_know_an_id_are_printed(shell: Shell, shared_daemon: Daemon, queue: str) -> None:
    with eoq.connect(shared_daemon.socket) as client:
        for name in (f"{queue}.a", f"{queue}.b"):
            client.send(name, "x", id=queue)
        client.receive(f"{queue}.b")[0].ack()
        (stored, ended) = client.find(queue)
    ran = shell.run(f"eoq find {queue}")
    assert ran.status == 0 and ran.errors == ""
    assert [line.split()[:2] for line in ran.lines] == [[f"{queue}.a", "ready"], [f"{queue}.b", "done"]]
    assert shell.run(f"eoq find {queue} --json").rows == [
        {"queue": f"{queue}.a", "id": queue, "state": "ready", "enqueued_at": stored.enqueued_at},
        {"queue": f"{queue}.b", "id": queue, "state": "done", "settled_at": ended.settled_at},
    ]
    head, *rows = run_at_terminal(shell, f"eoq find {queue}", "stdout", NO_COLOR="1").splitlines()
    assert head.split() == ["queue", "state", "stored", "or", "ended"] and len(rows) == 2
    (row,) = shell.run(f"eoq find {queue} {queue}.b {queue}.c --json").rows
    assert row["queue"] == f"{queue}.b"


def test_an_id_that_no_queue_knows_exits_1_and_says_what_to_do(shell: Shell, queue: str) -> None:
    for words, said in (
        (f"no-{queue}", "no queue that you may read"),
        (f"no-{queue} {queue} other", f"{queue}, other"),
    ):
        for flag in ("", "--json"):
            ran = shell.run(f"eoq find {words} {flag}")
            assert (ran.status, ran.text) == (1, "")
            assert said in ran.errors and "eoq config show" in ran.errors


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("", 2),
        ("i no/queue", 2),
        ("''", 65),
        ("$'a\\nb'", 65),
        ("$'\\x1b[2J'", 65),
        ("$'\\xff'", 65),
        ("$(printf '%0201d' 0)", 65),
        ("i --socket /nonexistent/socket", 69),
    ],
)
def test_what_cannot_be_searched_is_refused(shell: Shell, words: str, status: int) -> None:
    ran = shell.run(f"eoq find {words}")
    assert (ran.status, ran.text) == (status, "")
    assert ran.errors and "\x1b" not in ran.errors


def test_the_completion_of_find_offers_queues(shell: Shell, shared_daemon: Daemon, queue: str) -> None:
    shared_daemon.ask(op="send", queue=queue, body="x")
    words = f"eoq find order-17 {queue[:-1]}"
    ran = shell.run("eoq", _EOQ_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD="3")
    assert any(line.endswith(queue) for line in ran.lines)
