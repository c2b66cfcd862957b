"""``eoq work``: runs a command for each message."""

from __future__ import annotations

import os
import shutil
import threading

import click

from eoq.client.blocking import Client
from eoq.errors import EoqError, IdConflict, InvalidRequest
from eoq.message import Message, Outgoing
from eoq.outcomes import Reject, Retry
from eoq.protocol.limits import MAX_BODY
from eoq.protocol.validation import check_queue
from eoq.system.paths import socket_path
from eoq.worker.in_flight import Summary

from .common import json_option, queue_argument, socket_option
from .subprocesses import Commands, reason
from .work_loop import lease_option, until_empty_option, work_on

REJECTED = 100
"""The exit status of a command that can never handle its message, as for qmail."""


class CannotStart(EoqError):
    """The command could not be started: it is gone, or the system has no room for another process."""

    exit_status = 75


def _queue_or_none(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    try:
        return None if value is None else check_queue(value)
    except InvalidRequest as error:
        raise click.BadParameter(str(error)) from error


@click.command()
@queue_argument
@click.argument("command", nargs=-1, required=True, metavar="-- COMMAND…")
@click.option(
    "--concurrency", type=click.IntRange(1, 1000), default=1, metavar="N", help="Commands at once; 1 if absent."
)
@until_empty_option
@lease_option
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="A command that takes longer is ended (SIGTERM, 5 s later SIGKILL) and its message tried again.",
)
@click.option(
    "--result-queue",
    callback=_queue_or_none,
    metavar="QUEUE",
    help="The output is also sent there, under the message's own id, in the transaction of the ack.",
)
@json_option
@socket_option
def work(
    queue: str,
    command: tuple[str, ...],
    concurrency: int,
    until_empty: bool,
    lease: float,
    timeout: float | None,
    result_queue: str | None,
    as_json: bool,
    socket: str | None,
) -> None:
    """Run COMMAND for each message of QUEUE, its body on standard input, until stopped.

    \b
    COMMAND ends with    and its message
    0                    is settled; standard output is its result
    100                  becomes a dead letter
    anything else        is tried again, after growing waits

    Its environment has EOQ_ID, EOQ_QUEUE, EOQ_ATTEMPT, EOQ_RECEIPT, EOQ_SOCKET and, where the message has a group,
    EOQ_GROUP. Its standard error goes to that of `eoq work`, and its end is kept with a message that failed. Output
    of more than 1 MiB makes the message a dead letter: the command would only do the same again.

    The lease is extended while COMMAND runs. If `eoq work` is killed with -9, its commands are killed as well, and
    their messages are delivered again. What COMMAND has done outside the queue by then is done, and happens again:
    pass EOQ_ID on as its idempotency key, or see `eoq apply`.

    SIGTERM and Ctrl-C let the commands that run finish; a second one kills them. A daemon that goes away is waited
    for, without end, or for 30 seconds with --until-empty.

    \b
    eoq work mail -- ./send-mail.sh
    eoq work thumbnails --concurrency 4 --timeout 60 -- convert - -resize 200x200 png:-
    eoq work orders --result-queue invoices --until-empty -- ./make-invoice
    """
    if result_queue == queue:
        raise click.UsageError("--result-queue names QUEUE itself, where the message's id is taken; name another")
    if shutil.which(command[0]) is None:
        raise click.UsageError(f"the command {command[0]!r} is not found, or not executable; nothing was received")
    path = str(socket_path(socket).absolute())  # the command may work elsewhere
    commands = Commands(command, MAX_BODY, timeout)
    stop = threading.Event()
    failures: list[CannotStart] = []

    def handle(message: Message) -> bytes | None:
        try:
            ended = commands.run(message.body, _environment(message, path))
        except OSError as error:
            failures.append(CannotStart(f"cannot start {command[0]!r}: {error}; see to it and start again"))
            stop.set()
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
        return client.work(queue, handle, concurrency=concurrency, lease=lease, until_empty=until_empty, stop=stop)

    try:
        work_on(socket, until_empty, as_json, loop)
    finally:
        commands.kill()
    if failures:
        raise failures[0]


def _environment(message: Message, socket: str) -> dict[str, str]:
    """The variables of a command: ours, without what an outer `eoq work` had set, and those of its message."""
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
