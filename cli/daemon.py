"""Commands that run the daemon: ``daemon start stop status``."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eoq.client.blocking import Client
from eoq.errors import EoqError, Forbidden, Unavailable
from eoq.protocol.holder import Holder, Opening, daemon_on
from eoq.protocol.paths import socket_path
from eoq.transport.channel import unavailable

from .background import StillStarting, Upgrade, run_in_background
from .common import connect, print_json, visible
from .daemon_options import daemon_options, from_cli
from .logs import log_to_standard_error, redirect_standard_error
from .options import json_option, socket_option

if TYPE_CHECKING:
    from eoq.daemon.config.resolve import ResolvedConfig

STOP_SECONDS = 30.0
"""How long `stop` waits until the daemon has ended."""
ANSWER_SECONDS = 5.0
"""How long `start` and `stop` wait for the answer of a daemon."""


@click.command()
@daemon_options
@click.option(
    "--log",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="EOQ_LOG",
    metavar="FILE",
    help="Append the log to FILE, which is opened again on SIGHUP; else EOQ_LOG, else standard error.",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    envvar="EOQ_LOG_FORMAT",
    help="Lines of the log; else EOQ_LOG_FORMAT, else text.",
)
@click.pass_context
def daemon(ctx: click.Context, /, log: Path | None, log_format: str, **_options: object) -> None:
    """Run the daemon in the foreground, for a service manager.

    It prints `ready` and its socket when it accepts connections. SIGTERM and Ctrl-C stop it: it finishes and answers
    the requests it has begun. On SIGHUP it reads its configuration file again, as it does when the file changes, and it
    opens its --log again, so that the file can be renamed before. Under journald each line has its priority.

    \b
    eoq daemon --db /var/lib/shop/eoq.db --socket /run/shop/eoq.sock
    eoq daemon --config eoq.toml
    eoq daemon --spool /var/spool/shop      # a file renamed to /var/spool/shop/QUEUE/NAME is a message

    The configuration is TOML. It has settings of queues, and the outboxes that the daemon sends itself. `eoq config
    check` checks it, and `eoq config show` prints the values that are used. A flag takes precedence over a variable,
    and a variable over the file. So `--max-attempts` applies to all queues.

    \b
    [queues."mail.*"]
    retention = 86400      # seconds a settled record is kept; 7 days if absent
    max_attempts = 3       # deliveries before a message is a dead letter; 10 if absent
    [[relay]]
    path = "shop.db"       # relative to the file's folder
    [[schedule]]
    name = "report"
    queue = "reports"
    cron = "30 6 * * MON-FRI"
    """
    # Until the daemon handles SIGHUP: the default would end the process. It reads the file at its start in any case.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    from eoq.daemon.config.resolve import DEFAULT, resolve
    from eoq.daemon.main import Settings, run

    resolved = resolve(from_cli(ctx))
    reopen = partial(_open_log, None if log is None else log.absolute())
    reopen()
    log_to_standard_error("eoq daemon", log_format)

    def ready(path: Path) -> None:
        try:
            click.echo(os.fsencode(f"ready {path}"))
        except OSError as error:
            logging.getLogger("eoq.daemon").warning("`ready` could not be printed: %s", error)

    settings = Settings(
        resolved.db.value,
        resolved.socket.value,
        resolved.queue_overrides.get("max_attempts"),
        config=resolved.config,
        config_path=resolved.config_path.value,
        spool=None if resolved.spool.source == DEFAULT else resolved.spool.value,
    )
    run(settings, ready, reopen)


@click.command()
@daemon_options
@click.pass_context
def start(ctx: click.Context, /, **_options: object) -> None:
    """Start the daemon in the background. Do nothing if one runs already.

    If the running daemon was started with other options than this command, the exit status is 75: stop it first. The
    daemon writes its log to a file beside its database. If it is not ready after 60 s, the exit status is 75 as well,
    and it goes on starting. A daemon that brings the file of an earlier version up to date is waited for, and how far
    it is is shown. If you have a service manager, let it run `eoq daemon` instead.

    \b
    eoq start
    eoq start --db shop/eoq.db --socket shop/eoq.sock
    eoq stop && eoq start --spool spool
    """
    from eoq.daemon.config.resolve import resolve

    options = from_cli(ctx)
    resolved = resolve(options)
    path = resolved.socket.value
    running = _running(path, resolved.db.value)
    if running is not None:
        _refuse_other(resolved, running)
        click.echo(f"eoq: a daemon runs already, with pid {running['pid']} on {path}", err=True)
        return
    arguments: list[str] = []
    for name, option in options.items():
        # A path was relative to this folder. The daemon runs in another one.
        value = option.value if name == "max_attempts" else Path(option.value).absolute()
        arguments += [f"--{name.replace('_', '-')}", str(value)]
    database = resolved.db.value
    log = database.with_name(database.name + ".log")
    arguments += ["--log", str(log.absolute())]
    pid = run_in_background(arguments, path, log)
    click.echo(f"eoq: the daemon runs, with pid {pid} on {path}; its log is {log}", err=True)


@click.command()
@socket_option
def stop(socket: str | None) -> None:
    """Stop the daemon. It finishes and answers the requests it has begun.

    \b
    eoq stop
    """
    path = socket_path(socket).absolute()
    holder = daemon_on(path)
    is_silent = holder is not None and (holder.is_stopped or holder.opening is not None)
    try:
        running = None if is_silent else _status(path)
    except Forbidden:  # its socket is closed to this user, who may signal it nevertheless
        if holder is None:
            raise
        running = None
    if running is not None:
        pid = running["pid"]
    elif holder is not None and holder.is_here:
        pid = holder.pid
    elif holder is not None:
        raise unavailable(path, "no answer", f"the daemon with pid {holder.pid} runs elsewhere: stop it there")
    else:
        click.echo(f"eoq: no daemon runs on {path}", err=True)
        return
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return
    except PermissionError:
        raise Forbidden(f"the daemon with pid {pid} belongs to another user; ask its owner to stop it") from None
    if holder is not None and holder.is_stopped:
        raise unavailable(
            path,
            "stopped",
            f"the daemon with pid {pid} is stopped, by a signal or a debugger: `kill -CONT {pid}` lets it go on, "
            "and it then ends, as it was told now",
        )
    deadline = time.monotonic() + STOP_SECONDS
    while _alive(pid):
        if time.monotonic() > deadline:
            raise EoqError(f"the daemon with pid {pid} still runs after {STOP_SECONDS:g} s; see its log")
        time.sleep(0.02)
    click.echo(f"eoq: stopped the daemon with pid {pid}", err=True)


@click.command()
@json_option
@socket_option
def status(as_json: bool, socket: str | None) -> None:
    """Print whether the daemon runs, and its settings. Exit status 69 if it does not run, and 75 while it starts.

    Before it serves, it may have to bring the file of an earlier version up to date: then its pid, its socket and how
    far it is are printed.

    \b
    eoq status
    eoq status --json | jq .pid
    eoq status --json | jq .opening      # null once it serves
    """
    holder = daemon_on(socket_path(socket).absolute())
    if holder is not None and holder.opening is not None and not holder.is_stopped:
        _print_opening(holder, holder.opening, as_json)
        sys.exit(StillStarting.exit_status)
    with connect(socket) as client:
        fields = client.status()
    if as_json:
        print_json(fields)
        return
    fields["up"] = f"{time.time() - fields.pop('started_at'):.0f} s"
    read_at = fields.pop("config_read_at", None)
    if fields.get("config") is not None and read_at is not None:
        fields["config"] += f", read {time.time() - read_at:.0f} s ago"
    fields["features"] = ", ".join(fields.get("features", ()))
    for name in ("totals", "since_start"):
        counts = fields.get(name, {}).items()
        fields[name] = ", ".join(f"{count:,} {counter}" for counter, count in counts if count) or None
    for name, histogram in fields.pop("latencies", {}).items():
        if histogram["count"]:
            fields[f"{name}_time"] = f"p50 < {1000 * histogram['p50']:g} ms, p99 < {1000 * histogram['p99']:g} ms"
    width = max(len(name) for name in fields)
    for name, value in fields.items():
        if value is not None:
            click.echo(f"{name:{width}}  {visible(str(value))}")


def _print_opening(holder: Holder, opening: Opening, as_json: bool) -> None:
    if as_json:
        print_json({"pid": holder.pid, "socket": holder.socket, "opening": opening._asdict()})
        return
    click.echo(f"pid      {holder.pid}")
    click.echo(f"socket   {visible(holder.socket)}")
    click.echo(f"opening  {visible(opening.text)}")


def _open_log(log: Path | None) -> None:
    """Append the log to a file from now on, if there is one. Raises `Forbidden`."""
    if log is not None:
        redirect_standard_error(log)


def _refuse_other(resolved: ResolvedConfig, running: dict[str, Any]) -> None:
    """Raise `Locked` if the running daemon has other values than flags, variables or the configuration."""
    from eoq.daemon.config.resolve import DEFAULT
    from eoq.daemon.locks import Locked

    wanted_values = {"db": resolved.db, "config": resolved.config_path, "spool": resolved.spool, **resolved.overrides}
    others = []
    for name, (wanted, source) in wanted_values.items():
        has = running.get("database" if name == "db" else name)
        if source != DEFAULT and _real(wanted) != _real(has):
            others.append(f"{source} says {wanted}, and it has {'none' if has is None else has}")
    if others:
        raise Locked(
            f"a daemon runs already, with pid {running['pid']} on {resolved.socket.value}, but with other options: "
            f"{'; '.join(others)}; stop it first (`eoq stop`), or give this one another --socket"
        )


def _real(value: Any) -> str:
    """Return a value to compare: a path without its links."""
    return str(value) if value is None or isinstance(value, int) else os.path.realpath(value)


def _status(path: Path) -> dict[str, Any] | None:
    try:
        with Client(path, timeout=ANSWER_SECONDS) as client:
            return client.ask("status")
    except Unavailable:
        return None


def _running(path: Path, database: Path) -> dict[str, Any] | None:
    """Return the status of the daemon on the socket ``path``, or None if none runs there.

    Raises `Unavailable` for one that runs but cannot be reached. One that starts, or makes its socket again, is waited
    for.
    """
    upgrade = Upgrade()
    deadline = time.monotonic() + ANSWER_SECONDS
    try:
        while (holder := daemon_on(path, database)) is not None:
            if upgrade.goes_on(holder):
                deadline = time.monotonic() + ANSWER_SECONDS
            elif (running := _status(path)) is not None:
                return running
            elif holder.is_stopped or time.monotonic() > deadline:
                raise unavailable(path, "no answer")
            time.sleep(0.05)  # between two tries
    finally:
        upgrade.end()
    return _status(path)


def _alive(pid: int) -> bool:
    """Return whether a process runs. One that has ended but whose parent has not waited for it does not run."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    if stat.exists():
        try:
            return stat.read_bytes().rpartition(b")")[2].split()[0] != b"Z"
        except (OSError, IndexError):
            return False
    return True
