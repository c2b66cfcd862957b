"""``eoq send``: send one message, or one for each line of standard input."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from eoq.client.blocking import Client
from eoq.errors import EoqError, InvalidRequest, MessageTooLarge
from eoq.message import Outgoing, Sent, encode_payload
from eoq.protocol import calls
from eoq.protocol.codec import get_bytes
from eoq.protocol.limits import MAX_BODY, MAX_LINE
from eoq.protocol.validation import check_finite, check_options
from eoq.transport.single import Single

from . import plain
from .bodies import CommandWithBody
from .common import connect, print_line, read_body, report, standard_input
from .options import json_option, message_options, parse_time, queue_argument, socket_option, time_option

if TYPE_CHECKING:
    from eoq.spool.sender import Spooled

PROGRESS_SECONDS = 0.1
"""Seconds between two updates of the progress line."""
FIELDS = ("body", "id", "headers", "priority", "group", "delay", "at", "ttl")
"""The fields of a line of ``--jsonl``."""
SPOOL_SECONDS = 2.0
"""How long to try to reach the daemon before the message goes to the spool."""


@click.command(cls=CommandWithBody)
@queue_argument
@click.argument("body", required=False)
@message_options(
    id=click.option("--id", metavar="ID", help="Idempotency key; default: a new unique id."),
    delay=click.option("--delay", type=click.FloatRange(min=0), metavar="SECONDS", help="Deliver it this much later."),
    at=time_option("Deliver it at this time: epoch seconds or ISO 8601, local if without zone."),
    ttl_help="Let it expire, undelivered, this long after the send. --delay and --at do not prolong it.",
)
@click.option("--lines", is_flag=True, help="Send each line of standard input as a message, including empty lines.")
@click.option("--jsonl", is_flag=True, help="Send each line as a message: an object with `body` and any options.")
@click.option("--wait", type=click.FloatRange(min=0), metavar="SECONDS", help="Wait for the result and print it.")
@click.option(
    "--spool",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="If the daemon cannot be reached, store it on disk in this spool, until a daemon runs. "
    "EOQ_SPOOL has no effect here.",
)
@json_option
@socket_option
def send(
    queue: str,
    body: str | None,
    message: Outgoing,
    lines: bool,
    jsonl: bool,
    wait: float | None,
    spool: Path | None,
    as_json: bool,
    socket: str | None,
) -> int:
    """Send a message to QUEUE and print its id.

    The body is BODY, or standard input if BODY is absent or `-`. The message is on disk when the command returns.
    The same --id with the same content is stored once.

    \b
    eoq send mail 'hello'
    eoq send numbers -5                               # a body may be a negative number
    eoq send mail -- --hello                          # or whatever follows --
    eoq send payments '{"amount": 5}' --id order-17
    pg_dump shop | gzip | eoq send backups -
    seq 1000 | eoq send numbers --lines
    echo '{"body": {"amount": 5}, "id": "order-18", "at": "2030-01-31T09:00"}' | eoq send payments --jsonl
    eoq send render 'page 7' --wait 30
    eoq send mail 'hello' --spool /var/spool/shop     # works while no daemon runs
    """
    if message.delay is not None and message.at is not None:
        raise click.UsageError("give --delay or --at, not both")
    if spool is not None and wait is not None:
        raise click.UsageError("give --wait or --spool, not both: a message in a spool has no result yet")
    check_finite("wait", wait)  # before anything is sent
    many = lines or jsonl
    if many and (body is not None or message.id is not None or wait is not None or (lines and jsonl)):
        raise click.UsageError(
            "--lines and --jsonl read all messages from standard input: give one of the two, "
            "without BODY, --id and --wait"
        )
    if not many:
        message = replace(message, body=read_body(body, "body"))
    if not many and spool is None:
        with Single(socket) as single:
            return plain.send(single, calls.send(queue, message).fields, wait, as_json)
    with connect(socket) if spool is None else Client(socket, timeout=SPOOL_SECONDS) as client:
        if many:
            stdin = standard_input()
            messages = _text_lines(stdin, message) if lines else _json_lines(stdin, message)
            plain.warn_of_unbound(queue, _send_stream(_sending(client, spool, queue, messages), as_json))
        else:
            (either,) = _sending(client, spool, queue, [message])
            plain.warn_of_unbound(queue, int(isinstance(either, Sent) and either.queues == 0))
            plain.tell_of_duplicates(int(isinstance(either, Sent) and either.duplicate))
            print_line(_line(either, as_json))
    return 0


def _sending(client: Client, spool: Path | None, queue: str, messages: Iterable[Outgoing]) -> Iterator[Sent | Spooled]:
    """Send each message, or store it in the spool if there is one and the daemon is away; yield the outcome."""
    if spool is None:
        yield from client.send_stream(queue, messages)
        return
    from eoq.spool.sender import Spool, send_or_spool

    spooled = 0
    try:
        for sent in send_or_spool(client, Spool(spool), queue, messages):
            spooled += not isinstance(sent, Sent)
            yield sent
    finally:
        if spooled:
            report(
                f"cannot reach the daemon on {client.path}; "
                f"{'the message is' if spooled == 1 else f'{spooled:,} messages are'} "
                f"in the spool, on disk, until a daemon runs with --spool {spool}"
            )


def _line(sent: Sent | Spooled, as_json: bool) -> str:
    """Return the output line of a message that was sent or spooled."""
    if isinstance(sent, Sent):
        return plain.sent_line(sent.id, sent.duplicate, sent.queues, as_json)
    return json.dumps({"id": sent.id, "spooled": True}, ensure_ascii=False) if as_json else sent.id


def _send_stream(sending: Iterator[Sent | Spooled], as_json: bool) -> int:
    """Print the outcome of each message, and the progress on a terminal. Return how many are stored nowhere."""
    progress = _Progress()
    output = sys.stdout
    unbound = duplicates = 0
    try:
        for sent in sending:
            unbound += isinstance(sent, Sent) and sent.queues == 0
            duplicates += isinstance(sent, Sent) and sent.duplicate
            output.write(_line(sent, as_json) + "\n")
            progress.step()
    except (EoqError, KeyboardInterrupt):
        progress.end()
        output.flush()
        report(f"stopped; the first {progress.count:,} messages are stored, later ones may be stored, too")
        raise
    progress.end()
    plain.tell_of_duplicates(duplicates)
    return unbound


def _text_lines(stdin: BinaryIO, template: Outgoing) -> Iterator[Outgoing]:
    """Yield one message for each line, with the options of ``template``."""
    for _, line in _bounded_lines(stdin, MAX_BODY):
        yield replace(template, body=line)


def _json_lines(stdin: BinaryIO, template: Outgoing) -> Iterator[Outgoing]:
    """Yield one message for each JSON object. Options that a line does not have are those of ``template``."""
    for number, line in _bounded_lines(stdin, MAX_LINE):
        if not line.strip():
            continue
        try:
            message = _from_json(line, template)
            check_options(message)
            body, _ = encode_payload(message.body)
        except EoqError as error:
            raise type(error)(f"line {number}: {error}") from error
        if len(body) > MAX_BODY:
            raise MessageTooLarge(f"line {number}: the body has {len(body):,} bytes and {MAX_BODY:,} is the limit")
        yield message


def _from_json(line: bytes, template: Outgoing) -> Outgoing:
    """Return the message of one line of ``--jsonl``. Raises `InvalidRequest` if the line is not one."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise InvalidRequest('not a JSON object; write {"body": …}')
    in_base64 = fields.pop("body_base64", None)
    if in_base64 is not None:
        if not isinstance(in_base64, str) or "body" in fields:
            raise InvalidRequest("`body_base64` must be a base64 text, and the line must not have `body` as well")
        fields["body"] = get_bytes(None, in_base64, "body")
    if "body" not in fields:
        raise InvalidRequest("the object has no `body`")
    if unknown := fields.keys() - set(FIELDS):
        raise InvalidRequest(f"unknown option {min(unknown)!r}; the options are {', '.join(FIELDS)}, body_base64")
    if isinstance(at := fields.get("at"), str):
        fields["at"] = parse_time(at)
    if "delay" in fields or "at" in fields:
        # The line's own time replaces the one of the command line, also if that is the other option.
        fields = {"delay": None, "at": None, **fields}
    return replace(template, **fields)


def _bounded_lines(stdin: BinaryIO, limit: int) -> Iterator[tuple[int, bytes]]:
    """Yield number and content of each line. Raises `MessageTooLarge` if a line has more than ``limit`` bytes."""
    number = 0
    while line := stdin.readline(limit + 2):
        number += 1
        line = line.removesuffix(b"\n")
        if len(line) > limit:
            raise MessageTooLarge(f"line {number} has more than {limit:,} bytes; store it elsewhere and send its name")
        yield number, line


class _Progress:
    """The count of messages sent, shown if standard error is a terminal and standard output is not."""

    def __init__(self) -> None:
        self.count = 0
        self._shown = sys.stderr.isatty() and not sys.stdout.isatty()
        self._next = 0.0

    def step(self) -> None:
        """Count one message."""
        self.count += 1
        if self._shown and time.monotonic() >= self._next:
            self._next = time.monotonic() + PROGRESS_SECONDS
            sys.stderr.write(f"\r{self.count:,} sent")
            sys.stderr.flush()

    def end(self) -> None:
        """Show the final count."""
        if self._shown:
            sys.stderr.write(f"\r{self.count:,} sent\n")
