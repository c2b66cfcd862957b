"""``eoq bench``: how fast the disk syncs, and how fast eoq is beside raw SQLite on it, at equal durability.

It runs a daemon of its own in a scratch folder. What is measured is in ``bench_rows.py``.
"""

from __future__ import annotations

import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click

from eoq import __version__
from eoq.client.blocking import Client
from eoq.errors import EoqError, StorageFailed
from eoq.protocol.paths import database_path

from .bench_rows import ROWS, Eoq, Raw, sync_times
from .common import print_json
from .guard import Guard
from .options import json_option
from .progress import ProgressLine
from .scratch import daemon_command, environment

ENDING = (signal.SIGTERM, signal.SIGHUP)


@click.command()
@click.option(
    "--dir",
    "folder",
    type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path),
    metavar="DIR",
    help="Measure the disk of this folder; default: where the daemon's file is.",
)
@click.option(
    "--rounds", type=click.IntRange(1, 1000), default=3, metavar="N", help="The median of N rounds counts; default 3."
)
@click.option(
    "--seconds",
    type=click.FloatRange(0.01, 60),
    default=0.5,
    metavar="S",
    help="How long each of twelve measurements of a round takes; default 0.5.",
)
@json_option
def bench(folder: Path | None, rounds: int, seconds: float, as_json: bool) -> None:
    """Measure your disk, and eoq beside raw SQLite on it.

    Raw SQLite in this process (WAL, synchronous=FULL) is the floor that the disk sets. On both sides, what counts is on
    disk. Bodies have 100 bytes. A daemon of its own runs in a scratch folder, which is removed at the end. No other
    daemon is needed or touched.

    \b
    eoq bench
    eoq bench --dir /var/lib/shop --rounds 9
    eoq bench --json | jq '.rows[] | {name, ratio}'
    """
    where = _nearest(database_path().parent) if folder is None else folder.absolute()
    progress = ProgressLine()
    with _clean_end(), _scratch(where) as scratch:
        try:
            found = _measure(scratch, rounds, seconds, progress)
        except (sqlite3.Error, OSError) as error:
            raise StorageFailed(f"{where} cannot be measured: {error}; free space, or choose another --dir") from error
        finally:
            progress.end()
    found = {"folder": str(where), "version": __version__, "sqlite": sqlite3.sqlite_version, **found}
    if as_json:
        print_json(found)
    else:
        _print_table(found)


def _nearest(folder: Path) -> Path:
    """Return ``folder``, or the lowest of the folders above it that exists."""
    return next(place for place in (folder, *folder.parents) if place.is_dir())


# ── the scratch folder and its daemon ───────────────────────────────────────────────────────────────────────


@contextmanager
def _clean_end() -> Iterator[None]:
    """Leave nothing behind after SIGTERM and SIGHUP either: end as after Ctrl-C, with the status of the signal."""

    def end(number: int, _frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    before = [(number, signal.signal(number, end)) for number in ENDING]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


@contextmanager
def _scratch(where: Path) -> Iterator[Path]:
    """Yield a new folder, which is removed at the end."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=".eoq-bench-", dir=where))
    except OSError as error:
        raise StorageFailed(f"{where} cannot be written: {error.strerror}; choose another --dir") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _daemon(folder: Path) -> Iterator[Client]:
    """Run a daemon in ``folder``, and yield a client of it. The daemon ends with this process, even by kill -9."""
    guard = Guard()
    with (
        tempfile.TemporaryDirectory(prefix="eoq-bench-") as short,  # the path of a socket has to be short
        (folder / "errors.log").open("wb") as errors,
    ):
        socket = Path(short) / "s"
        process = subprocess.Popen(
            daemon_command(folder, socket),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment(),
            start_new_session=True,  # Ctrl-C must reach only this process, which ends the daemon
        )
        guard.add(process.pid)
        try:
            assert process.stdout is not None  # noqa: S101 # it is a pipe
            if not process.stdout.readline().startswith(b"ready"):
                said = (folder / "errors.log").read_text(errors="replace").strip()
                raise EoqError(f"the daemon did not start: {said or 'it said nothing'}")
            with Client(socket) as client:
                yield client
        finally:
            process.kill()
            process.communicate()
            guard.remove(process.pid)


# ── measuring ───────────────────────────────────────────────────────────────────────────────────────────────


def _measure(folder: Path, rounds: int, seconds: float, progress: ProgressLine) -> dict[str, Any]:
    """Measure all rows. Both sides alternate, because the speed of a disk drifts. Return what is printed."""
    progress("measuring the disk", 0, 1)
    syncs = sync_times(folder, seconds)
    rates: dict[str, tuple[list[float], list[float]]] = {row.name: ([], []) for row in ROWS}
    with ExitStack() as stack:
        client = stack.enter_context(_daemon(folder))
        raw, eoq = stack.enter_context(closing(Raw(folder))), stack.enter_context(closing(Eoq(client, folder)))
        for number, row in enumerate(ROWS * rounds):
            progress(row.name, number, rounds * len(ROWS))
            rates[row.name][0].append(row.raw(raw, seconds))
            rates[row.name][1].append(row.eoq(eoq, seconds))
    rows = []
    for name, (of_raw, of_eoq) in rates.items():
        floor, ours = statistics.median(of_raw), statistics.median(of_eoq)
        rows.append({"name": name, "raw": round(floor), "eoq": round(ours), "ratio": round(ours / floor, 2)})
    return {
        "sync_ms": round(statistics.median(syncs) * 1000, 3),
        "sync_p99_ms": round(syncs[len(syncs) * 99 // 100] * 1000, 3),
        "rounds": rounds,
        "rows": rows,
    }


def _print_table(found: dict[str, Any]) -> None:
    click.echo(f"{found['folder']}: a sync takes {found['sync_ms']} ms, 99 of 100 at most {found['sync_p99_ms']} ms")
    click.echo(f"\n{'messages a second, on disk':32}{'raw SQLite':>12}{'eoq':>12}{'ratio':>8}")
    for row in found["rows"]:
        click.echo(f"{row['name']:32}{row['raw']:>12,}{row['eoq']:>12,}{row['ratio']:>8.2f}")
    click.echo(f"\nmedians of {found['rounds']}, bodies of 100 bytes, eoq {found['version']}, SQLite {found['sqlite']}")
