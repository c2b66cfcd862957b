"""Who may do what: the mode and the group of the socket, and rights by queue, as other users meet them."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

import eoq
from tests.support import (
    PATIENCE,
    Daemon,
    Fields,
    clean_environment,
    eventually,
    read_line_of,
    running_daemon,
    short_folder,
)

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user"),
    pytest.mark.skipif(shutil.which("setpriv") is None, reason="there is no setpriv"),
]

WEB: Final = 64001
"""A user who sends."""
WORKER: Final = 64002
"""A user who receives."""
OPS: Final = 64100
"""A group."""

ASK: Final = """
import json, socket, sys
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(sys.argv[1])
    for number, request in enumerate(json.loads(sys.argv[2])):
        connection.sendall(json.dumps({**request, "rid": number}).encode() + b"\\n")
        reply = b""
        while not reply.endswith(b"\\n"):
            reply += connection.recv(65536)
        print(reply.decode(), end="", flush=True)
"""

CONFIG: Final = f"""
[daemon]
socket_mode = "0666"

[permissions]
observe = ["{WORKER}"]

[permissions.queues.open]
send = ["*"]

[permissions.queues."*"]
send = ["{WEB}"]
receive = ["{WORKER}", "@{OPS}"]
administer = ["@{OPS}"]

[permissions.once]
"charge:*" = ["{WORKER}"]
"""


@pytest.fixture(scope="module", autouse=True)
def _python_of_others() -> None:
    """Skip where another user cannot run this Python, such as one in a home that only its owner may enter."""
    command = ["setpriv", f"--reuid={WEB}", f"--regid={WEB}", "--clear-groups", sys.executable, "-I", "-c", ""]
    if subprocess.run(command, capture_output=True, cwd="/", check=False).returncode:
        pytest.skip(f"another user cannot run {sys.executable}")


def ask(daemon: Daemon, user: int, *requests: Fields, groups: tuple[int, ...] = ()) -> list[str]:
    """Send requests as a user with some groups. Return for each the code of its error, or ``ok``."""
    groups_flag = f"--groups={','.join(map(str, groups))}" if groups else "--clear-groups"
    command = ["setpriv", f"--reuid={user}", f"--regid={user}", groups_flag, sys.executable, "-I", "-c", ASK]
    ran = subprocess.run(
        [*command, str(daemon.socket), json.dumps(requests)],
        capture_output=True,
        cwd="/",
        timeout=PATIENCE,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr.decode()
    replies = [json.loads(line) for line in ran.stdout.splitlines()]
    return ["ok" if reply["ok"] else reply["error"]["code"] for reply in replies]


@contextmanager
def guarded_daemon(config: str = CONFIG, *options: str) -> Iterator[Daemon]:
    """Run a daemon with a configuration and options, in a folder that all users may enter."""
    with short_folder() as folder:
        folder.chmod(0o755)
        file = folder / "eoq.toml"
        file.write_text(config)
        with running_daemon("--config", str(file), *options) as daemon:
            daemon.folder.chmod(0o755)
            yield daemon


def send(queue: str = "q", **fields: Any) -> Fields:
    return {"op": "send", "queue": queue, "body": "x", **fields}


def test_each_user_may_do_what_the_configuration_says() -> None:
    with guarded_daemon() as daemon:
        receive, purge = {"op": "receive", "queue": "q"}, {"op": "purge", "queue": "q"}
        queues, status = {"op": "queues"}, {"op": "status"}
        once, other = ({"op": "once", "key": key, "token": "t"} for key in ("charge:7", "mail:7"))
        schedules = {"op": "schedules"}
        no = "forbidden"
        assert ask(daemon, WEB, send(), receive, purge, queues, status) == ["ok", no, no, no, "ok"]
        assert ask(daemon, WEB, {"op": "result", "queue": "q", "id": "i"}, once, other) == [no, no, "ok"]
        assert ask(daemon, WORKER, send(), send("open"), receive, queues, once) == [no, "ok", "ok", "ok", "ok"]
        assert ask(daemon, WORKER, purge, schedules) == [no, no]
        assert ask(daemon, 64003, purge, receive, schedules, queues, groups=(5, OPS)) == ["ok", "ok", "ok", no]
        assert ask(daemon, 64003, purge, receive) == [no, no]
        assert ask(daemon, 0, send(), receive, purge, queues) == ["ok"] * 4
        refused = [line for line in daemon.said.splitlines() if "refused" in line]
        assert any(f"uid {WEB}" in line and "'q'" in line and "receive" in line for line in refused)


def test_a_settle_needs_the_rights_on_the_queue_of_the_receipt_and_on_those_it_sends_to() -> None:
    with guarded_daemon() as daemon:
        daemon.ask(**send())
        receipt = daemon.ask(op="receive", queue="q")["messages"][0]["receipt"]
        ack = [{"receipt": receipt}]
        settle = {"op": "settle", "acks": ack, "send": [{"queue": "closed", "body": "x"}]}
        no = "forbidden"
        assert ask(daemon, WORKER, settle) == [no], "it may not send to `closed`"
        assert ask(daemon, WEB, {"op": "ack", "receipt": receipt}, {"op": "nack", "receipt": receipt}) == [no, no]
        assert ask(daemon, WEB, {"op": "extend", "receipt": receipt, "seconds": 5}) == [no]
        assert ask(daemon, WORKER, {**settle, "send": [{"queue": "open", "body": "x"}]}) == ["ok"]


def test_a_refusal_is_logged_once_a_minute() -> None:
    with guarded_daemon() as daemon:
        assert ask(daemon, WORKER, *[send()] * 20) == ["forbidden"] * 20
        eventually(lambda: daemon.said.count("refused:") == 1)


@pytest.mark.slow
def test_new_permissions_are_in_force_after_a_reload() -> None:
    with guarded_daemon('[daemon]\nsocket_mode = "0666"\n') as daemon:
        assert ask(daemon, WORKER, send()) == ["ok"]
        file = Path(daemon.command()[daemon.command().index("--config") + 1])
        file.write_text(CONFIG)
        eventually(lambda: ask(daemon, WORKER, send()) == ["forbidden"])
        file.write_text('[daemon]\nsocket_mode = "0666"\n')
        eventually(lambda: ask(daemon, WORKER, send()) == ["ok"])


def test_the_socket_has_the_mode_and_the_group_of_the_configuration() -> None:
    with guarded_daemon(f'[daemon]\nsocket_mode = "0660"\nsocket_group = "{OPS}"\n') as daemon:
        found = daemon.socket.stat()
        assert (found.st_mode & 0o777, found.st_gid) == (0o660, OPS)
        assert ask(daemon, WEB, send(), groups=(OPS,)) == ["ok"]
        with pytest.raises(AssertionError, match="PermissionError"):
            ask(daemon, WEB, send())
        checks = {row["check"] for row in daemon.shell().run("eoq check --quick --json").rows if row["status"] != "ok"}
        assert "permissions" not in checks
        daemon.socket.chmod(0o666)
        assert f"chmod 0660 {daemon.socket}" in daemon.shell().run("eoq check --quick").text


def test_a_file_of_a_spool_needs_the_right_of_its_owner() -> None:
    # A spool of its own: the default one is looked at each 30 s only, until it is used for the first time.
    with short_folder() as spool, guarded_daemon(CONFIG, "--spool", str(spool)) as daemon:
        folder = spool / "q"
        folder.mkdir()
        for name, owner in (("good", WEB), ("bad", WORKER)):
            file = folder / f"{name}.tmp"
            file.write_text(name)
            os.chown(file, owner, owner)
            file.rename(folder / name)
        reason = folder / ".rejected" / "bad.reason"
        eventually(lambda: reason.exists() and reason.read_text(), what="the file is rejected with a reason")
        assert reason.read_text().startswith(f"forbidden: the owner of the file (uid {WORKER}) may not send")
        eventually(lambda: [m["body"] for m in daemon.ask(op="peek", queue="q")["messages"]] == ["good"])


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ('[permissions]\nobserve = ["no-such-user"]\n', "permissions.observe: names the user"),
        ('[permissions.queues.q]\nsend = ["@no-such-group"]\n', "permissions.queues.q.send: names the group"),
        ('[permissions.queues.q]\nread = ["root"]\n', "permissions.queues.q.read: is not a setting"),
        ('[permissions.queues."a b"]\nsend = []\n', 'permissions.queues."a b"'),
        ('[permissions.once]\nk = "root"\n', "permissions.once.k: must be an array"),
        ('[daemon]\nsocket_mode = "0o660"\n', "daemon.socket_mode: must be who may connect"),
        ('[daemon]\nsocket_group = "no-such-group"\n', "daemon.socket_group: names the group"),
    ],
)
def test_what_is_wrong_with_permissions_is_said(config: str, error: str, tmp_path: Path) -> None:
    from eoq.daemon.config.loader import load
    from eoq.daemon.config.problems import WrongConfig

    file = tmp_path / "eoq.toml"
    file.write_text(config)
    with pytest.raises(WrongConfig) as raised:
        load(file)
    assert error in str(raised.value)


RELAY: Final = """
import os, sys
import concurrent.futures.thread, importlib, pkgutil, uuid, watchfiles
import eoq, eoq.cli, eoq.client, eoq.outbox, eoq.protocol, eoq.system, eoq.transport
# The other user need not be able to read where Python is.
for package in (eoq, eoq.cli, eoq.client, eoq.outbox, eoq.protocol, eoq.system, eoq.transport):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
os.setgid(64002); os.setgroups([]); os.setuid(64002)
eoq.cli.main(["relay", sys.argv[1], "--until-empty", "--socket", sys.argv[2]], prog_name="eoq")
"""


@pytest.mark.slow
def test_a_relay_whose_user_may_not_send_to_one_queue_sends_to_the_others() -> None:
    with guarded_daemon() as daemon:
        folder = daemon.folder / "app"
        folder.mkdir()
        with closing(sqlite3.connect(folder / "app.db")) as application, application:
            outbox = eoq.Outbox(application)
            outbox.send("closed", "x", id="closed")
            outbox.send("open", "x", id="open")
        for path in (folder, *folder.iterdir()):
            os.chown(path, WORKER, WORKER)
        command = [sys.executable, "-c", RELAY, str(folder / "app.db"), str(daemon.socket)]
        said = daemon.folder / "relay.err"
        with said.open("wb") as errors:
            relay = subprocess.Popen(command, stderr=errors, env=clean_environment(), cwd="/")
        try:
            eventually(lambda: daemon.ask(op="peek", queue="open")["messages"])
            assert daemon.ask(op="queues")["queues"][0]["name"] == "open"
            eventually(lambda: "may not send to the queue or topic 'closed'" in said.read_text())
        finally:
            relay.kill()
            relay.wait()


FIND: Final = """
import os, sys
import importlib, pkgutil
import eoq, eoq.cli, eoq.client, eoq.protocol, eoq.system, eoq.transport
# The other user need not be able to read where Python is.
for package in (eoq, eoq.cli, eoq.client, eoq.protocol, eoq.system, eoq.transport):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
user = int(sys.argv[1])
os.setgid(user); os.setgroups([]); os.setuid(user)
eoq.cli.main(["find", *sys.argv[2:]], prog_name="eoq")
"""


@pytest.mark.slow
def test_a_search_leaves_out_the_queues_that_its_user_may_not_read() -> None:
    config = CONFIG.replace(
        "[permissions.queues.open]", "[permissions.queues.closed]\nreceive = []\n\n[permissions.queues.open]"
    )
    with guarded_daemon(config) as daemon:
        for queue in ("closed", "open", "read"):
            daemon.ask(**send(queue, id="i"))
        daemon.ask(**send("closed", id="secret"))

        def find(user: int, *words: str) -> tuple[int, list[str], str]:
            command = [sys.executable, "-c", FIND, str(user), *words, "--socket", str(daemon.socket)]
            ran = subprocess.run(
                command, capture_output=True, text=True, env=clean_environment(), cwd="/", timeout=PATIENCE, check=False
            )
            return ran.returncode, [line.split()[0] for line in ran.stdout.splitlines()], ran.stderr

        assert find(WORKER, "i") == (0, ["open", "read"], "")
        status, found, said = find(WORKER, "secret")
        assert (status, found) == (1, []) and "that you may read" in said, "nothing tells that it is there"
        status, found, said = find(WORKER, "i", "read", "closed")
        assert (status, found) == (77, []) and "'closed'" in said, "a queue that was named is not left out in silence"
        status, found, said = find(WEB, "i")
        assert (status, found) == (77, []) and "observe" in said
        assert find(0, "secret")[:2] == (0, ["closed"])


# ── the daemon of another user ──────────────────────────────────────────────────────────────────────────────

LISTEN: Final = """
import os, socket, sys
with socket.socket(socket.AF_UNIX) as listening:
    listening.bind(sys.argv[1])
    os.chmod(sys.argv[1], 0o666)
    listening.listen()
    print("listens", flush=True)
    while True:
        with listening.accept()[0] as connection:
            connection.recv(1000)
"""
TRY: Final = """
import os, socket, sys
sys.path.insert(0, sys.argv[2])
from eoq.errors import Forbidden
from eoq.transport.peer import require_own
import eoq.transport.owners, pwd
os.setgid(64002); os.setgroups([]); os.setuid(64002)
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(sys.argv[1])
    try:
        require_own(connection, sys.argv[1])
    except Forbidden as error:
        print(error)
    else:
        print("trusted")
"""


@pytest.mark.parametrize(
    ("place", "owner", "mode", "environment", "expected"),
    [
        ("run/s", WEB, 0o755, {}, "trusted"),
        ("run/s", WEB, 0o775, {}, "other users may put files into"),
        pytest.param("run/s", 64003, 0o755, {}, "belongs to the uid 64003", marks=pytest.mark.slow),
        pytest.param("run/s", 0, 0o1777, {}, "other users may put files into", marks=pytest.mark.slow),
        pytest.param("link/s", WEB, 0o755, {}, "is a symbolic link", marks=pytest.mark.slow),
        pytest.param("link/../run/s", WEB, 0o755, {}, "is a symbolic link", marks=pytest.mark.slow),
        ("run/s", WEB, 0o777, {"EOQ_SOCKET_OWNER": str(WEB)}, "trusted"),
        pytest.param("run/s", WEB, 0o777, {"EOQ_SOCKET_OWNER": "64003"}, "other users", marks=pytest.mark.slow),
    ],
)
def test_the_daemon_of_another_user_is_used_only_where_it_is_meant(
    place: str, owner: int, mode: int, environment: dict[str, str], expected: str
) -> None:
    """The folder of root in /tmp stands for /run, and ``run`` in it is made for the user of the daemon."""
    with short_folder() as folder:
        folder.chmod(0o755)
        (folder / "run").mkdir()
        os.chown(folder / "run", owner, owner)
        (folder / "run").chmod(mode | 0o007 if owner == 64003 else mode)
        (folder / "link").symlink_to("run")
        os.lchown(folder / "link", WEB, WEB)
        listening = [
            "setpriv",
            f"--reuid={WEB}",
            f"--regid={WEB}",
            "--clear-groups",
            sys.executable,
            "-I",
            "-c",
            LISTEN,
        ]
        with subprocess.Popen([*listening, str(folder / "run" / "s")], stdout=subprocess.PIPE, cwd="/") as other:
            try:
                assert read_line_of(other) == b"listens\n"
                ran = subprocess.run(
                    [sys.executable, "-c", TRY, str(folder / place), str(Path.cwd())],
                    capture_output=True,
                    env=clean_environment(**environment),
                    timeout=PATIENCE,
                    check=True,
                )
                assert expected in ran.stdout.decode()
            finally:
                other.kill()
