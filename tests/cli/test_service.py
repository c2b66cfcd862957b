"""``eoq service``, and what a daemon and its service manager tell each other. A test plays the manager."""

from __future__ import annotations

import os
import plistlib
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import pytest

import eoq
from tests.support import PATIENCE, Shell, clean_environment

units: Final[Any] = import_module("eoq.cli.service_units")
NOTHING, NOT_RUNNING, BAD_DATA = 1, 69, 65


ACTIVATE: Final = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, sys.argv[2:])
"""


class Manager:
    """A service manager: it listens on the daemon's socket, starts the daemon, and hears what it says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "s"
        self.heard: list[str] = []
        self._notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notified.bind(str(folder / "notify"))
        self._notified.settimeout(PATIENCE)
        self.listening = socket.socket(socket.AF_UNIX)
        self.process: subprocess.Popen[bytes] | None = None

    def listen(self) -> None:
        self.listening.bind(str(self.path))
        self.listening.listen()

    def start(self, *, passes: bool, watchdog: float | None = None) -> None:
        """Start the daemon, and pass it the socket as the descriptor 3."""
        environment = clean_environment(NOTIFY_SOCKET=str(self.folder / "notify"))
        if watchdog is not None:
            environment["WATCHDOG_USEC"] = f"{watchdog * 1e6:.0f}"
        command = [sys.executable, "-m", "eoq.cli", "daemon", "--db", str(self.folder / "eoq.db")]
        command += ["--socket", str(self.path)]
        descriptor = self.listening.fileno()
        if passes:
            environment["LISTEN_FDS"] = "1"
            command = [sys.executable, "-c", ACTIVATE, str(descriptor), *command]
        passed = (descriptor,) if passes else ()
        self.process = subprocess.Popen(command, env=environment, pass_fds=passed, stdout=subprocess.DEVNULL)

    def hear(self, wanted: str) -> str:
        """Return the next message that has a line which begins with ``wanted``."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            message = self._notified.recv(4096).decode()
            self.heard.append(message)
            if any(line.startswith(wanted) for line in message.splitlines()):
                return message
        raise AssertionError(f"{wanted!r} was not heard, but {self.heard}")

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self._notified.close()
        self.listening.close()


@pytest.fixture
def manager(folder: Path) -> Iterator[Manager]:
    manager = Manager(folder)
    yield manager
    manager.close()


def test_the_manager_hears_of_readiness_life_and_the_end(manager: Manager) -> None:
    manager.start(passes=False, watchdog=0.3)
    manager.hear("STATUS=opening")
    ready = manager.hear("READY=1")
    assert manager.process is not None
    assert f"MAINPID={manager.process.pid}" in ready
    with eoq.connect(manager.path) as client:  # it was ready
        client.send("q", "x")
        assert "1 connections, 0 messages leased" in manager.hear(f"STATUS=serving {manager.path}: 1")
        for _ in range(3):
            manager.hear("WATCHDOG=1")
        manager.process.send_signal(signal.SIGTERM)
        manager.hear("STOPPING=1")
    assert manager.process.wait(PATIENCE) == 0


@pytest.mark.slow
def test_a_daemon_whose_loop_stands_still_gives_no_sign_of_life(manager: Manager) -> None:
    manager.start(passes=False, watchdog=0.3)
    manager.hear("WATCHDOG=1")
    assert manager.process is not None
    manager.process.send_signal(signal.SIGSTOP)
    manager._notified.settimeout(1.0)
    with pytest.raises(TimeoutError):
        while True:
            manager.hear("WATCHDOG=1")


def test_a_client_connects_before_the_daemon_runs_and_while_it_is_restarted(manager: Manager) -> None:
    manager.listen()
    early = socket.socket(socket.AF_UNIX)
    early.settimeout(PATIENCE)
    early.connect(str(manager.path))
    early.sendall(b'{"op":"send","queue":"q","body":"early","id":"a"}\n')
    manager.start(passes=True)
    assert b'"ok":true' in early.recv(4096)
    early.close()
    assert manager.process is not None
    manager.process.terminate()
    assert manager.process.wait(PATIENCE) == 0
    assert manager.path.is_socket(), "it is the manager's"
    manager.start(passes=True)
    with eoq.connect(manager.path) as client:
        assert client.send("q", "early", id="a").duplicate


def test_a_passed_socket_must_be_the_one_of_the_settings(manager: Manager) -> None:
    manager.listen()
    other = manager.folder / "other"
    manager.path = other
    manager.start(passes=True)
    assert manager.process is not None
    assert manager.process.wait(PATIENCE) == BAD_DATA


# ── the files ───────────────────────────────────────────────────────────────────────────────────────────────


def _verified(folder: Path, *flags: str) -> str:
    """Return what systemd finds wrong with the units in a folder."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze")
    files = [str(folder / name) for name in ("eoq.socket", "eoq.service")]
    ran = subprocess.run(
        ["systemd-analyze", *flags, "verify", "--man=no", *files],
        capture_output=True,
        env={**os.environ, "XDG_RUNTIME_DIR": str(folder), "SYSTEMD_UNIT_PATH": f"{folder}:"},
        timeout=PATIENCE * 3,
        check=False,
    )
    said = (ran.stdout + ran.stderr).decode()
    return "\n".join(line for line in said.splitlines() if "eoq" in line)


PLANS: Final = {
    "user": units.Plan(Path("/home/a b/100%/eoq.db"), Path("/run/user/7/eoq/eoq.sock"), None, None, None),
    "system": units.Plan(
        *(Path("/var/lib/eoq/eoq.db"), Path("/run/eoq/eoq.sock"), Path("/var/spool/eoq"), Path("/etc/eoq.toml"), 7),
        socket_mode="0660",
        socket_group="daemon",
        user="daemon",
    ),
    "elsewhere": units.Plan(Path("/srv/q/eoq.db"), Path("/srv/q/s"), None, None, None, user="daemon"),
}


@pytest.mark.parametrize("name", [pytest.param("user", marks=pytest.mark.slow), "system", "elsewhere"])
def test_systemd_finds_nothing_wrong_with_the_units(name: str, tmp_path: Path) -> None:
    (tmp_path / "eoq.service").write_text(units.service_unit(PLANS[name]))
    (tmp_path / "eoq.socket").write_text(units.socket_unit(PLANS[name]))
    assert _verified(tmp_path, *(["--user"] if name == "user" else [])) == ""


def test_the_command_of_a_unit_is_that_of_the_plan(tmp_path: Path) -> None:
    """Spaces and what systemd would replace are quoted."""
    unit = units.service_unit(PLANS["user"])
    assert '--db "/home/a b/100%%/eoq.db"' in unit
    assert "Type=notify" in unit and "WatchdogSec=" in unit
    assert "User=" not in unit
    system = units.service_unit(PLANS["system"])
    assert "User=daemon" in system and "StateDirectory=eoq" in system and "ProtectSystem=strict" in system
    assert "ReadWritePaths=/var/spool/eoq" in system
    socket_unit = units.socket_unit(PLANS["system"])
    assert "SocketMode=0660" in socket_unit and "SocketGroup=daemon" in socket_unit
    values = plistlib.loads(units.launchd_list(PLANS["user"], Path("/l")))
    assert values["ProgramArguments"] == PLANS["user"].command


def test_the_files_are_written_and_removed_and_others_stay(alone: Shell, folder: Path) -> None:
    if sys.platform == "darwin":
        pytest.skip("launchd starts what is written")
    home = f"export HOME={folder} XDG_CONFIG_HOME={folder}/conf PATH={Path(sys.executable).parent}:/nonexistent"
    written = folder / "conf" / "systemd" / "user"
    assert alone.run(f"{home}; eoq service status").status == NOTHING
    ran = alone.run(f"{home}; eoq service install --no-start")
    assert ran.lines == [str(written / "eoq.service"), str(written / "eoq.socket")], ran.errors
    assert f"ListenStream={alone.socket}" in (written / "eoq.socket").read_text()
    assert alone.run(f"{home}; eoq service install --print").lines[0] == f"# {written}/eoq.service"
    assert alone.run(f"{home}; eoq service status --json").rows[0]["installed"] is True
    (written / "eoq.socket").write_text("[Socket]\n")
    for command in ("install --no-start", "uninstall"):
        ran = alone.run(f"{home}; eoq service {command}")
        assert ran.status == BAD_DATA
        assert "was not made by" in ran.errors
    (written / "eoq.socket").unlink()
    assert alone.run(f"{home}; eoq service uninstall").lines == [str(written / "eoq.service")]
    assert alone.run(f"{home}; eoq service uninstall").status == NOTHING
    ran = alone.run(f"{home}; eoq service install --system --as no-such-user")
    assert "useradd" in ran.errors


def test_an_abstract_notify_socket_is_reached() -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux has abstract sockets")
    name = f"eoq-test-{os.getpid()}-{time.monotonic_ns()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind("\0" + name)
        notified.settimeout(PATIENCE)
        code = "from eoq.system.service_manager import ServiceManager; ServiceManager().tell('READY=1')"
        subprocess.run([sys.executable, "-c", code], env=clean_environment(NOTIFY_SOCKET=f"@{name}"), check=True)
        assert notified.recv(100) == b"READY=1"
