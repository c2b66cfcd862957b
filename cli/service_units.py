"""The files of a service: units of systemd for a user or for the machine, and the property list of launchd."""

from __future__ import annotations

import plistlib
import sys
from pathlib import Path
from typing import Final, NamedTuple

MADE_BY: Final = "made by `eoq service install`, which writes it anew; put changes into `systemctl edit`"
"""Stands in each file. What does not have it is not replaced."""
LABEL: Final = "eoq.daemon"
"""The name of the service of launchd."""
WATCHDOG_SECONDS: Final = 60
_SANDBOX: Final = """\
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictNamespaces=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
SystemCallArchitectures=native
UMask=0077
"""
"""What the manager of a user can enforce too."""
_SYSTEM_SANDBOX: Final = """\
CapabilityBoundingSet=
AmbientCapabilities=
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
PrivateDevices=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
RemoveIPC=yes
"""


class Plan(NamedTuple):
    """What a service runs: the daemon with its paths, all absolute, and for the machine's service its user."""

    database: Path
    socket: Path
    spool: Path | None
    config: Path | None
    max_attempts: int | None
    socket_mode: str = "0600"
    socket_group: str | None = None
    user: str | None = None
    """The user of the daemon. None is for the service of a user."""

    @property
    def command(self) -> list[str]:
        """The command that the manager runs."""
        words = [sys.executable, "-P", "-m", "eoq.cli", "daemon", "--db", str(self.database)]
        words += ["--socket", str(self.socket)]
        for name, value in (("spool", self.spool), ("config", self.config), ("max-attempts", self.max_attempts)):
            if value is not None:
                words += [f"--{name}", str(value)]
        return words


def service_unit(plan: Plan) -> str:
    """Return the unit of the daemon."""
    is_system = plan.user is not None
    lines = [
        f"# {MADE_BY}",
        "[Unit]",
        "Description=eoq message queue",
        "Documentation=man:eoq(1)",
        "Requires=eoq.socket",
        "After=eoq.socket" + (" local-fs.target" if is_system else ""),
        "",
        "[Service]",
        "Type=notify",
        "NotifyAccess=main",
        "ExecStart=" + " ".join(map(_quoted, plan.command)),
        "ExecReload=kill -HUP $MAINPID",
        "Restart=on-failure",
        "RestartSec=2",
        "RestartPreventExitStatus=2 65 77",
        f"WatchdogSec={WATCHDOG_SECONDS}",
        "# A file of an earlier version is brought over first, and a stop answers what was begun.",
        "TimeoutStartSec=infinity",
        "TimeoutStopSec=60",
    ]
    if plan.user is not None:
        lines += [f"User={plan.user}", *_folders(plan)]
    lines += [_SANDBOX.rstrip(), *([_SYSTEM_SANDBOX.rstrip()] if is_system else [])]
    lines += ["", "[Install]", f"WantedBy={'multi-user.target' if is_system else 'default.target'}", "Also=eoq.socket"]
    return "\n".join(lines) + "\n"


def _folders(plan: Plan) -> list[str]:
    """Return what lets the daemon write to its folders, although all others are read-only."""
    lines = []
    if plan.socket.parent.parent == Path("/run"):
        # Kept over a restart: the manager's socket is in it.
        lines += [f"RuntimeDirectory={plan.socket.parent.name}", "RuntimeDirectoryMode=0755"]
        lines += ["RuntimeDirectoryPreserve=yes"]
    writable = [plan.socket.parent] if not lines else []
    if plan.database.parent.parent == Path("/var/lib"):
        lines += [f"StateDirectory={plan.database.parent.name}", "StateDirectoryMode=0700"]
    else:
        writable.append(plan.database.parent)
    if plan.spool is not None:
        writable.append(plan.spool)
    return lines + [f"ReadWritePaths={_quoted(str(path))}" for path in writable]


def socket_unit(plan: Plan) -> str:
    """Return the unit of the socket: clients can connect before the daemon is ready, and while it is restarted."""
    lines = [
        f"# {MADE_BY}",
        "[Unit]",
        "Description=eoq message queue, its socket",
        "Documentation=man:eoq(1)",
        "",
        "[Socket]",
        f"ListenStream={str(plan.socket).replace('%', '%%')}",
        f"SocketMode={plan.socket_mode}",
        "DirectoryMode=0755" if plan.user is not None else "DirectoryMode=0700",
        *([f"SocketUser={plan.user}"] if plan.user is not None else []),
        *([f"SocketGroup={plan.socket_group}"] if plan.socket_group is not None else []),
        "",
        "[Install]",
        "WantedBy=sockets.target",
    ]
    return "\n".join(lines) + "\n"


def launchd_list(plan: Plan, log: Path) -> bytes:
    """Return the property list of launchd."""
    values = {
        "Label": LABEL,
        "ProgramArguments": plan.command,
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": 2,
        "ProcessType": "Background",
        "Umask": 0o077,
        "StandardOutPath": "/dev/null",
        "StandardErrorPath": str(log),
        "EnvironmentVariables": {"EOQ_MADE_BY": MADE_BY},
        **({"UserName": plan.user} if plan.user is not None else {}),
    }
    return plistlib.dumps(values)


def _quoted(word: str) -> str:
    """Return a word of a command as systemd reads it."""
    word = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{word}"' if not word or any(letter in word for letter in " \t'\";") else word
