"""Commands that keep the daemon's file: ``backup restore compact audit``."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from eoq.errors import InvalidRequest

from .common import confirm, print_json, report, visible
from .daemon_options import config_option, database_option, from_cli
from .options import json_option, socket_option
from .progress import ProgressLine
from .running import database_in_use
from .table import print_table

if TYPE_CHECKING:
    from eoq.daemon.config.resolve import ResolvedConfig


@click.command()
@click.argument("dest", type=click.Path(path_type=Path))
@database_option
@socket_option
@config_option
@json_option
@click.pass_context
def backup(ctx: click.Context, /, dest: Path, socket: str | None, as_json: bool, **_options: object) -> None:
    """Copy the daemon's file to DEST, while the daemon runs or not.

    The copy is one state of the file: what was confirmed before the command began is in it, and nothing in part. It is
    read back and checked, only its owner can read it, and it gets its name when it is whole; it takes the place of an
    earlier backup of that name. If DEST is a folder, the backup gets the time as its name. Never copy the file with
    `cp` while a daemon runs: the newest messages are in its log.

    \b
    eoq backup /mnt/backups/eoq.db
    eoq backup /mnt/backups                # /mnt/backups/eoq-20300131T090000Z.db
    """
    from eoq.daemon.upkeep.backup import backup as copy

    resolved = _resolve(ctx)
    target = dest / time.strftime("eoq-%Y%m%dT%H%M%SZ.db", time.gmtime()) if dest.is_dir() else dest
    database = database_in_use(resolved, socket)
    progress = ProgressLine()
    try:
        snapshot = copy(database, target.absolute(), resolved.config.storage, progress)
    finally:
        progress.end()
    if as_json:
        print_json({"backup": str(target), "database": str(database), **snapshot._asdict()})
    else:
        click.echo(os.fsencode(target))
        report(f"{snapshot.messages:,} messages and {snapshot.settled:,} settled ids, {snapshot.size:,} bytes")


@click.command()
@click.argument("backup", type=click.Path(path_type=Path))
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@database_option
@config_option
@json_option
@click.pass_context
def restore(ctx: click.Context, /, backup: Path, yes: bool, as_json: bool, **_options: object) -> None:
    """Put a copy of BACKUP in the place of the daemon's file. Stop the daemon first.

    The backup is checked before anything is changed. The old file stays, under a name that is printed.

    What was sent after the backup is not in it: those messages are gone, and a repeat of such a send is stored again. A
    message that was settled after the backup is delivered again; a worker with an inbox runs nothing for it, and gives
    the stored result. Receipts from before settle nothing.

    \b
    eoq stop && eoq restore /mnt/backups/eoq.db && eoq start
    """
    from eoq.daemon.upkeep.restore import restore as put_back

    database = _resolve(ctx).db.value
    confirm(f"Put {backup} in the place of {database}?", yes)
    progress = ProgressLine()
    try:
        restored = put_back(backup.absolute(), database, progress)
    finally:
        progress.end()
    if as_json:
        kept = None if restored.kept is None else str(restored.kept)
        print_json({"database": str(database), "kept": kept, **restored.snapshot._asdict()})
        return
    if restored.kept is not None:
        click.echo(os.fsencode(restored.kept))
        report(f"{database} was restored; the old file is kept as {restored.kept}")
    else:
        report(f"{database} was restored")


@click.command()
@database_option
@config_option
@json_option
@click.pass_context
def compact(ctx: click.Context, /, as_json: bool, **_options: object) -> None:
    """Make the daemon's file as small as what it contains. Stop the daemon first.

    A file that this version has made gives unused pages back by itself. A file of an earlier version does so once it
    was compacted.

    \b
    eoq stop && eoq compact && eoq start
    """
    from eoq.daemon.upkeep.compact import compact as make_small

    database = _resolve(ctx).db.value
    progress = ProgressLine()
    try:
        compacted = make_small(database, progress)
    finally:
        progress.end()
    if as_json:
        print_json({"database": str(database), **compacted._asdict()})
    else:
        click.echo(f"{compacted.before} {compacted.after}")
        report(f"{database} has {compacted.after:,} bytes now, and had {compacted.before:,}")


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="APP.db…", type=click.Path(path_type=Path))
@database_option
@socket_option
@config_option
@json_option
@click.pass_context
def audit(ctx: click.Context, /, files: tuple[Path, ...], socket: str | None, as_json: bool, **_options: object) -> int:
    """Compare the daemon's file with the inboxes and outboxes of applications. It changes nothing.

    It prints each message about which they do not agree. Name all files of the workers of a queue, since each has a
    part of the ids. Exit status 65 if a message was acked and no inbox has processed it; else 0.

    \b
    acked_not_processed   settled as done, and in no inbox: a consumer acked it without processing it
    processed_not_acked   it has taken effect, and is delivered once more; the inbox then runs nothing
    sent_not_removed      a row of the outbox whose message is stored; the relay removes it
    set_aside             a row of the outbox that cannot be sent: see `eoq relay --list`

    \b
    eoq audit ledger.db
    eoq audit ledger.db shop.db --json | jq -r .kind | sort | uniq -c
    """
    from eoq.daemon.upkeep.audit import audit as compare

    progress = ProgressLine()
    try:
        found = compare(database_in_use(_resolve(ctx), socket), files, progress)
    finally:
        progress.end()
    if as_json:
        for finding in found.findings:
            print_json(finding._asdict())
    else:
        rows = [[finding.kind, *(visible(text) for text in finding[1:])] for finding in found.findings]
        print_table(("kind", "queue", "id", "file"), rows)
    maybe = f"; of {found.forgotten:,} an inbox keeps the id no longer" if found.forgotten else ""
    report(f"{found.compared:,} acked messages were compared, {len(found.findings):,} findings{maybe}")
    lost = any(finding.kind == "acked_not_processed" for finding in found.findings)
    return InvalidRequest.exit_status if lost else 0


def _resolve(ctx: click.Context) -> ResolvedConfig:
    from eoq.daemon.config.resolve import resolve

    return resolve(from_cli(ctx))
