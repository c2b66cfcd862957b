"""``eoq send``: one message, or one for each line of standard input."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from eoq.client.blocking import Client
from eoq.errors import EoqError, InvalidRequest, MessageTooLarge
from eoq.message import Outgoing, Sent, encode_payload
from eoq.protocol.codec import get_bytes
from eoq.protocol.limits import MAX_BODY, MAX_LINE
from eoq.protocol.validation import check_options

from .common import (
    NOTHING_THERE,
    bytes_fields,
    connect,
    header_option,
    json_option,
    parse_time,
    print_bytes,
    print_json,
    queue_argument,
    read_body,
    read_time,
    refuse_failed,
    socket_option,
    standard_input,
)

if TYPE_CHECKING:
    from eoq.spool.sender import Spooled

PROGRESS_SECONDS = 0.1
FIELDS = ("body", "id", "headers", "priority", "group", "delay", "at", "ttl")
"""What a line of `--jsonl` may say."""
SPOOL_SECONDS = 2.0
"""How long one try of a daemon that went away or does not answer may take, where there is a spool."""


@click.command()
@queue_argument
@click.argument("body", required=False)
@click.option("--id", "id_", metavar="ID", help="The idempotency key; a new one if absent.")
@click.option("--delay", type=click.FloatRange(min=0), metavar="SECONDS", help="Deliver it so much later.")
@click.option(
    "--at",
    callback=read_time,
    metavar="TIME",
    help="Deliver it then: epoch seconds or ISO 8601, local if without zone.",
)
@click.option(
    "--ttl",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Do not deliver it when so long has passed since the send; from there it counts with --at and --delay, too.",
)
@click.option("--priority", type=int, default=0, metavar="N", help="Higher is delivered first; 0 if absent.")
@click.option("--group", metavar="NAME", help="Messages of a group are delivered one at a time, in order.")
@header_option("May be repeated.")
@click.option("--lines", is_flag=True, help="Each line of standard input is one message, also an empty one.")
@click.option("--jsonl", is_flag=True, help="Each line is an object: body, and any of the options by their names.")
@click.option("--wait", type=click.FloatRange(min=0), metavar="SECONDS", help="Wait for the result and print it.")
@click.option(
    "--spool",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="If the daemon cannot be reached, leave it in this spool, on disk, for when it runs. "
    "Only this flag does: EOQ_SPOOL is the daemon's.",
)
@json_option
@socket_option
def send(
    queue: str,
    body: str | None,
    id_: str | None,
    delay: float | None,
    at: float | None,
    ttl: float | None,
    priority: int,
    group: str | None,
    headers: dict[str, str],
    lines: bool,
    jsonl: bool,
    wait: float | None,
    spool: Path | None,
    as_json: bool,
    socket: str | None,
) -> None:
    """Send BODY, or standard input, to QUEUE; print its id.

    When the command returns, the message is on disk. The same --id with the same content is stored once.

    \b
    eoq send mail 'hello'
    eoq send payments '{"amount": 5}' --id order-17
    pg_dump shop | gzip | eoq send backups -
    seq 1000 | eoq send numbers --lines
    echo '{"body": {"amount": 5}, "id": "order-18", "at": "2030-01-31T09:00"}' | eoq send payments --jsonl
    eoq send render 'page 7' --wait 30
    eoq send mail 'hello' --spool /var/spool/shop     # also while no daemon runs
    """
    options: dict[str, Any] = {"priority": priority, "group": group, "delay": delay, "at": at, "ttl": ttl}
    if delay is not None and at is not None:
        raise click.UsageError("give --delay or --at, not both")
    if spool is not None and wait is not None:
        raise click.UsageError("give --wait or --spool, not both: what is left in a spool has no result yet")
    with connect(socket) if spool is None else Client(socket, timeout=SPOOL_SECONDS) as client:
        if lines or jsonl:
            if body is not None or id_ is not None or wait is not None or (lines and jsonl):
                raise click.UsageError(
                    "--lines and --jsonl read all messages from standard input: "
                    "without BODY, --id and --wait, and not both"
                )
            stdin = standard_input()
            template = Outgoing(b"", headers=headers, **options)
            source = _text_lines(stdin, template) if lines else _json_lines(stdin, template)
            _send_stream(_sending(client, spool, queue, source), as_json)
            return
        content = read_body(body, "body")
        if spool is not None:
            (either,) = _sending(client, spool, queue, [Outgoing(content, id=id_, headers=headers, **options)])
            click.echo(_line(either, as_json))
            return
        sent = client.send(queue, content, id=id_, headers=headers, **options)
        if wait is not None:
            _print_result(client, queue, sent, wait, as_json)
        else:
            click.echo(_line(sent, as_json))


def _sending(client: Client, spool: Path | None, queue: str, source: Iterable[Outgoing]) -> Iterator[Sent | Spooled]:
    """What becomes of each message."""
    if spool is None:
        yield from client.send_stream(queue, source)
        return
    from eoq.spool.sender import Spool, send_or_spool

    left = 0
    try:
        for sent in send_or_spool(client, Spool(spool), queue, source):
            left += not isinstance(sent, Sent)
            yield sent
    finally:
        if left:
            click.echo(
                f"eoq: cannot reach the daemon on {client.path}; {'it is' if left == 1 else f'{left:,} messages are'} "
                f"in the spool, on disk, until a daemon runs with --spool {spool}",
                err=True,
            )


def _line(sent: Sent | Spooled, as_json: bool) -> str:
    if not as_json:
        return sent.id
    more = {"duplicate": sent.duplicate} if isinstance(sent, Sent) else {"spooled": True}
    return json.dumps({"id": sent.id, **more}, ensure_ascii=False)


def _print_result(client: Client, queue: str, sent: Sent, wait: float, as_json: bool) -> None:
    result = client.result(queue, sent.id, wait)
    if result is None:
        click.echo(f"eoq: {sent.id} is stored, but had no result within {wait:g} s; ask `eoq result`", err=True)
        sys.exit(NOTHING_THERE)
    if as_json:
        fields = {} if result.body is None else bytes_fields("result", result.body)
        print_json({"id": sent.id, "duplicate": sent.duplicate, "outcome": result.outcome, **fields})
    elif result.body is not None:
        print_bytes(result.body)
    refuse_failed(sent.id, result)


def _send_stream(sending: Iterator[Sent | Spooled], as_json: bool) -> None:
    progress = _Progress()
    output = sys.stdout
    try:
        for sent in sending:
            output.write(_line(sent, as_json) + "\n")
            progress.step()
    except (EoqError, KeyboardInterrupt):
        progress.end()
        output.flush()
        click.echo(f"eoq: stopped; the first {progress.count:,} messages are stored, later ones may be", err=True)
        raise
    progress.end()


def _text_lines(stdin: BinaryIO, template: Outgoing) -> Iterator[Outgoing]:
    for _, line in _bounded_lines(stdin, MAX_BODY):
        yield _replace(template, body=line)


def _json_lines(stdin: BinaryIO, template: Outgoing) -> Iterator[Outgoing]:
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
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise InvalidRequest('no JSON object; write {"body": …}')
    in_base64 = fields.pop("body_base64", None)
    if in_base64 is not None:
        if not isinstance(in_base64, str) or "body" in fields:
            raise InvalidRequest("`body_base64` is a text in base64, and stands without `body`")
        fields["body"] = get_bytes(None, in_base64, "body")
    if "body" not in fields:
        raise InvalidRequest("it has no `body`")
    if unknown := fields.keys() - set(FIELDS):
        raise InvalidRequest(f"the option {min(unknown)!r} is not known; there are {', '.join(FIELDS)}, body_base64")
    if isinstance(at := fields.get("at"), str):
        fields["at"] = parse_time(at)
    return _replace(template, **fields)


def _replace(template: Outgoing, **fields: Any) -> Outgoing:
    values = {name: getattr(template, name) for name in ("headers", "priority", "group", "delay", "at", "ttl")}
    if "delay" in fields or "at" in fields:
        values["delay"] = values["at"] = None
    return Outgoing(**{**values, **fields})


def _bounded_lines(stdin: BinaryIO, limit: int) -> Iterator[tuple[int, bytes]]:
    number = 0
    while line := stdin.readline(limit + 2):
        number += 1
        line = line.removesuffix(b"\n")
        if len(line) > limit:
            raise MessageTooLarge(f"line {number} has more than {limit:,} bytes; store it elsewhere and send its name")
        yield number, line


class _Progress:
    """How many were sent, on a terminal; silent in a pipe."""

    def __init__(self) -> None:
        self.count = 0
        self._shown = sys.stderr.isatty() and not sys.stdout.isatty()
        self._next = 0.0

    def step(self) -> None:
        self.count += 1
        if self._shown and time.monotonic() >= self._next:
            self._next = time.monotonic() + PROGRESS_SECONDS
            sys.stderr.write(f"\r{self.count:,} sent")
            sys.stderr.flush()

    def end(self) -> None:
        if self._shown:
            sys.stderr.write(f"\r{self.count:,} sent\n")
