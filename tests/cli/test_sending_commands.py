"""Test ``eoq send`` in a real shell: arguments, standard input, lines, JSON lines, --wait and progress."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

import eoq
from tests.cases import one_in
from tests.support import PATIENCE, Daemon, Shell, run_at_terminal, terminal

MEBIBYTE = 1024 * 1024


@pytest.fixture
def client(shared_daemon: Daemon) -> Iterator[eoq.Client]:
    """Return a client that sees which messages are stored."""
    with eoq.connect(shared_daemon.socket) as client:
        yield client


def _bodies(client: eoq.Client, queue: str) -> list[bytes]:
    """Receive all messages of a queue and return their bodies."""
    bodies: list[bytes] = []
    while messages := client.receive(queue, 1000):
        bodies.extend(message.body for message in messages)
    return bodies


def test_send_prints_the_id(shell: Shell, client: eoq.Client, queue: str) -> None:
    ran = shell.run(f"eoq send {queue} 'hello world'")
    assert (ran.status, ran.errors) == (0, "")
    (message,) = client.receive(queue)
    assert ran.text == f"{message.id}\n"
    assert message.text == "hello world"


def test_all_options_are_stored_with_the_message(shell: Shell, client: eoq.Client, queue: str) -> None:
    ran = shell.run(f"eoq send {queue} x --id m --priority -5 --group g --header a=1 --header b==2= --header c=")
    assert ran.text == "m\n"
    (message,) = client.receive(queue)
    assert (message.id, message.priority, message.group) == ("m", -5, "g")
    assert message.headers == {"a": "1", "b": "=2=", "c": ""}


@pytest.mark.parametrize("option", ["--delay 3600", "--at 4000000000", "--at 2095-01-31T09:00"])
@pytest.mark.first_by_default
def test_delay_and_at_delay_the_message(shell: Shell, client: eoq.Client, queue: str, option: str) -> None:
    assert shell.run(f"eoq send {queue} x --id m {option}").status == 0
    assert client.ask("show", queue=queue, id="m")["message"]["state"] == "delayed"


def test_the_same_id_again_is_a_duplicate_and_a_conflict_is_65(shell: Shell, queue: str) -> None:
    assert shell.run(f"eoq send {queue} x --id m --json").rows == [{"id": "m", "duplicate": False}]
    assert shell.run(f"eoq send {queue} x --id m --json").rows == [{"id": "m", "duplicate": True}]
    ran = shell.run(f"eoq send {queue} other --id m")
    assert (ran.status, ran.text) == (65, "")
    assert "other content" in ran.errors


@pytest.mark.parametrize(
    "data", [b"", b"text", b"text\n", b"\x00\xff\n\r\n", bytes(range(256)), b"x" * MEBIBYTE], ids=range(6)
)
@pytest.mark.first_by_default
def test_the_body_is_standard_input_byte_for_byte(shell: Shell, client: eoq.Client, queue: str, data: bytes) -> None:
    assert shell.run(f"eoq send {queue}", data).status == 0
    assert _bodies(client, queue) == [data]


def test_a_dash_stands_for_standard_input(shell: Shell, client: eoq.Client, queue: str) -> None:
    assert shell.run(f"eoq send {queue} -", b"text").status == 0
    assert _bodies(client, queue) == [b"text"]


def test_a_body_one_byte_over_the_limit_is_65(shell: Shell, client: eoq.Client, queue: str) -> None:
    ran = shell.run(f"eoq send {queue}", b"x" * (MEBIBYTE + 1))
    assert ran.status == 65
    assert "1,048,576" in ran.errors
    assert _bodies(client, queue) == []


def test_endless_input_is_refused(shell: Shell, queue: str) -> None:
    assert shell.run(f"cat /dev/zero | eoq send {queue}").status == 65


def test_a_body_argument_may_have_any_bytes(shell: Shell, client: eoq.Client, queue: str) -> None:
    assert shell.run(f"eoq send {queue} $'\\xff\\xfe\\n\"é\"'").status == 0
    assert _bodies(client, queue) == [b'\xff\xfe\n"\xc3\xa9"']


@pytest.mark.parametrize("option", ["--id", "--group", "--header"])
@pytest.mark.first_by_default
def test_other_options_must_be_text(shell: Shell, queue: str, option: str) -> None:
    value = "$'k=\\xff'" if option == "--header" else "$'\\xff'"
    ran = shell.run(f"eoq send {queue} x {option} {value}")
    assert ran.status in (2, 65)
    assert ran.errors


def test_a_body_that_looks_like_an_option_needs_two_dashes(shell: Shell, client: eoq.Client, queue: str) -> None:
    assert shell.run(f"eoq send {queue} -- --json").status == 0
    assert _bodies(client, queue) == [b"--json"]


@pytest.mark.parametrize(
    "arguments",
    one_in(3, ["", "'bad name' x", "q x y", "q x --nonsense", "q x --delay -1", "q x --delay soon", "q x --at nonsense",
     "q x --priority high", "q x --header novalue", "q x --delay 1 --at 1", "q x --lines", "q --lines --jsonl",
     "q --lines --id m", "q --lines --wait 1", "q x --wait -1"]),
)  # fmt: skip
@pytest.mark.first_by_default
def test_wrong_usage_is_2(shell: Shell, arguments: str) -> None:
    ran = shell.run(f"eoq send {arguments}")
    assert ran.status == 2
    assert "Error: " in ran.errors
    assert ran.text == ""


@pytest.mark.parametrize("arguments", ["--id ''", "--id $'a\\nb'", "--priority 99999999999", "--group ''"])
@pytest.mark.first_by_default
def test_a_value_out_of_bounds_is_refused_in_plain_words(shell: Shell, queue: str, arguments: str) -> None:
    ran = shell.run(f"eoq send {queue} x {arguments}")
    assert ran.status in (2, 65)
    assert arguments.split()[0].strip("-") in ran.errors
    assert "$." not in ran.errors, "a user of the command does not know the JSON of the protocol"


# ── many messages ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_lines_sends_each_line_as_a_message(shell: Shell, client: eoq.Client, queue: str) -> None:
    ran = shell.run(f"eoq send {queue} --lines --priority 3 --header k=v", b"one\n\ntwo words \r\n\xff\nlast")
    assert ran.status == 0
    messages = client.receive(queue, 10)
    assert [message.body for message in messages] == [b"one", b"", b"two words \r", b"\xff", b"last"]
    assert ran.lines == [message.id for message in messages]
    assert {(message.priority, message.headers["k"]) for message in messages} == {(3, "v")}


def test_empty_input_sends_no_messages(shell: Shell, queue: str) -> None:
    ran = shell.run(f"eoq send {queue} --lines </dev/null")
    assert (ran.status, ran.text) == (0, "")


@pytest.mark.slow
def test_a_hundred_thousand_lines_need_little_memory(shell: Shell, client: eoq.Client, queue: str) -> None:
    measured = (
        "import resource, subprocess, sys; "
        f"status = subprocess.run(['eoq', 'send', '{queue}', '--lines'], stdout=open('ids', 'w')).returncode; "
        "print(status, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    ran = shell.run(f'seq 100000 | python3 -c "{measured}"; sort ids | uniq | wc -l')
    status, kilobytes = ran.lines[0].split()
    assert status == "0"
    assert int(kilobytes) < 100 * 1024 or int(kilobytes) > 10 * MEBIBYTE, "macOS counts bytes"
    assert int(ran.lines[1]) == 100_000
    assert client.ask("queues")["queues"]
    counts = [row["ready"] for row in client.ask("queues")["queues"] if row["name"] == queue]
    assert counts == [100_000]


def test_a_line_over_the_limit_is_refused_with_its_number(shell: Shell, client: eoq.Client, queue: str) -> None:
    ran = shell.run(f"eoq send {queue} --lines", b"one\n" + b"x" * (MEBIBYTE + 1) + b"\nthree\n")
    assert ran.status == 65
    assert "line 2" in ran.errors


def test_a_line_of_exactly_the_limit_is_sent(shell: Shell, client: eoq.Client, queue: str) -> None:
    assert shell.run(f"eoq send {queue} --lines", b"x" * MEBIBYTE + b"\nshort\n").status == 0
    assert [len(body) for body in _bodies(client, queue)] == [MEBIBYTE, 5]


def test_json_lines_have_their_own_options(shell: Shell, client: eoq.Client, queue: str) -> None:
    rows = [
        {"body": "text", "id": "a", "headers": {"k": "own"}, "priority": 2, "group": "g"},
        {"body": {"any": ["json"]}, "id": "b"},
        {"body_base64": "AP8=", "id": "c"},
        {"body": "later", "id": "d", "delay": 3600},
    ]
    stdin = "\n\n".join(json.dumps(row) for row in rows).encode()
    ran = shell.run(f"eoq send {queue} --jsonl --header k=all", stdin)
    assert ran.lines == ["a", "b", "c", "d"]
    a, b, c = client.receive(queue, 10)
    assert (a.text, a.priority, a.group, a.headers) == ("text", 2, "g", {"k": "own"})
    assert b.json() == {"any": ["json"]}
    assert b.headers["k"] == "all"
    assert c.body == b"\x00\xff"


@pytest.mark.parametrize(
    "bad",
    one_in(3, [
     "nonsense", "[1]", '"text"', "5", "null", "{}", '{"id": "a"}', '{"body": "x", "prio": 1}', '{"body": "x"',
     '{"body_base64": "!"}', '{"body": "x", "body_base64": "eA=="}', '{"body": "\\ud800"}', '{"body_base64": 5}',
     '{"body": "x", "delay": "soon"}', '{"body": "x", "id": 5}', '{"body": "x", "priority": "high"}',
     '{"body": "x", "headers": 5}', '{"body": "x", "headers": ["a"]}', '{"body": "x", "group": 5}',
     '{"body": NaN}', '{"body": "x", "delay": NaN}', '{"body": "x", "delay": 1, "at": 1}',
     "[" * 100_000, '{"body": ' + "[" * 100_000]),
    ids=lambda bad: bad[:40],
)  # fmt: skip
@pytest.mark.first_by_default
def test_a_bad_json_line_is_refused_with_its_number(shell: Shell, queue: str, bad: str) -> None:
    ran = shell.run(f"eoq send {queue} --jsonl", b'{"body": "good"}\n\n' + bad.encode() + b"\n")
    assert ran.status == 65
    assert "line 3" in ran.errors


@pytest.mark.parametrize("at", ["4000000000", '"4000000000"', '"2095-01-31T09:00"', '"2095-01-31T09:00:00+02:00"'])
@pytest.mark.first_by_default
def test_a_json_line_takes_the_same_times_as_the_option(shell: Shell, client: eoq.Client, queue: str, at: str) -> None:
    assert shell.run(f"eoq send {queue} --jsonl", f'{{"body": "x", "id": "line", "at": {at}}}'.encode()).status == 0
    assert shell.run(f"eoq send {queue} x --id option --at {at}").status == 0
    line, option = (client.ask("show", queue=queue, id=id)["message"]["due_at"] for id in ("line", "option"))
    assert line == option


def test_a_json_line_with_a_bad_time_or_option_is_refused_with_what_is_allowed(shell: Shell, queue: str) -> None:
    ran = shell.run(f"eoq send {queue} --jsonl", b'{"body": "x", "at": "tomorrow"}\n')
    assert (ran.status, ran.text) == (65, "")
    assert "'tomorrow' is not a time" in ran.errors and "ISO 8601" in ran.errors
    ran = shell.run(f"eoq send {queue} --jsonl", b'{"body": "x", "prio": 1}\n')
    assert (ran.status, ran.text) == (65, "")
    assert "unknown option 'prio'; the options are body, id, headers, priority, group, delay, at, ttl" in ran.errors


def test_json_lines_that_are_not_utf8_are_refused_with_their_number(shell: Shell, queue: str) -> None:
    ran = shell.run(f"eoq send {queue} --jsonl", b'{"body": "good"}\n{"body": "\xff"}\n')
    assert ran.status == 65
    assert "line 2" in ran.errors


def test_jsonl_with_json_prints_one_object_a_line(shell: Shell, queue: str) -> None:
    shell.run(f"eoq send {queue} x --id b")
    stdin = b'{"body": "1", "id": "a"}\n{"body": "x", "id": "b"}\n'
    rows = shell.run(f"eoq send {queue} --jsonl --json", stdin).rows
    assert rows == [{"id": "a", "duplicate": False}, {"id": "b", "duplicate": True}]


def test_a_conflict_in_the_middle_reports_what_is_stored(shell: Shell, queue: str) -> None:
    shell.run(f"eoq send {queue} x --id b")
    ran = shell.run(f"eoq send {queue} --jsonl", b'{"body": "1", "id": "a"}\n{"body": "y", "id": "b"}\n')
    assert ran.status == 65
    assert "'b'" in ran.errors
    assert "stopped" in ran.errors


# ── waiting for the result ──────────────────────────────────────────────────────────────────────────────────


def _worker(queue: str, settle: str) -> str:
    """Return a script that receives one message in the background and settles it."""
    return f"""
        {{
            receipt=$(eoq receive {queue} --wait 30 --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["receipt"])')
            {settle}
        }} &
    """  # noqa: E501 # a line of a shell script


def test_wait_prints_the_result(shell: Shell, queue: str) -> None:
    worker = _worker(queue, 'echo done well | eoq ack "$receipt" --result -')
    ran = shell.run(f"{worker} eoq send {queue} 'page 7' --wait 30; wait")
    assert (ran.status, ran.text) == (0, "done well\n")


@pytest.mark.slow
def test_a_time_that_is_no_number_is_refused_before_anything_is_done(shell: Shell, queue: str) -> None:
    for command in (f"send {queue} x --wait nan", f"send {queue} x --wait inf", f"receive {queue} --lease nan"):
        ran = shell.run(f"eoq {command}")
        assert (ran.status, ran.text, "is a finite number" in ran.errors) == (65, "", True), ran.errors
    ran = shell.run("eoq once key --wait nan -- echo ran")
    assert (ran.status, ran.text) == (65, ""), ran.errors
    assert shell.run(f"eoq peek {queue}").status == 1


def test_wait_with_json_prints_an_object(shell: Shell, queue: str) -> None:
    worker = _worker(queue, 'printf "\\xff" | eoq ack "$receipt" --result -')
    (row,) = shell.run(f"{worker} eoq send {queue} x --id m --wait 30 --json; wait").rows
    assert row == {"id": "m", "duplicate": False, "outcome": "done", "result_base64": "/w=="}


def test_wait_for_a_rejected_message_is_65_with_its_error(shell: Shell, queue: str) -> None:
    worker = _worker(queue, 'eoq reject "$receipt" --error "no such page"')
    ran = shell.run(f"{worker} eoq send {queue} x --wait 30; status=$?; wait; exit $status")
    assert ran.status == 65
    assert "no such page" in ran.errors


def test_wait_without_a_worker_is_1_and_reports_that_the_message_is_stored(
    shell: Shell, client: eoq.Client, queue: str
) -> None:
    ran = shell.run(f"eoq send {queue} x --id m --wait 0.1")
    assert (ran.status, ran.text) == (1, "")
    assert "is stored" in ran.errors
    assert _bodies(client, queue) == [b"x"]


def test_wait_for_a_duplicate_prints_the_stored_result(shell: Shell, queue: str) -> None:
    worker = _worker(queue, 'eoq ack "$receipt" --result first')
    again = f"eoq send {queue} x --id m --wait 30"
    assert shell.run(f"{worker} {again}; wait; {again}").lines == ["first", "first"]


# ── progress ────────────────────────────────────────────────────────────────────────────────────────────────


def test_progress_is_shown_on_a_terminal(shell: Shell, queue: str) -> None:
    shown = run_at_terminal(shell, f"seq 3000 | eoq send {queue} --lines > ids", "stderr")
    assert shown.endswith("\r3,000 sent\r\n")


def test_no_progress_in_a_pipe(shell: Shell, queue: str) -> None:
    ran = shell.run(f"seq 3000 | eoq send {queue} --lines")
    assert (len(ran.lines), ran.errors) == (3000, "")


def test_a_user_at_a_terminal_is_told_how_to_end_the_input(shell: Shell, client: eoq.Client, queue: str) -> None:
    with terminal() as (seen, typed_into):
        process = shell.start(f"eoq send {queue}", stdin=typed_into, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        with process:
            assert process.stderr is not None
            assert b"Ctrl-D" in process.stderr.readline()
            os.write(seen, b"typed\n\x04")
            assert process.wait(PATIENCE) == 0
    assert _bodies(client, queue) == [b"typed\n"]


@pytest.mark.skipif(shutil.which("jq") is None, reason="needs jq")
@pytest.mark.slow
def test_json_output_works_with_jq(shell: Shell, queue: str) -> None:
    ran = shell.run(f"""
        eoq send {queue} '{{"amount": 5}}' --id m --json | jq -r .id
        eoq receive {queue} --json | jq -r '.receipt' | xargs eoq ack --result paid
        eoq result {queue} m --json | jq -r '.outcome + " " + .result'
        eoq queues --json | jq -r 'select(.queue == "{queue}") | .ready'
    """)
    assert ran.lines == ["m", "done paid", "0"]
