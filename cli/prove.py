"""``eoq prove``: kill a command at each write, deliver its message again, and compare the effects."""

from __future__ import annotations

import shutil
import signal
import sys
from pathlib import Path
from typing import NoReturn

import click

from eoq.message import Message
from eoq.protocol.codec import get_bytes
from eoq.protocol.limits import MAX_BATCH

from .common import NOTHING_THERE, connect, print_json, report, visible
from .options import json_option, queue_argument, socket_option
from .progress import ProgressLine

DIFFERS = 65
"""The exit status where a difference was found."""
TERMINATED = 128 + signal.SIGTERM


@click.command()
@queue_argument
@click.argument("command", nargs=-1, required=True, metavar="-- COMMAND…")
@click.option(
    "--db",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="APP.db",
    help="The SQLite file that COMMAND changes. It is only read: COMMAND works on copies.",
)
@click.option("--body", "bodies", multiple=True, metavar="TEXT", help="Use this body and no daemon; may be repeated.")
@click.option(
    "--limit",
    type=click.IntRange(1, MAX_BATCH),
    default=3,
    metavar="N",
    help="Use at most N waiting messages; default 3.",
)
@click.option(
    "--ignore",
    multiple=True,
    metavar="PATTERN",
    help="A file or connection outside APP.db that may be used twice, such as a log; may be repeated.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    metavar="SECONDS",
    help="Longest run of COMMAND; default 60.",
)
@click.option(
    "--moments",
    type=click.IntRange(1, 100_000),
    metavar="N",
    help="Kill at N moments of each run, as where ptrace is not allowed; there 100 is the default.",
)
@click.option(
    "--second-kills",
    type=click.IntRange(min=0),
    metavar="N",
    help="Kill at most N redeliveries of each message as well; default 100.",
)
@json_option
@socket_option
def prove(
    queue: str,
    command: tuple[str, ...],
    db: Path,
    bodies: tuple[str, ...],
    limit: int,
    ignore: tuple[str, ...],
    timeout: float,
    moments: int | None,
    second_kills: int | None,
    as_json: bool,
    socket: str | None,
) -> int:
    """Prove that COMMAND changes APP.db exactly once for each message of QUEUE.

    COMMAND is run as by `eoq work`, for waiting messages of QUEUE, which stay there as they are. It is killed at each
    write and sync of the file and its log, and at its end before the ack. Each time its message is delivered again, and
    the contents of APP.db are compared with those of a run without a kill. Files that it writes besides, and
    connections that it makes, are compared too. Redeliveries are killed as well, up to a number: before their ack, at
    commits and at places between.

    APP.db itself is never changed. COMMAND gets the path of a copy: where an argument is APP.db, in the place of {db},
    and as EOQ_PROVE_DB in its environment. It finds no daemon.

    On Linux the writes are seen by ptrace. Where that is not allowed, COMMAND is killed at moments spread over its run.
    The report says which. Exit status 0: no difference; 65: a difference; 1: no message waits.

    \b
    eoq prove payments --db shop.db -- ./book.sh shop.db
    eoq prove payments --db shop.db --body '{"cents": 5}' -- sh -c 'exec ./book.sh "$EOQ_PROVE_DB"'
    """
    from eoq.testing.proof.children import adopt_orphans
    from eoq.testing.proof.command import MOMENTS, CommandHandler
    from eoq.testing.proof.proving import SECOND_KILLS, prove_subject

    if shutil.which(command[0]) is None:
        raise click.UsageError(f"the command {command[0]!r} is not found, or not executable; nothing was run")
    messages = _made(queue, bodies) if bodies else _waiting(queue, limit, socket)
    if not messages:
        report(f"no message waits in {queue}: send one, or give a body with --body")
        return NOTHING_THERE
    signal.signal(signal.SIGTERM, _exit_terminated)
    adopt_orphans()
    subject = CommandHandler(
        command, db, timeout=timeout, moments=moments or MOMENTS, traced=None if moments is None else False
    )
    progress = ProgressLine()
    try:
        most = SECOND_KILLS if second_kills is None else second_kills
        found = prove_subject(subject, messages, db, ignore, progress, most)
    finally:
        progress.end()
    if as_json:
        print_json(found.as_json())
    else:
        click.echo(visible_lines(str(found)))
    return 0 if found.ok else DIFFERS


def visible_lines(text: str) -> str:
    """Return a text of several lines without characters that a terminal would act on."""
    return "\n".join(visible(line) for line in text.splitlines())


def _made(queue: str, bodies: tuple[str, ...]) -> list[Message]:
    from eoq.testing.messages import make_message

    return [make_message(body, queue=queue, id=f"proof-{number}") for number, body in enumerate(bodies, start=1)]


def _waiting(queue: str, limit: int, socket: str | None) -> list[Message]:
    """Return the next messages of a queue as they would be delivered. They stay where they are."""
    from eoq.testing.messages import make_message

    with connect(socket) as client:
        found = client.peek(queue, limit=limit)
    return [
        make_message(
            get_bytes(message.get("body"), message.get("body_base64"), "body") or b"",
            queue=queue,
            id=message["id"],
            headers=message.get("headers"),
            priority=message["priority"],
            group=message.get("group"),
            enqueued_at=message["enqueued_at"],
        )
        for message in found
    ]


def _exit_terminated(_number: int, _frame: object) -> NoReturn:
    """End on SIGTERM as on Ctrl-C: what runs is killed, and the copies are removed."""
    sys.exit(TERMINATED)
