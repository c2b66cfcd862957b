"""``eoq work``: run a command for each message."""

from __future__ import annotations

import os
import shutil
import threading

import click

from eoq.client.blocking import Client
from eoq.errors import EoqError, IdConflict
from eoq.message import Message, Outgoing
from eoq.outcomes import Reject, Retry
from eoq.protocol.limits import MAX_BODY
from eoq.protocol.paths import socket_path
from eoq.worker.in_flight import Summary

from .options import check_queue_option, queue_argument
from .subprocesses import Commands, reason
from .work_loop import LoopOptions, loop_options, run_loop

REJECTED = 100
"""The exit status with which a command rejects its message, as for qmail."""


class CannotStart(EoqError):
    """The command could not be started: it was removed, or the system has no room for another process."""

    exit_status = 75


@click.command()
@queue_argument
@click.argument("command", nargs=-1, required=True, metavar="-- COMMAND…")
@click.option(
    "--concurrency", type=click.IntRange(1, 1000), default=1, metavar="N", help="Commands to run at once; default 1."
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="End a command that takes longer (SIGTERM, 5 s later SIGKILL) and retry its message.",
)
@click.option(
    "--result-queue",
    callback=check_queue_option,
    metavar="QUEUE",
    help="Also send the output to this queue, under the message's own id, in the transaction of the ack.",
)
@loop_options
def work(
    queue: str,
    command: tuple[str, ...],
    concurrency: int,
    timeout: float | None,
    result_queue: str | None,
    options: LoopOptions,
) -> None:
    """Run COMMAND for each message of QUEUE, until stopped.

    COMMAND reads the body on standard input.

    \b
    exit status of COMMAND    outcome of the message
    0                         done; standard output is its result
    100                       dead letter
    any other                 retried, with growing waits

    The environment of COMMAND has EOQ_ID, EOQ_QUEUE, EOQ_ATTEMPT, EOQ_RECEIPT, EOQ_SOCKET and, if the message has a
    group, EOQ_GROUP. Its standard error goes to that of `eoq work`; if it fails, the last part is stored with the
    message. If its output has more than 1 MiB, the message becomes a dead letter, because a retry would not help.

    The lease is extended while COMMAND runs. If `eoq work` is killed with -9, its commands are killed as well, and
    their messages are delivered again. What COMMAND did outside the queue until then is done a second time, unless it
    passes EOQ_ID on as an idempotency key. For effects in an SQLite file see `eoq apply`.

    On SIGTERM or Ctrl-C the running commands finish; a second signal kills them. If the daemon stops, `eoq work`
    waits for it without end, or for 30 seconds with --until-empty.

    \b
    eoq work mail -- ./send-mail.sh
    eoq work thumbnails --concurrency 4 --timeout 60 -- convert - -resize 200x200 png:-
    eoq work orders --result-queue invoices --until-empty -- ./make-invoice
    """
    if result_queue == queue:
        raise click.UsageError("--result-queue is QUEUE itself, which already has the message's id; name another")
    if shutil.which(command[0]) is None:
        raise click.UsageError(f"the command {command[0]!r} is not found, or not executable; nothing was received")
    path = str(socket_path(options.socket).absolute())  # the command may run in another folder
    commands = Commands(command, MAX_BODY, timeout)
    stop = threading.Event()
    failures: list[CannotStart] = []

    def handle(message: Message) -> bytes | None:
        try:
            ended = commands.run(message.body, _environment(message, path))
        except OSError as error:
            failures.append(
                CannotStart(f"cannot start {command[0]!r}: {error}; correct that and start `eoq work` again")
            )
            stop.set()
            message.release()  # no fault of the message
            raise Retry(reason=f"the command could not be started: {error}") from error
        if ended.too_long:
            raise Reject(f"the output has more than {MAX_BODY:,} bytes; let the command store it, and print its name")
        if ended.status == REJECTED and not ended.timed_out:
            raise Reject(reason(ended))
        if ended.status or ended.timed_out:
            raise Retry(reason=reason(ended))
        if result_queue is not None:
            try:
                message.ack(ended.output, [Outgoing(ended.output, id=message.id, queue=result_queue)])
            except IdConflict as conflict:
                raise Reject(str(conflict)) from conflict
        return ended.output

    def loop(client: Client) -> Summary:
        return client.work(
            queue,
            handle,
            concurrency=concurrency,
            lease=options.lease,
            until_empty=options.until_empty,
            stop=stop,
        )

    try:
        run_loop(options, loop)
    finally:
        commands.kill()
    if failures:
        raise failures[0]


def _environment(message: Message, socket: str) -> dict[str, str]:
    """Return the environment of a command: that of `eoq work`, and the variables of the message.

    An EOQ_GROUP that an outer `eoq work` has set is removed.
    """
    variables = {name: value for name, value in os.environ.items() if name != "EOQ_GROUP"}
    variables.update(
        EOQ_ID=message.id,
        EOQ_QUEUE=message.queue,
        EOQ_ATTEMPT=str(message.attempt),
        EOQ_RECEIPT=message.receipt,
        EOQ_SOCKET=socket,
    )
    if message.group is not None:
        variables["EOQ_GROUP"] = message.group
    return variables
