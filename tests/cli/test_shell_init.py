"""The shell function of `eoq shell-init`, in each shell that is installed: what it leaves in the spool, and when."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

import eoq
from tests.integration.spools import waiting
from tests.support import Daemon, Ran, Shell, eventually, running_daemon, short_folder

SHELLS: Final = ["dash", "bash", "zsh", "busybox sh"]
MEBIBYTE: Final = 1024 * 1024


class Sender:
    """Runs scripts with the function in one kind of shell."""

    def __init__(self, kind: str, daemon: Daemon) -> None:
        self.kind = kind
        self.daemon = daemon
        self.shell = daemon.shell()
        self.spool = daemon.folder / "eoq.db.spool"
        self.init = daemon.folder / "init.sh"

    def start(self, script: str, *, init: Path | None = None, before: str = "") -> subprocess.Popen[bytes]:
        """Start a script. The function is defined behind ``before``."""
        whole = f"{before}\n. {shlex.quote(str(init or self.init))}\n{script}"
        return subprocess.Popen(
            [*self.kind.split(), "-c", whole],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**self.shell.environment, "LC_ALL": "C.UTF-8"},
            cwd=self.daemon.folder,
            start_new_session=True,
        )

    def run(self, script: str, stdin: bytes = b"", *, init: Path | None = None, before: str = "") -> Ran:
        """Run a script to its end."""
        with self.start(script, init=init, before=before) as process:
            stdout, stderr = process.communicate(stdin, timeout=60)
        return Ran(process.returncode, stdout, stderr)


@pytest.fixture(scope="module")
def own_daemon() -> Iterator[Daemon]:
    """A daemon with its default spool, and the output of `eoq shell-init` in a file beside it."""
    with running_daemon() as daemon:
        ran = daemon.shell().run("eoq shell-init > init.sh")
        assert (ran.status, ran.errors) == (0, "")
        yield daemon


@pytest.fixture(params=SHELLS)
def sender(request: pytest.FixtureRequest, own_daemon: Daemon) -> Sender:
    """Return a sender in one of the shells. Those that are not installed are skipped by name."""
    kind: str = request.param
    if shutil.which(kind.split()[0]) is None:
        pytest.skip(f"{kind.split()[0]} is not installed")
    return Sender(kind, own_daemon)


@pytest.fixture
def client(own_daemon: Daemon) -> Iterator[eoq.Client]:
    """Return a client of the daemon."""
    with eoq.connect(own_daemon.socket) as client:
        yield client


def _arrived(client: eoq.Client, queue: str, count: int) -> list[eoq.Message]:
    """Return the messages of a queue, all acked. There must be ``count``."""
    found: list[eoq.Message] = []
    while len(found) < count and (messages := client.receive(queue, 100, 30)):
        client.ack_many([(message, None) for message in messages])
        found += messages
    assert len(found) == count, [message.id for message in found]
    return found


def test_it_leaves_a_message_and_prints_its_id(sender: Sender, client: eoq.Client, queue: str) -> None:
    ran = sender.run(f"eoq_send {queue} 'hello world' && printf more | eoq_send {queue} && eoq_send {queue} x --id=m-1")
    assert (ran.status, ran.errors) == (0, "")
    messages = _arrived(client, queue, 3)
    assert ran.lines == [message.id for message in messages]
    assert [message.body for message in messages] == [b"hello world", b"more", b"x"]
    assert messages[0].id[14] == "7" and len(messages[0].id) == 36, "a UUIDv7"
    assert not list((sender.spool / queue).glob(".0*"))


def test_the_first_message_of_a_new_spool_wakes_the_daemon(sender: Sender, client: eoq.Client, queue: str) -> None:
    """Until then the spool is not watched, and looked at only every 30 seconds."""
    before = time.monotonic()
    assert sender.run(f"eoq_send {queue} x").status == 0
    _arrived(client, queue, 1)
    assert time.monotonic() - before < 15


BODIES: Final = [
    b"",
    b"-n",
    b"%s %d \\n \\c \\0 $HOME `id` $(id) \"'*?[a]{b,c}~!#",
    b"two\nlines\n\n",
    b" \t leading and trailing \t ",
    bytes(range(1, 256)),
    "caf\u00e9 \u20ac \U0001f600".encode(),
]


def test_a_body_may_have_any_bytes_but_nul(sender: Sender, client: eoq.Client, queue: str) -> None:
    files = []
    for number, body in enumerate(BODIES):
        files.append(sender.daemon.folder / f"{queue}-{number}")
        files[-1].write_bytes(body + b".")  # a substitution loses line feeds at the end
    script = f'for file do body=$(cat "$file"); eoq_send {queue} -- "${{body%.}}" || exit; done'
    ran = sender.run(f"set -- {shlex.join(map(str, files))}; {script}", before="LC_ALL=C")
    assert (ran.status, ran.errors) == (0, "")
    assert [message.body for message in _arrived(client, queue, len(BODIES))] == BODIES


@pytest.mark.parametrize("size", [0, 256, MEBIBYTE])
def test_standard_input_may_have_all_bytes(sender: Sender, client: eoq.Client, queue: str, size: int) -> None:
    body = bytes(range(256)) * (size // 256)
    assert sender.run(f"eoq_send {queue} -", body).status == 0
    assert [message.body for message in _arrived(client, queue, 1)] == [body]


IDS: Final = ["a b", "order:17/x@y+z=1,2~#", "-x", 'quo"te [x]^!', "back\\slash it's é€"]


@pytest.mark.first_by_default
def test_an_id_may_have_odd_characters(sender: Sender, client: eoq.Client, queue: str) -> None:
    ran = sender.run("\n".join(f"eoq_send {queue} body --id {shlex.quote(id)} || exit" for id in IDS))
    assert (ran.status, ran.lines, ran.errors) == (0, IDS, "")
    assert sorted(message.id for message in _arrived(client, queue, len(IDS))) == sorted(IDS)


USAGE: Final = [
    "",
    "'bad name' x",
    ".q x",
    "q/../r x",
    "q x y",
    "q x --id",
    "q x --nonsense",
    "q x -n",
    f"{'q' * 129} x",
]
BAD: Final = ["q x --id ''", "q x --id $'a\\nb'", f"q x --id {'x' * 201}", "q x --id $'\\xff'"]


@pytest.mark.slow
def test_statuses_are_those_of_eoq_send(sender: Sender, client: eoq.Client, queue: str) -> None:
    script = "".join(f"eoq_send {arguments}; echo $?\n" for arguments in USAGE)
    ran = sender.run(script)
    assert ran.lines == ["2"] * len(USAGE)
    assert ran.errors.count("usage: eoq_send QUEUE") == len(USAGE)
    if sender.kind != "dash":  # it has no $''
        ran = sender.run("".join(f"eoq_send {arguments}; echo $?\n" for arguments in BAD))
        assert ran.lines == ["65"] * len(BAD)
        assert ran.errors.count("id") >= len(BAD)
    for stdin in (b"x" * (MEBIBYTE + 1), b"x" * 2 * MEBIBYTE):
        assert sender.run(f"eoq_send {queue}", stdin).status == 65
    ran = sender.run(f'body=$(cat); eoq_send {queue} "$body"', "é".encode() * (MEBIBYTE // 2) + b"x")
    assert ran.status == 65
    assert "store it elsewhere" in ran.errors
    assert not [path for path in sender.spool.glob(f"{queue}/*") if path.is_file()]
    assert sender.run(f"eoq_send {queue} >/dev/full").status == 74
    assert sender.run("eoq_send --help").text.startswith("eoq_send QUEUE [BODY|-] [--id ID]\n")
    _arrived(client, queue, 1)


UNFRIENDLY: Final = """
set -eu; set -C; set -f; umask 777; IFS=eoq0123; CDPATH=/; LC_ALL=C
alias mv='mv -i' sync=false rm=false date=false cat=false
spool=/nowhere file=x id=y queue=z body=w most=5 letters=- words=9
"""


def test_what_the_caller_has_set_has_no_effect_and_stays(sender: Sender, client: eoq.Client, queue: str) -> None:
    script = f"""
        first=$(eoq_send {queue} one)
        second=$(eoq_send {queue} two --id m)
        echo "$first $second"; IFS=' '
        echo $spool $file $id $queue $body $most $letters $words $(umask)
        case $- in *u*) ;; *) echo lost -u;; esac
        case $- in *C*) ;; *) echo lost -C;; esac
        eoq_send 'bad name' x
        echo "set -e ends the script before"
    """
    ran = sender.run(script, before=UNFRIENDLY)
    assert ran.status == 2, ran.errors
    assert ran.lines[0].endswith(" m")
    assert ran.lines[1:] == ["/nowhere x y z w 5 - 9 0777"]
    assert [message.body for message in _arrived(client, queue, 2)] == [b"one", b"two"]


@pytest.mark.first_by_default
def test_messages_without_a_daemon_are_stored_later_in_their_order(sender: Sender, queue: str) -> None:
    with running_daemon() as daemon:
        daemon.shell().run("eoq shell-init > init.sh")
        daemon.kill()
        own = Sender(sender.kind, daemon)
        ran = own.run(f"for i in 1 2 3 4 5 6; do eoq_send {queue} $i; done; eoq_send {queue} 7 --id m")
        assert (ran.status, ran.errors) == (0, "")
        daemon.start()
        with eoq.connect(daemon.socket) as client:
            messages = _arrived(client, queue, 7)
        assert [message.text for message in messages] == list("1234567")
        assert [message.id for message in messages] == ran.lines


LOGGING: Final = """#!/bin/sh
printf '%s ' {name} "$@" >> {log}; echo >> {log}
exec {real} "$@"
"""


def test_file_and_folder_are_synced_by_few_processes(sender: Sender, client: eoq.Client, queue: str) -> None:
    """Each process takes about a millisecond."""
    log, folder = sender.daemon.folder / f"log-{queue}", sender.daemon.folder / f"bin-{queue}"
    folder.mkdir()
    names = [path.name for path in Path("/bin").iterdir()]
    for name in {"sync", "mv", "date", "head", "cat", "wc", "rm", "mkdir", "uuidgen", "od", "tr", "sh"} & {*names}:
        real = shutil.which(name)
        (folder / name).write_text(LOGGING.format(name=name, log=log, real=real))
        (folder / name).chmod(0o755)
    if not Path("/proc/loadavg").exists():
        pytest.skip("without /proc, a shell without a clock also asks `date`")
    ran = sender.run(f"eoq_send {queue} first; echo >> {log}; eoq_send {queue} x", before=f"PATH={folder}:$PATH")
    assert ran.status == 0
    _, calls = log.read_text().split("\n\n", 1)
    steps = [line.split() for line in calls.splitlines()]
    at, spool = f"{sender.spool}/{queue}", str(sender.spool)
    assert [step[0] for step in steps] == ["sync", "mv", "sync"]
    (_, unfinished), (_, _, moved, name), (_, *folders) = steps
    assert unfinished == moved and unfinished.startswith(f"{at}/.") and unfinished.endswith(".tmp")
    assert name == f"{at}/{Path(unfinished).name[1:].removesuffix('.tmp')}"
    assert folders == [at, spool]
    _arrived(client, queue, 2)


def test_a_failed_sync_is_not_confirmed(sender: Sender, queue: str) -> None:
    folder = sender.daemon.folder / f"bin-{queue}"
    folder.mkdir()
    (folder / "sync").write_text("#!/bin/sh\ncase $1 in *.tmp) exit $FAILS;; esac; exit 1\n")
    (folder / "sync").chmod(0o755)
    first = sender.run(f"eoq_send {queue} x", before=f"export FAILS=1; PATH={folder}:$PATH")
    assert (first.status, first.stdout) == (75, b"")
    assert "nothing was sent" in first.errors
    assert not [path for path in (sender.spool / queue).iterdir() if path.is_file()]
    second = sender.run(f"eoq_send {queue} x --id m", before=f"export FAILS=0; PATH={folder}:$PATH")
    assert (second.status, second.stdout) == (75, b"")
    assert "may be stored or not: repeat it with --id m" in second.errors


@pytest.mark.first_by_default
def test_a_shell_that_is_killed_leaves_each_message_once_or_not_at_all(
    sender: Sender, client: eoq.Client, queue: str
) -> None:
    chance = random.Random(sender.kind)
    confirmed: set[str] = set()
    body = "0123456789" * 500
    for turn in range(4):
        script = f"i=0; while :; do eoq_send {queue} {body} --id {turn}-$i; i=$((i + 1)); done"
        with sender.start(script) as process:
            assert process.stdout is not None
            first = process.stdout.readline()
            time.sleep(chance.random() * 0.02)  # the moment of the kill
            os.killpg(process.pid, signal.SIGKILL)
            confirmed |= {*first.decode().split(), *process.stdout.read().decode().split()}
    eventually(lambda: not waiting(sender.spool, queue))
    found: list[eoq.Message] = []
    while messages := client.receive(queue, 1000):
        found += messages
    ids = [message.id for message in found]
    assert len(ids) == len(set(ids))
    assert confirmed <= set(ids)
    assert {message.text for message in found} == {body}
    assert not (sender.spool / queue / ".rejected").exists()


@pytest.mark.first_by_default
def test_a_folder_that_no_daemon_of_this_user_has_made_is_refused(sender: Sender, folder: Path) -> None:
    init = folder / "init.sh"
    sender.shell.run(f"eoq shell-init --spool {folder}/spool > {init}")
    ran = sender.run("eoq_send q x", init=init)
    assert ran.status == 69
    assert "start one with `eoq start`" in ran.errors
    (folder / "spool").mkdir()
    assert sender.run("eoq_send q x", init=init).status == 69
    lock = folder / "spool" / ".daemon.lock"
    lock.symlink_to(sender.spool / ".daemon.lock")
    assert sender.run("eoq_send q x", init=init).status == 77
    lock.unlink()
    lock.write_text("")
    (folder / "spool" / "q").symlink_to(folder)
    assert sender.run("eoq_send q x", init=init).status == 77
    if os.geteuid() == 0:
        (folder / "spool" / "q").unlink()
        os.chown(lock, 65534, 65534)
        ran = sender.run("eoq_send q x", init=init)
        assert ran.status == 77
        assert "not a spool of a daemon of this user" in ran.errors
    assert sorted(path.name for path in folder.iterdir()) == ["init.sh", "spool"]


@pytest.mark.first_by_default
def test_a_full_disk_is_75_and_leaves_nothing(sender: Sender, folder: Path) -> None:
    disk = folder / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "eoq-test", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs root to mount a small disk")
    try:
        (disk / "spool" / "q").mkdir(parents=True)
        (disk / "spool" / ".daemon.lock").write_text("")
        init = folder / "init.sh"
        sender.shell.run(f"eoq shell-init --spool {disk}/spool > {init}")
        assert sender.run("eoq_send q x", init=init).status == 0
        for script in (
            'eoq_send q "$(head -c 100000 /dev/zero | tr "\\0" x)"',
            "head -c 100000 /dev/zero | eoq_send q",
        ):
            ran = sender.run(script, init=init)
            assert ran.status in (74, 75)
            assert "nothing was sent" in ran.errors
        with (disk / "filler").open("wb", buffering=0) as filler:
            while True:
                try:
                    filler.write(bytes(512))
                except OSError:
                    break
        ran = sender.run("eoq_send q small", init=init)
        assert ran.status == 75
        assert "nothing was sent" in ran.errors
        assert len(list((disk / "spool" / "q").iterdir())) == 1
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# ── the default spool of the daemon ─────────────────────────────────────────────────────────────────────────


def test_files_of_others_are_stored_as_well(own_daemon: Daemon, client: eoq.Client, queue: str) -> None:
    folder = own_daemon.folder / "eoq.db.spool" / queue
    assert own_daemon.shell().run(f"eoq send {queue}-first x --spool eoq.db.spool --socket none").status == 0
    _arrived(client, f"{queue}-first", 1)
    folder.mkdir()
    (folder / ".x").write_text("hello")
    (folder / ".x").rename(folder / "x")
    assert [message.text for message in _arrived(client, queue, 1)] == ["hello"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_a_default_spool_that_nobody_uses_is_not_watched() -> None:
    """Watching costs processor time and memory."""
    with running_daemon() as daemon:
        assert b"watchfiles" not in Path(f"/proc/{daemon.pid}/maps").read_bytes()
        assert daemon.shell().run('eval "$(eoq shell-init)"; eoq_send q x').status == 0
        eventually(lambda: b"watchfiles" in Path(f"/proc/{daemon.pid}/maps").read_bytes())


@pytest.mark.parametrize("in_the_way", ["spool", "bell"])
@pytest.mark.slow
def test_a_default_spool_that_cannot_be_used_does_not_stop_the_daemon(in_the_way: str) -> None:
    with short_folder() as folder:
        spool = folder / "eoq.db.spool"
        if in_the_way == "spool":
            spool.write_text("")
        else:
            (spool / ".bell").mkdir(parents=True)
        shell = Shell(folder / "s", folder)
        assert shell.run("eoq start && eoq send q x").status == 0
        status = json.loads(shell.run("eoq status --json").text)
        assert status.get("spool") == (None if in_the_way == "spool" else str(spool))
        eventually(lambda: str(spool.name) in (folder / "eoq.db.log").read_text() or in_the_way == "bell")
        assert shell.run("eoq stop").status == 0


@pytest.mark.first_by_default
def test_an_id_that_cannot_be_printed_is_said_elsewhere(sender: Sender, queue: str) -> None:
    """A caller that repeats the send without that id would store the message twice."""
    for output in (">/dev/full", "| true"):
        ran = sender.run(f"eoq_send {queue} x {output}")
        assert output == "| true" or ran.status == 74
        assert "the message is stored, but its id could not be printed: 01" in ran.errors or output == "| true"
    ran = sender.run(f"eoq_send {queue} x --id é >&-")
    assert "Traceback" not in ran.errors
    ran = sender.shell.run(f"eoq send {queue} x --id printed-nowhere >/dev/full")
    assert ran.status == 74
    assert "the message is stored, but its id could not be printed: printed-nowhere" in ran.errors


@pytest.mark.slow
def test_the_spool_of_the_daemon_that_runs_is_used(folder: Path) -> None:
    """Also where a daemon has used the default one before."""
    with running_daemon("--spool", str(folder / "spool")) as daemon:
        shell = daemon.shell()
        (daemon.folder / "eoq.db.spool").mkdir()
        ran = shell.run('eval "$(eoq shell-init)"; eoq_send q hello --id a')
        assert ran.text == "a\n", ran.errors
        with eoq.connect(daemon.socket) as client:
            (message,) = client.receive("q", wait=20)
            assert message.id == "a"
        ran = shell.run("eoq shell-init --db other.db")
        assert str(daemon.folder / "other.db.spool") in ran.text


@pytest.mark.slow
def test_the_options_say_which_spool(shell: Shell, folder: Path) -> None:
    (folder / "eoq.toml").write_text('[daemon]\nspool = "from config"\n')
    for options, spool in [
        ("", f"{shell.folder}/eoq.db.spool"),
        (f"--db {folder}/other.db", f"{folder}/other.db.spool"),
        (f"--config {folder}/eoq.toml", f"'{folder}/from config'"),
        ("--spool here", f"{shell.folder}/here"),
    ]:
        assert f"    spool={spool}\n" in shell.run(f"eoq shell-init {options}").text
    assert f"    spool={folder}/env\n" in shell.run("eoq shell-init", EOQ_SPOOL=f"{folder}/env").text
