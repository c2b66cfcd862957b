"""``eoq service``: the daemon as a service of systemd or launchd, of a user or of the machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import click

from eoq.errors import Forbidden, InvalidRequest, NotFound, Unavailable

from .common import NOTHING_THERE, print_json, report
from .daemon_options import daemon_options, from_cli
from .groups import Group
from .options import json_option
from .service_units import LABEL, MADE_BY, Plan, launchd_list, service_unit, socket_unit

if TYPE_CHECKING:
    from eoq.daemon.config.resolve import Resolved, ResolvedConfig

F = TypeVar("F", bound=Callable[..., object])

UNITS: Final = ("eoq.service", "eoq.socket")
SYSTEM_UNITS: Final = Path("/etc/systemd/system")
SYSTEM_LISTS: Final = Path("/Library/LaunchDaemons")
SYSTEM_PATHS: Final = {"db": "/var/lib/eoq/eoq.db", "socket": "/run/eoq/eoq.sock", "config": "/etc/eoq/eoq.toml"}
"""The paths of the machine's daemon, where no others are named."""
MANAGER_SECONDS: Final = 120.0
"""How long a command of the service manager may take."""


@click.group(cls=Group)
def service() -> None:
    """Let the service manager run the daemon.

    That is systemd, or launchd on macOS. It starts the daemon at log-in or, with --system, when the machine starts,
    and again when it fails.

    \b
    eoq service install
    sudo eoq service install --system --as eoq
    eoq service status
    eoq service uninstall
    """


def _system_option(command: F) -> F:
    return click.option("--system", is_flag=True, help="The service of the machine, instead of the user's.")(command)


@service.command()
@_system_option
@click.option("--as", "user", metavar="USER", help="With --system: the user of the daemon; default: eoq.")
@click.option("--no-start", is_flag=True, help="Write the files only.")
@click.option("--print", "prints", is_flag=True, help="Print the files, and change nothing.")
@daemon_options
@click.pass_context
def install(
    ctx: click.Context, /, system: bool, user: str | None, no_start: bool, prints: bool, **_options: object
) -> None:
    """Write the files of the service, and start it now and from now on.

    The paths are those of `eoq daemon` with the same options, and are written into the files. With --system the
    defaults are /var/lib/eoq/eoq.db, /run/eoq/eoq.sock and, if it exists, /etc/eoq/eoq.toml. `socket_mode` and
    `socket_group` of the configuration say who may connect.

    For systemd there are a unit of the daemon and one of its socket: clients can connect before the daemon is ready.
    The daemon tells systemd when it is ready, that it lives, and what it does. It may write to its own folders only:
    `systemctl edit eoq` with `ReadWritePaths=` allows more, such as the folder of an outbox that it relays.

    \b
    eoq service install
    loginctl enable-linger                    # keep it running when nobody is logged in
    sudo useradd --system --home-dir /var/lib/eoq --shell /usr/sbin/nologin eoq
    sudo eoq service install --system
    """
    if user is not None and not system:
        raise click.UsageError("--as names the user of the machine's service: give --system as well")
    files = _files(_plan(ctx, system, user), _Place(system))
    if prints:
        for path, content in files.items():
            click.echo(f"# {path}\n{content.decode()}")
        return
    for path, content in files.items():
        _write(path, content)
        click.echo(path)
    if no_start:
        report("the files are written; run `eoq service install` without --no-start to start the service")
    elif _is_macos():
        for path in files:
            _run(["launchctl", "bootstrap", _Place(system).domain, str(path)])
        report("the service is started")
    else:
        control = _Place(system).systemctl
        _run([*control, "daemon-reload"])
        _run([*control, "stop", *UNITS], may_fail=True)  # a socket cannot be started anew under its daemon
        _run([*control, "enable", *UNITS])
        _run([*control, "start", *reversed(UNITS)])
        report(f"the service is started; `{' '.join(control)} status eoq` and `eoq status` say how it is")


@service.command()
@_system_option
def uninstall(system: bool) -> int:
    """Stop the service, and remove its files. The messages stay. Exit status 1 if it was not installed.

    \b
    eoq service uninstall
    """
    place = _Place(system)
    found = [path for path in place.paths if path.exists()]
    if not found:
        report(f"no service is installed in {place.folder}")
        return NOTHING_THERE
    for path in found:
        _require_ours(path)
    if _is_macos():
        _run(["launchctl", "bootout", f"{place.domain}/{LABEL}"], may_fail=True)
    elif shutil.which("systemctl"):
        _run([*place.systemctl, "disable", "--now", *UNITS], may_fail=True)
    for path in found:
        try:
            path.unlink()
        except OSError as error:
            raise Forbidden(f"{path} cannot be removed: {error.strerror}; use sudo for the machine's") from error
        click.echo(path)
    if not _is_macos() and shutil.which("systemctl"):
        _run([*place.systemctl, "daemon-reload"], may_fail=True)
    report("the service is removed; the daemon's file stays where it is")
    return 0


@service.command()
@_system_option
@json_option
def status(system: bool, as_json: bool) -> int:
    """Print how the service is. Exit status 0 if it runs, 1 if it is not installed, 69 if it does not run.

    \b
    eoq service status
    eoq service status --system --json | jq -r .state
    """
    place = _Place(system)
    installed = [str(path) for path in place.paths if path.exists()]
    fields = {"installed": bool(installed), "state": "unknown", "pid": 0, "text": ""}
    if installed and not _is_macos() and shutil.which("systemctl"):
        shown = _run([*place.systemctl, "show", "-p", "ActiveState,MainPID,StatusText", UNITS[0]], may_fail=True)
        values = dict(line.partition("=")[::2] for line in shown.splitlines())
        fields["state"] = values.get("ActiveState") or "unknown"
        fields["pid"] = int(values.get("MainPID") or 0)
        fields["text"] = values.get("StatusText", "")
    elif installed and _is_macos():
        shown = _run(["launchctl", "print", f"{place.domain}/{LABEL}"], may_fail=True)
        fields["state"] = "active" if "state = running" in shown else "inactive"
    if as_json:
        print_json(fields)
    elif installed:
        pid = f", pid {fields['pid']}" if fields["pid"] else ""
        click.echo(f"{fields['state']}{pid}" + (f": {fields['text']}" if fields["text"] else ""))
    else:
        report(f"no service is installed in {place.folder}; `eoq service install` does it")
    if not installed:
        return NOTHING_THERE
    return 0 if fields["state"] == "active" else Unavailable.exit_status


# ── where and what ──────────────────────────────────────────────────────────────────────────────────────────


class _Place(NamedTuple):
    """Where the files of a service are, and how its manager is reached."""

    system: bool

    @property
    def folder(self) -> Path:
        if _is_macos():
            return SYSTEM_LISTS if self.system else _home() / "Library" / "LaunchAgents"
        if self.system:
            return SYSTEM_UNITS
        named = os.environ.get("XDG_CONFIG_HOME", "")
        return (Path(named) if named.startswith("/") else _home() / ".config") / "systemd" / "user"

    @property
    def paths(self) -> list[Path]:
        names = [f"{LABEL}.plist"] if _is_macos() else UNITS
        return [self.folder / name for name in names]

    @property
    def systemctl(self) -> list[str]:
        return ["systemctl"] if self.system else ["systemctl", "--user"]

    @property
    def domain(self) -> str:
        return "system" if self.system else f"gui/{os.getuid()}"


def _home() -> Path:
    with suppress(RuntimeError):
        if os.environ.get("HOME") != "":
            return Path.home()
    raise Forbidden(
        "this user has no home folder (HOME), so no service of its own; use --system for the machine's service"
    )


def _plan(ctx: click.Context, system: bool, user: str | None) -> Plan:
    from eoq.daemon.config.resolve import DEFAULT, Resolved, resolve

    options = from_cli(ctx)
    if system:
        for name, path in SYSTEM_PATHS.items():
            if name not in options and (name != "config" or Path(path).exists()):
                options[name] = Resolved(path, "of the machine")
        user = "eoq" if user is None else user
        _require_user(user)
    resolved: ResolvedConfig = resolve(options)
    _require_one_line(resolved.db, resolved.socket, resolved.spool, resolved.config_path)
    return Plan(
        resolved.db.value,
        resolved.socket.value,
        None if resolved.spool.source == DEFAULT else resolved.spool.value,
        resolved.config_path.value,
        resolved.queue_overrides.get("max_attempts"),
        resolved.config.daemon.socket_mode or "0600",
        resolved.config.daemon.socket_group,
        user,
    )


def _require_user(user: str) -> None:
    import pwd

    try:
        pwd.getpwnam(user)
    except KeyError:
        raise NotFound(
            f"there is no user {user!r} to run the daemon; create it (`useradd --system --home-dir /var/lib/eoq "
            f"--shell /usr/sbin/nologin {user}`), or name another with --as"
        ) from None


def _require_one_line(*paths: Resolved) -> None:
    for path in paths:
        if not str(path.value).isprintable():
            raise InvalidRequest(f"{path.value!r} has characters that a unit cannot have; name another path")


def _files(plan: Plan, place: _Place) -> dict[Path, bytes]:
    if _is_macos():
        log = plan.database.with_name(plan.database.name + ".log")
        return {place.paths[0]: launchd_list(plan, log)}
    units = (service_unit(plan), socket_unit(plan))
    return {path: unit.encode() for path, unit in zip(place.paths, units, strict=True)}


def _is_macos() -> bool:
    return sys.platform == "darwin"


# ── files and commands ──────────────────────────────────────────────────────────────────────────────────────


def _require_ours(path: Path) -> None:
    """Raise `InvalidRequest` for a file that was written by hand."""
    if path.exists() and MADE_BY.encode() not in path.read_bytes():
        raise InvalidRequest(f"{path} was not made by `eoq service install`, so it stays; move it away first")


def _write(path: Path, content: bytes) -> None:
    try:
        _require_ours(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        part.write_bytes(content)
        part.chmod(0o644)
        part.replace(path)
    except OSError as error:
        raise Forbidden(f"{path} cannot be written: {error.strerror}; use sudo for the machine's service") from error


def _run(command: Sequence[str], *, may_fail: bool = False) -> str:
    """Run a command of the service manager, and return what it prints. Raises `Unavailable` where it fails."""
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=MANAGER_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"`{' '.join(command)}` cannot be run: {error}; the files are in place") from error
    if ran.returncode and not may_fail:
        why = ran.stderr.strip() or f"exit status {ran.returncode}"
        raise Unavailable(f"`{' '.join(command)}` failed: {why}; the files are in place, so run it again by hand")
    return ran.stdout
