"""The quick way of the commands is the same as click's: what it reads, what it sends, and what the user sees."""

from __future__ import annotations

import json
import shlex
import socket as sockets
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import click
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import eoq
from tests.support import Daemon, Ran, Shell, clean_environment, running_daemon

quick: Any = import_module("eoq.cli.quick")
COMMANDS: Final[click.Group] = import_module("eoq.cli.commands").commands
BY_CLICK: Final = "import sys; from eoq.cli.commands import commands; commands(prog_name='eoq')"
BY_MAIN: Final = "import sys; from eoq.cli import main; main(prog_name='eoq')"


def _definition(name: str) -> click.Command:
    command = COMMANDS.get_command(click.Context(COMMANDS), name)
    assert command is not None
    return command


def _read_by_click(name: str, words: list[str]) -> dict[str, Any]:
    return _definition(name).make_context(name, list(words)).params


# ── the definitions ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", quick.COMMANDS)
def test_the_quick_way_has_the_names_of_click(name: str) -> None:
    own, params = quick.COMMANDS[name], _definition(name).params
    options = {option: param for param in params if isinstance(param, click.Option) for option in param.opts}
    arguments = [param for param in params if isinstance(param, click.Argument)]
    for option, (parameter, read, _) in own.options.items():
        assert options[option].name == parameter
        assert options[option].is_flag == (read is None)
        assert options[option].multiple == (parameter == "headers")
        assert options[option].nargs == 1 and not options[option].secondary_opts
    assert [argument.name for argument in arguments] == list(own.arguments)
    assert [argument.nargs for argument in arguments][:-1] == [1] * (len(arguments) - 1)
    assert (arguments[-1].nargs == -1) == own.is_open
    assert sum(argument.required for argument in arguments) == own.least


@pytest.mark.parametrize("name", quick.COMMANDS)
def test_no_parameter_is_read_from_the_environment(name: str) -> None:
    """The quick way reads none. (``EOQ_SOCKET`` is read by the library.)"""
    context = _definition(name).make_context(name, [], resilient_parsing=True)
    assert context.auto_envvar_prefix is None
    assert not [param.name for param in _definition(name).params if param.envvar is not None]


LEAST: Final = {
    "send": "q", "receive": "q", "ack": "r", "nack": "r", "reject": "r", "extend": "r 5", "result": "q m",
    "once": "k -- c",
}  # fmt: skip


@pytest.mark.parametrize("name", quick.COMMANDS)
def test_the_defaults_are_those_of_click(name: str) -> None:
    words = LEAST[name].split()
    own, by_click = quick.COMMANDS[name].read(words), _read_by_click(name, words)
    assert own == {parameter: by_click[parameter] for parameter in own}
    # What the quick way does not know has no effect where it is absent.
    assert not any(value for parameter, value in by_click.items() if parameter not in own)


NUMBERS = st.sampled_from(
    ["0", "1", "5", "007", "0.25", ".5", "5.", ".", "-1", "-0", "--5", "1e3", "nan", "inf", "1_0", " 5", "+5",
     "9999999", "43200", "43201", "1000", "1001", "100000000000", "٣", "²", ""]
)  # fmt: skip
TEXTS = st.one_of(
    st.sampled_from(["a", "m-1", "k=v", "k=", "=v", "k", "a b", "-", "--", "-x", "--json", "é", "\udcff", "a\nb", ""]),
    st.sampled_from(["q", "Q.1_x-2", "-q", ".q", "q" * 128, "q" * 129, "x" * 200, "x" * 201, "@command", "q/.."]),
    st.text(max_size=5),
    NUMBERS,
)


@st.composite
def _words(draw: st.DrawFn) -> tuple[str, list[str]]:
    """Return a command and words for it, most of which make sense."""
    name = draw(st.sampled_from(sorted(quick.COMMANDS)))
    words = LEAST[name].split() if draw(st.booleans()) else draw(st.lists(TEXTS, max_size=3))
    known = sorted(quick.COMMANDS[name].options)
    for _ in range(draw(st.integers(0, 4))):
        option = draw(st.sampled_from([*known, "--at", "--nonsense", "-h"]))
        value = draw(TEXTS)
        form = draw(st.sampled_from([[option], [option, value], [f"{option}={value}"]]))
        place = draw(st.integers(0, len(words)))
        words = [*words[:place], *form, *words[place:]]
    return name, words


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_words())
@pytest.mark.slow
def test_what_the_quick_way_reads_click_reads_alike(command: tuple[str, list[str]]) -> None:
    name, words = command
    try:
        own = quick.COMMANDS[name].read(words)
    except quick.Unusual:
        return
    by_click = _read_by_click(name, words)
    assert own == {parameter: by_click[parameter] for parameter in own}
    assert [type(value) for value in own.values()] == [type(by_click[parameter]) for parameter in own]


# ── what is sent ────────────────────────────────────────────────────────────────────────────────────────────


REPLY: Final = {
    "id": "m", "duplicate": False, "duplicates": [], "watermark": 1,
    "outcome": "done", "result": "paid", "state": "done", "status": 0, "output": "once", "output_bytes": 4,
}  # fmt: skip


class Recorder:
    """A program on a socket that answers every request with all the fields any command needs, and keeps requests."""

    def __init__(self, path: Path) -> None:
        self.requests: list[dict[str, Any]] = []
        self._listening = sockets.socket(sockets.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                with connection, connection.makefile("rb") as lines:
                    for line in lines:
                        request = json.loads(line)
                        self.requests.append(request)
                        message = {"id": "m", "receipt": "r", "body": "b", "attempt": 1, "enqueued_at": 1.0, "seq": 1}
                        reply = {"rid": request["rid"], "ok": True, "messages": [message], **REPLY}
                        connection.sendall(json.dumps(reply).encode() + b"\n")

    def close(self) -> None:
        self._listening.shutdown(sockets.SHUT_RDWR)
        self._listening.close()


@contextmanager
def recorder(path: Path) -> Iterator[Recorder]:
    """Run a recorder on a socket."""
    recorder = Recorder(path)
    try:
        yield recorder
    finally:
        recorder.close()


@pytest.mark.parametrize(
    "line",
    [
        "send q hello",
        "send q 'ünïcode \" \\ text'",
        "send q --id m --priority -5 --group g --header a=1 --header b==2= --header a=3 --ttl 60 x",
        "send q x --delay 0 --priority 0",
        "send q x --delay 2.5 --json",
        "send q '' --wait 5 --json",
        "send q -- --json",
        "receive q",
        "receive q --limit 10 --wait 25 --lease 0.5 --json",
        "receive q --ack",
        "ack r",
        "ack r --result paid",
        "ack r --result ''",
        "ack first second",
        "nack r",
        "nack r --delay 60 --error 'the bank is closed'",
        "reject r --error ''",
        "extend r 300",
        "result q m --wait 45",
        "result q m --json",
        "once k -- true",
        "once k --ttl 60 --fingerprint @command --keep-failure --wait 5 -- echo 'a b'",
        "once k --fingerprint text true",
    ],
)
def test_both_ways_send_the_same_requests_and_print_the_same(
    folder: Path, capfdbinary: pytest.CaptureFixture[bytes], line: str
) -> None:
    words = shlex.split(line)
    words[1:1] = ["--socket", str(folder / "s")]
    seen = []
    ways: list[Any] = [quick.run, COMMANDS]
    with recorder(folder / "s") as there:
        for way in ways:
            try:
                status = way(list(words))
            except SystemExit as end:
                status = end.code
            requests = [{**request, "token": "", "rid": 0} for request in there.requests]
            if "--id" not in words:
                requests = [{**request, "id": ""} for request in requests]
            for request in requests:
                # What is left of the wait when the request leaves: a busy machine may have taken some of it.
                request["wait"] = 5 * round(request.get("wait", 0.0) / 5)
            there.requests.clear()
            seen.append((status, requests, capfdbinary.readouterr()))
    assert seen[0] == seen[1]
    assert seen[0][0] == 0, "the quick way took it"
    assert seen[0][1]


# ── what the user sees ──────────────────────────────────────────────────────────────────────────────────────

LINES: Final = [
    ("", "send q1 hello --id a --json"),
    ("", "send q1 hello --id a --json"),
    ("", "send q1 other --id a"),
    ("", "send q1 hello --id ''"),
    ("", "send q1 x y"),
    ("", "send q1 --delay"),
    ("", "send q1 --delay -1 x"),
    ("", "send 'bad name' x"),
    ("", "send --help"),
    ("", "send topic x --id t"),
    ("from standard input\0\xff", "send q1 --id b"),
    ("x" * (1024 * 1024 + 1), "send q1 --id c"),
    ("", "receive q1 --limit 5"),
    ("", "receive q1"),
    ("", "receive q1 --json --limit 0"),
    ("", "ack no-such-receipt"),
    ("", "ack one two"),
    ("", "extend no-such-receipt 5"),
    ("", "extend no-such-receipt 50000"),
    ("", "result q1 none"),
    ("", "result q1 a --json"),
    ("", "once k1 --fingerprint f -- echo hi"),
    ("", "once k1 --fingerprint f -- echo hi"),
    ("", "once k1 --fingerprint other -- echo hi"),
    ("", "once k2 -- /no/such/command"),
    ("", "once k3 --keep-failure -- sh -c 'echo failed; exit 3'"),
    ("", "once k3 -- sh -c 'echo failed; exit 3'"),
    ("", "once --ttl 0 k4 -- true"),
    ("", "once"),
]
"""Standard input and arguments of commands that are run one after the other."""


def _run_all(shell: Shell, code: str, lines: Sequence[tuple[str, str]] = LINES) -> list[Ran]:
    """Run lines by one way, each in a process of its own."""
    environment = {**shell.environment, "EOQ_SOCKET": str(shell.socket), "COLUMNS": "100"}
    found = []
    for stdin, line in lines:
        ran = subprocess.run(
            [sys.executable, "-c", code, *shlex.split(line)],
            input=stdin.encode("latin-1"),
            capture_output=True,
            env=environment,
            cwd=shell.folder,
            timeout=60,
            check=False,
        )
        found.append(Ran(ran.returncode, ran.stdout, ran.stderr))
    return found


@pytest.mark.slow
def test_both_ways_do_the_same_for_the_user() -> None:
    seen = []
    for code in (BY_MAIN, BY_CLICK):
        with running_daemon() as daemon:
            assert daemon.shell().run("eoq bind topic q9 --header kind=none").status == 0
            seen.append(_run_all(daemon.shell(), code))
    for (_, line), one, other in zip(LINES, *seen, strict=True):
        assert one == other, line
    assert {ran.status for ran in seen[0]} == {0, 1, 2, 3, 65, 127}


@pytest.mark.slow
def test_both_ways_say_the_same_where_no_daemon_can_be_reached(folder: Path) -> None:
    shell = Shell(folder / "s", folder)
    lines = [line for line in LINES if line[1].split()[0] in ("extend", "result", "once")][::2]
    quickly, by_click = _run_all(shell, BY_MAIN, lines), _run_all(shell, BY_CLICK, lines)
    for (_, line), one, other in zip(lines, quickly, by_click, strict=True):
        assert one == other, line
    assert 69 in {ran.status for ran in quickly}


@pytest.mark.parametrize("stream", ["0<&-", "1>&-", "2>&-", ">/dev/full", "| true"])
@pytest.mark.first_by_default
def test_both_ways_do_the_same_with_unusual_streams(shell: Shell, queue: str, stream: str) -> None:
    ran = []
    for number, code in enumerate((BY_MAIN, BY_CLICK)):
        script = f'python -c "{code}" send {queue} x --id m{number} {stream}'
        if stream == "| true":  # the reader has surely gone before anything is written
            closed = f"{queue}-closed-{number}"
            script = f"{{ while [ ! -e {closed} ]; do sleep 0.01; done; {script.removesuffix(stream)}; }}"
            script += f" | {{ exec <&-; touch {closed}; }}"
        ran.append(shell.run(f"set -o pipefail; {script}"))
    first, second = ran
    assert first.status == second.status
    assert first.stdout.replace(b"m0", b"m1") == second.stdout
    assert first.stderr.replace(b"m0", b"m1") == second.stderr


# ── what it saves ───────────────────────────────────────────────────────────────────────────────────────────


HEAVY: Final = {"click", "msgspec", "typing", "dataclasses", "pathlib", "threading", "subprocess", "datetime"}
"""Modules that take as long to import as the daemon takes to answer, or longer."""


@pytest.mark.parametrize(
    "line", ["send {queue} x", "receive {queue}", "ack {receipt}", "result {queue} m", "once {queue} -- true"]
)
def test_a_short_command_imports_little(shared_daemon: Daemon, queue: str, line: str) -> None:
    with eoq.connect(shared_daemon.socket) as client:
        client.once(queue, lambda: "done")
        client.send(queue, "x")
        (message,) = client.receive(queue)
    code = (
        "import sys, atexit; before = set(sys.modules); from eoq.cli import main; "
        "atexit.register(lambda: print(*set(sys.modules) - before, file=sys.stderr)); main()"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, *line.format(queue=queue, receipt=message.receipt).split()],
        capture_output=True,
        text=True,
        env=clean_environment(EOQ_SOCKET=str(shared_daemon.socket)),
        timeout=60,
        check=False,
    )
    imported = set(ran.stderr.splitlines()[-1].split())
    assert "eoq.transport.single" in imported
    assert not imported & HEAVY
