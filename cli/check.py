"""``eoq check``: is all well? For monitoring, with the exit statuses of its plug-ins."""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from enum import IntEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from eoq.client.blocking import Client
from eoq.errors import EoqError

from .common import print_json, visible
from .options import json_option, socket_option

ANSWER_SECONDS = 10.0
"""How long the daemon may take to answer."""
MOST_FOUND = 10
"""How many faults of the file are printed."""
FIXED_SQLITE = ((3, 51, 3), (3, 50, 7), (3, 44, 6))
"""The versions from which on, each in its series, two connections cannot damage a log that they both reset."""


class Status(IntEnum):
    """The exit statuses of monitoring."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


@dataclass(frozen=True, slots=True)
class Checked:
    """What one check has found."""

    name: str
    status: Status
    text: str


@dataclass(frozen=True, slots=True)
class Levels:
    """A threshold for a warning, and one for a critical state. ``percent`` says that they are parts of a whole."""

    warning: float
    critical: float | None
    percent: bool = False

    def above(self, value: float) -> Status:
        """Return how bad it is that a value is this high."""
        if self.critical is not None and value >= self.critical:
            return Status.CRITICAL
        return Status.WARNING if value >= self.warning else Status.OK

    def below(self, value: float) -> Status:
        """Return how bad it is that a value is this low."""
        if self.critical is not None and value < self.critical:
            return Status.CRITICAL
        return Status.WARNING if value < self.warning else Status.OK


class LevelsType(click.ParamType):  # type: ignore[type-arg] # older versions of click have no type argument
    """``WARN`` or ``WARN:CRIT``, both with a ``%`` where ``percent`` allows it."""

    name = "WARN[:CRIT]"

    def __init__(self, percent: bool = False) -> None:
        self._percent = percent

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Levels:
        """Return the levels of a text."""
        if isinstance(value, Levels):
            return value
        parts = str(value).split(":")
        percent = self._percent and all(part.endswith("%") for part in parts)
        try:
            numbers = [float(part.removesuffix("%") if percent else part) for part in parts]
        except ValueError:
            numbers = []
        if len(numbers) not in (1, 2) or not all(0 <= number < float("inf") for number in numbers):
            self.fail(f"{value!r} is no threshold; write WARN or WARN:CRIT, such as 100:1000", param, ctx)
        return Levels(numbers[0], numbers[1] if len(numbers) == 2 else None, percent)


class _Command(click.Command):
    """A command whose usage errors have the status UNKNOWN, as monitoring expects it."""

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        try:
            return super().make_context(*arguments, **options)
        except click.UsageError as error:
            error.show()
            raise click.exceptions.Exit(int(Status.UNKNOWN)) from error


@click.command(cls=_Command)
@click.option("--waiting", type=LevelsType(), metavar="WARN[:CRIT]", help="Messages ready or blocked, in each queue.")
@click.option("--oldest", type=LevelsType(), metavar="WARN[:CRIT]", help="Age of the oldest ready message, in seconds.")
@click.option("--dead", type=LevelsType(), metavar="WARN[:CRIT]", help="Dead letters in each queue.")
@click.option(
    "--disk",
    type=LevelsType(percent=True),
    default="10%:5%",
    metavar="WARN[:CRIT]",
    help="Free bytes of the disk, or parts of it with %; default 10%:5%.",
)
@click.option("--queue", "pattern", default="*", metavar="PATTERN", help="Only queues that match; default all.")
@click.option("--quick", is_flag=True, help="Do not read through the daemon's file to check its integrity.")
@json_option
@socket_option
def check(
    waiting: Levels | None,
    oldest: Levels | None,
    dead: Levels | None,
    disk: Levels,
    pattern: str,
    quick: bool,
    as_json: bool,
    socket: str | None,
) -> None:
    """Check the daemon, its file, its disk and its queues.

    The exit status is that of the worst check, as monitoring knows it: 0 ok, 1 warning, 2 critical, 3 unknown. A daemon
    that does not answer is critical. The first line says what is wrong, the others what each check has found.

    The integrity check reads the whole file beside the daemon. While it does, the log of the file grows. --quick leaves
    it out.

    \b
    eoq check
    eoq check --quick --oldest 60:600 --dead 1 --waiting 1000:10000
    eoq check --queue 'mail.*' --oldest 300 --json
    """
    findings = list(_findings(socket, pattern, {"waiting": waiting, "oldest": oldest, "dead": dead}, disk, quick))
    critical = [finding for finding in findings if finding.status == Status.CRITICAL]
    worst = Status.CRITICAL if critical else max(finding.status for finding in findings)
    if as_json:
        checks = [{"name": f.name, "status": f.status.name.lower(), "text": f.text} for f in findings]
        print_json({"status": worst.name.lower(), "code": int(worst), "checks": checks})
    else:
        wrong = "; ".join(finding.text for finding in findings if finding.status == worst)
        click.echo(visible(f"EOQ {worst.name} - {wrong if worst else 'all is well'}"))
        for finding in findings:
            click.echo(visible(f"{finding.status.name.lower():9}{finding.name}: {finding.text}"))
    click.get_current_context().exit(int(worst))


def _findings(
    socket: str | None, pattern: str, limits: dict[str, Levels | None], disk: Levels, quick: bool
) -> Iterator[Checked]:
    try:
        with Client(socket, timeout=ANSWER_SECONDS) as client:
            status = client.status()
            queues = client.queues() if any(limits.values()) else []
            path = client.path
    except EoqError as error:
        yield Checked("daemon", Status.CRITICAL, str(error))
        return
    yield Checked("daemon", Status.OK, f"pid {status['pid']} answers on {path}")
    yield _config(status)
    for trouble in status["storage_errors"]:
        yield Checked("storage", Status.CRITICAL, trouble)
    yield _disk(status, disk)
    yield from _permissions(Path(status["database"]), path, int(status.get("socket_mode", "0600"), 8))
    yield _sqlite(status["sqlite"])
    if not quick:
        yield _integrity(Path(status["database"]))
    shown = [queue for queue in queues if fnmatchcase(queue["name"], pattern)]
    for name, levels in limits.items():
        if levels is not None:
            yield _worst_queue(name, levels, shown)


def _config(status: dict[str, Any]) -> Checked:
    error = status["config_error"]
    if error is None:
        return Checked("configuration", Status.OK, str(status["config"] or "there is none"))
    return Checked("configuration", Status.WARNING, f"it is wrong, so the former settings stay: {error}")


def _disk(status: dict[str, Any], levels: Levels) -> Checked:
    free, whole = status.get("disk_free_bytes"), status.get("disk_bytes")
    if free is None or not whole:
        return Checked("disk", Status.UNKNOWN, "the system does not say how much of the disk is free")
    part = 100 * free / whole
    return Checked("disk", levels.below(part if levels.percent else free), f"{free:,} bytes ({part:.0f} %) are free")


def _permissions(database: Path, socket: Path, socket_mode: int) -> Iterator[Checked]:
    """Yield whether the file, its log and the socket can be opened by those who are meant to, and by nobody else."""
    for path in (database, database.with_name(f"{database.name}-wal"), socket):
        try:
            found = path.stat()
        except FileNotFoundError:
            if path == database:
                yield Checked("permissions", Status.CRITICAL, f"{path} is not there, although the daemon uses it")
            continue
        except OSError as error:
            yield Checked("permissions", Status.UNKNOWN, f"{path} cannot be looked at: {error.strerror}")
            continue
        mode = stat.S_IMODE(found.st_mode)
        meant = socket_mode if path == socket else 0o700
        if mode & ~meant & 0o077:
            text = f"{path} has mode {mode:04o}, so other users can open it: chmod {mode & meant:04o} {path}"
            yield Checked("permissions", Status.WARNING, text)
        elif path != socket and mode & 0o600 != 0o600:
            text = f"{path} has mode {mode:04o}, so the next daemon cannot open it: chmod {mode | 0o600:04o} {path}"
            yield Checked("permissions", Status.WARNING, text)
        else:
            yield Checked("permissions", Status.OK, f"{path} has mode {mode:04o}")


def _sqlite(version: str) -> Checked:
    numbers = tuple(map(int, version.split(".")))
    fixed = numbers >= FIXED_SQLITE[0] or any(numbers[:2] == one[:2] and numbers >= one for one in FIXED_SQLITE[1:])
    if fixed:
        return Checked("sqlite", Status.OK, f"the daemon is linked to SQLite {version}")
    return Checked(
        "sqlite",
        Status.OK,
        f"the daemon is linked to SQLite {version}, which can damage a file that several connections write and "
        "checkpoint at once; one connection alone does that to the daemon's file",
    )


def _integrity(database: Path) -> Checked:
    began = time.monotonic()
    try:
        with closing(sqlite3.connect(f"file:{quote(os.fspath(database))}?mode=ro", uri=True, timeout=10)) as file:
            rows = file.execute(f"pragma quick_check({MOST_FOUND})").fetchall()
    except sqlite3.Error as error:
        damaged = getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
        if damaged:
            text = f"{database} is damaged ({error}); restore it from a backup"
            return Checked("integrity", Status.CRITICAL, text)
        return Checked("integrity", Status.UNKNOWN, f"{database} cannot be read by this user: {error}")
    if rows == [("ok",)]:
        return Checked(
            "integrity", Status.OK, f"{database} was read in {time.monotonic() - began:.1f} s, without fault"
        )
    faults = "; ".join(str(text) for (text,) in rows)
    return Checked("integrity", Status.CRITICAL, f"{database} is damaged, restore it from a backup: {faults}")


def _worst_queue(name: str, levels: Levels, queues: list[dict[str, Any]]) -> Checked:
    """Return the finding for the queue with the highest value, which says how many others are over a level."""
    now = time.time()
    values: list[tuple[float, str]] = []
    for queue in queues:
        if name == "waiting":
            value = float(queue["ready"] + queue["blocked"])
        elif name == "oldest":
            value = 0.0 if queue["oldest_ready"] is None else max(0.0, now - queue["oldest_ready"])
        else:
            value = float(queue["dead"])
        values.append((value, queue["name"]))
    over = [one for one in values if levels.above(one[0]) != Status.OK]
    value, worst = max(values, default=(0.0, ""))
    unit = " s" if name == "oldest" else ""
    text = f"at most {value:,.0f}{unit}, in {worst}" if worst else "there is no such queue"
    if len(over) > 1:
        text += f", and {len(over) - 1} more queues are over the threshold"
    return Checked(name, levels.above(value), text)
