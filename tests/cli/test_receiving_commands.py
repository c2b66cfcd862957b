"""Test ``eoq receive ack nack reject extend`` and the queries ``result queues peek show status`` in a real shell."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator

import pytest

import eoq
from tests.support import Daemon, Shell


@pytest.fixture
def client(shared_daemon: Daemon) -> Iterator[eoq.Client]:
    """Return a client that sends messages and sees their outcomes."""
    with eoq.connect(shared_daemon.socket) as client:
        yield client


def _state(client: eoq.Client, queue: str, id: str) -> str:
    state: str = client.ask("show", queue=queue, id=id)["message"]["state"]
    return state


def _receipt(shell: Shell, queue: str) -> str:
    receipt: str = shell.run(f"eoq receive {queue} --json").rows[0]["receipt"]
    return receipt


# ── receive ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_receive_prints_the_bodies(shell: Shell, client: eoq.Client, queue: str) -> None:
    client.send_many(queue, ["one", "two\n", b"\xff"])
    ran = shell.run(f"eoq receive {queue} --limit 10")
    assert (ran.status, ran.stdout, ran.errors) == (0, b"one\ntwo\n\xff\n", "")


def test_receive_from_an_empty_queue_is_1(shell: Shell, queue: str) -> None:
    ran = shell.run(f"eoq receive {queue}")
    assert (ran.status, ran.text, ran.errors) == (1, "", "")


def test_json_has_every_field_of_a_message(shell: Shell, client: eoq.Client, queue: str) -> None:
    client.send(queue, "é\n", id="m", headers={"k": "v"}, priority=2, group="g")
    client.send(queue, b"\xff")
    text, binary = shell.run(f"eoq receive {queue} --limit 10 --json").rows
    assert text.pop("receipt")
    assert text.pop("seq") < binary["seq"]
    assert text.pop("enqueued_at") <= time.time()
    assert text == {
        "id": "m", "queue": queue, "body": "é\n", "headers": {"k": "v"}, "attempt": 1, "priority": 2, "group": "g"
    }  # fmt: skip
    assert base64.b64decode(binary["body_base64"]) == b"\xff"
    assert "body" not in binary


def test_limit_wait_and_lease_are_respected(shell: Shell, client: eoq.Client, queue: str) -> None:
    client.send_many(queue, ["a", "b", "c"])
    assert shell.run(f"eoq receive {queue} --limit 2 --lease 3600").lines == ["a", "b"]
    assert shell.run(f"eoq receive {queue} --lease 0.05").lines == ["c"]
    assert shell.run(f"eoq receive {queue} --wait 20").lines == ["c"]
    start = time.monotonic()
    assert shell.run(f"eoq receive {queue} --wait 0.3").status == 1
    assert time.monotonic() - start > 0.3


def test_wait_receives_a_message_that_is_sent_meanwhile(shell: Shell, queue: str) -> None:
    ran = shell.run(f"eoq receive {queue} --wait 30 & eoq send {queue} hello > /dev/null; wait $!")
    assert ran.text == "hello\n"


def test_the_lease_outlives_the_command(shell: Shell, client: eoq.Client, queue: str) -> None:
    client.send(queue, "x", id="m")
    receipt = _receipt(shell, queue)
    assert _state(client, queue, "m") == "leased"
    assert shell.run(f"eoq ack {receipt}").status == 0


def test_receive_with_ack_settles_the_printed_messages(shell: Shell, client: eoq.Client, queue: str) -> None:
    client.send_many(queue, [eoq.Outgoing("x", id=id) for id in ("a", "b", "c")])
    assert shell.run(f"eoq receive {queue} --limit 2 --ack").lines == ["x", "x"]
    assert [_state(client, queue, id) for id in ("a", "b", "c")] == ["done", "done", "ready"]


@pytest.mark.first_by_default
@pytest.mark.parametrize("count", [0, 1, 3])
def test_receipts_can_be_piped_to_xargs_eoq_ack(shell: Shell, client: eoq.Client, queue: str, count: int) -> None:
    """Test the example of the help of `receive`, with sed because not every machine has jq."""
    client.send_many(queue, [b"x"] * count)
    receipts = r"""sed -E 's/.*"receipt": "([^"]+)".*/\1/'"""
    ran = shell.run(f"eoq receive {queue} --limit 10 --json | {receipts} | xargs -r -n 1 eoq ack")
    assert (ran.status, ran.errors) == (0, "")
    assert client.peek(queue, state="leased") == client.peek(queue) == []
    assert len(client.peek(queue, state="done")) == count


def test_receive_with_ack_does_not_settle_what_it_could_not_print(shell: Shell, client: eoq.Client, queue: str) -> None:
    client.send(queue, "x", id="m")
    ran = shell.run(f"eoq receive {queue} --ack --lease 600 > /dev/full")
    assert ran.status not in (0, 1)
    assert _state(client, queue, "m") == "leased"


@pytest.mark.parametrize("arguments", ["--limit 0", "--limit 1001", "--wait -1", "--lease 0", "--lease 99999999"])
@pytest.mark.first_by_default
def test_wrong_usage_is_2(shell: Shell, queue: str, arguments: str) -> None:
    assert shell.run(f"eoq receive {queue} {arguments}").status == 2


# ── settle and extend ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("script", ["eoq ack {} --result paid", "printf paid | eoq ack {} --result -"])
def test_ack_stores_a_result(shell: Shell, client: eoq.Client, queue: str, script: str) -> None:
    client.send(queue, "x", id="m")
    ran = shell.run(script.format(_receipt(shell, queue)))
    assert (ran.status, ran.text, ran.errors) == (0, "", "")
    assert client.result(queue, "m") == eoq.Result("done", b"paid")


def test_ack_stores_any_bytes_up_to_the_limit(shell: Shell, client: eoq.Client, queue: str) -> None:
    client.send(queue, "x", id="m")
    receipt = _receipt(shell, queue)
    assert shell.run(f"eoq ack {receipt} --result -", b"x" * (1024 * 1024 + 1)).status == 65
    assert shell.run(f"eoq ack {receipt} --result -", b"\x00\xff\n").status == 0
    assert client.result(queue, "m") == eoq.Result("done", b"\x00\xff\n")


def test_nack_returns_a_message_and_reject_makes_it_a_dead_letter(shell: Shell, client: eoq.Client, queue: str) -> None:
    client.send(queue, "x", id="m")
    assert shell.run(f"eoq nack {_receipt(shell, queue)} --error busy").status == 0
    assert client.ask("show", queue=queue, id="m")["message"]["error"] == "busy"
    assert shell.run(f"eoq nack {_receipt(shell, queue)} --delay 0.05").status == 0
    assert shell.run(f"eoq receive {queue} --wait 20 --lease 600").text == "x\n"
    client.send(queue, "y", id="n")
    assert shell.run(f"eoq reject {_receipt(shell, queue)} --error 'no account'").status == 0
    assert client.result(queue, "n") == eoq.Result("dead", error="no account")


def test_extend_prolongs_a_lease(shell: Shell, client: eoq.Client, queue: str) -> None:
    client.send(queue, "x", id="m")
    (message,) = client.receive(queue, lease=5)
    assert shell.run(f"eoq extend {message.receipt} 600").status == 0
    assert client.receive(queue, wait=5.1) == []
    assert _state(client, queue, "m") == "leased"


@pytest.mark.parametrize("command", ["ack {}", "nack {}", "reject {}", "extend {} 5"])
@pytest.mark.first_by_default
def test_a_lost_lease_is_65(shell: Shell, client: eoq.Client, queue: str, command: str) -> None:
    client.send(queue, "x", id="m")
    (old,) = client.receive(queue, lease=0.01)
    client.receive(queue, wait=20)
    ran = shell.run("eoq " + command.format(old.receipt))
    assert (ran.status, ran.text) == (65, "")
    assert "lease" in ran.errors
    assert _state(client, queue, "m") == "leased"


@pytest.mark.parametrize("command", ["ack nonsense", "nack nonsense", "reject nonsense", "extend nonsense 5", "ack ''"])
@pytest.mark.first_by_default
def test_a_bad_receipt_is_65(shell: Shell, command: str) -> None:
    ran = shell.run("eoq " + command)
    assert ran.status == 65
    assert "receipt" in ran.errors


@pytest.mark.parametrize(
    "command", ["ack", "nack", "reject", "extend x", "extend x soon", "extend x 0", "extend x 5 y"]
)
@pytest.mark.first_by_default
def test_missing_or_wrong_arguments_are_2(shell: Shell, command: str) -> None:
    assert shell.run("eoq " + command).status == 2


@pytest.mark.parametrize("command", ["nack", "reject"])
def test_an_error_text_may_have_any_bytes(shell: Shell, client: eoq.Client, queue: str, command: str) -> None:
    client.send(queue, "x", id="m")
    assert shell.run(f"eoq {command} {_receipt(shell, queue)} --error $'\\xff\\n\\t'").status == 0


# ── queries ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_result_prints_the_stored_result(shell: Shell, client: eoq.Client, queue: str) -> None:
    client.send(queue, "x", id="m")
    assert shell.run(f"eoq result {queue} m").status == 1
    assert shell.run(f"eoq result {queue} none").status == 1
    client.receive(queue)[0].ack(result=b"\xff")
    assert shell.run(f"eoq result {queue} m").stdout == b"\xff\n"
    (row,) = shell.run(f"eoq result {queue} m --json").rows
    assert row == {"queue": queue, "id": "m", "outcome": "done", "result_base64": "/w=="}


def test_result_waits_for_the_ack(shell: Shell, client: eoq.Client, queue: str) -> None:
    client.send(queue, "x", id="m")
    receipt = client.receive(queue)[0].receipt
    ran = shell.run(f"eoq result {queue} m --wait 30 & eoq ack {receipt} --result late; wait $!")
    assert ran.text == "late\n"


def test_result_of_a_dead_letter_is_65_with_its_error(shell: Shell, client: eoq.Client, queue: str) -> None:
    client.send(queue, "x", id="m")
    client.receive(queue)[0].reject("no account")
    ran = shell.run(f"eoq result {queue} m --json")
    assert ran.status == 65
    assert ran.rows == [{"queue": queue, "id": "m", "outcome": "dead", "error": "no account"}]
    assert "no account" in ran.errors


def test_queues_lists_the_counts(shell: Shell, client: eoq.Client, queue: str) -> None:
    client.send_many(queue, ["a", "b", "c"])
    client.receive(queue)
    rows = {row["queue"]: row for row in shell.run("eoq queues --json").rows}
    assert (rows[queue]["ready"], rows[queue]["leased"], rows[queue]["dead"]) == (2, 1, 0)
    assert 0 <= rows[queue]["oldest_seconds"] < 60
    line = next(line for line in shell.run("eoq queues").lines if line.split()[0] == queue)
    assert line.split()[1:6] == ["2", "0", "1", "0", "0"]


def test_peek_prints_without_leasing(shell: Shell, client: eoq.Client, queue: str) -> None:
    client.send(queue, "line\n\x1b[31mred", id="m")
    ran = shell.run(f"eoq peek {queue}")
    assert len(ran.lines) == 1
    assert "\x1b" not in ran.text
    (row,) = shell.run(f"eoq peek {queue} --json").rows
    assert (row["id"], row["body"], row["attempts"]) == ("m", "line\n\x1b[31mred", 0)
    assert _state(client, queue, "m") == "ready"
    assert shell.run(f"eoq peek {queue} --state dead").status == 1


def test_show_prints_every_field_or_is_1(shell: Shell, client: eoq.Client, queue: str) -> None:
    client.send(queue, "x", id="m", headers={"k": "v"})
    (row,) = shell.run(f"eoq show {queue} m --json").rows
    assert row.items() >= {"id": "m", "state": "ready", "headers": {"k": "v"}, "body": "x"}.items()
    assert "ready" in shell.run(f"eoq show {queue} m").text
    ran = shell.run(f"eoq show {queue} none")
    assert (ran.status, ran.text) == (1, "")
    assert "none" in ran.errors


def test_show_prints_no_control_characters(shell: Shell, client: eoq.Client, queue: str) -> None:
    """A body comes from others: it must not move the cursor or change the title of the operator's terminal."""
    client.send(queue, "\x1b]0;owned\x07\x1b[2J", id="m")
    assert "\x1b" not in shell.run(f"eoq show {queue} m").text


def test_status_shows_pid_and_socket(shell: Shell, shared_daemon: Daemon) -> None:
    (row,) = shell.run("eoq status --json").rows
    assert row["pid"] == shared_daemon.pid
    assert row["socket"] == str(shared_daemon.socket)
    assert str(shared_daemon.pid) in shell.run("eoq status").text


# ── several receipts ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("command", "state"), [("ack", "done"), ("nack --delay 60", "delayed"), ("reject --error bad", "dead")]
)
@pytest.mark.first_by_default
def test_several_receipts_are_settled(shell: Shell, client: eoq.Client, queue: str, command: str, state: str) -> None:
    client.send_many(queue, [eoq.Outgoing("x", id=id) for id in "abc"])
    ran = shell.run(f"eoq receive {queue} --limit 3 --json | jq -r .receipt | xargs -r eoq {command}")
    assert (ran.status, ran.text, ran.errors) == (0, "", "")
    assert [_state(client, queue, id) for id in "abc"] == [state] * 3


@pytest.mark.parametrize("command", ["ack", "nack", "reject"])
def test_each_of_several_receipts_is_settled_and_the_worst_gives_the_exit_status(
    shell: Shell, client: eoq.Client, queue: str, command: str
) -> None:
    client.send_many(queue, [eoq.Outgoing("x", id=id) for id in "abc"])
    first, second, third = (message.receipt for message in client.receive(queue, 3, lease=60))
    client.reject(second)
    ran = shell.run(f"eoq {command} {first} nonsense {second}x {third}")
    assert (ran.status, ran.text) == (65, "")
    assert "eoq: receipt nonsense: " in ran.errors
    assert f"eoq: receipt {second}x: " in ran.errors
    assert first not in ran.errors
    assert third not in ran.errors
    assert all(_state(client, queue, id) != "leased" for id in "ac")


def test_receipts_that_were_not_tried_are_named(shell: Shell) -> None:
    ran = shell.run("eoq ack one two three --socket none")
    assert ran.status == 69
    assert "eoq: receipt one: cannot reach the daemon" in ran.errors
    assert "eoq: not tried: two three" in ran.errors


def test_a_settling_command_needs_a_receipt(shell: Shell) -> None:
    assert shell.run("eoq ack").status == 2


@pytest.mark.slow
def test_extend_says_that_the_message_was_cancelled(shell: Shell, client: eoq.Client, queue: str) -> None:
    client.send(queue, "x", id="m")
    (row,) = shell.run(f"eoq receive {queue} --json --lease 600").rows
    ran = shell.run(f"eoq extend {row['receipt']} 600")
    assert (ran.status, ran.errors) == (0, "")
    client.cancel(queue, "m")
    for seconds in ("600", "6e2"):
        ran = shell.run(f"eoq extend {row['receipt']} {seconds}")
        assert (ran.status, ran.text) == (0, "")
        assert "was cancelled" in ran.errors


@pytest.mark.slow
def test_status_names_what_waits_apart_from_how_long(shell: Shell, client: eoq.Client, queue: str) -> None:
    client.send(queue, "x")
    client.receive(queue)
    rows = dict(line.split(None, 1) for line in shell.run("eoq status").lines)
    assert rows["waiting"].isdecimal()
    assert rows["waiting_time"].startswith("p50 < ")
    assert "not_after, pages" in rows["features"]
