"""``eoq send``: one message, or one for each line of standard input."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import click

from eoq.calls import check_options
from eoq.client import Client
from eoq.errors import EoqError, InvalidRequest, MessageTooLarge
from eoq.message import Outgoing, Sent, encode_payload
from eoq.protocol import MAX_BODY, MAX_LINE, get_bytes

from .common import (
    NOTHING_THERE,
    bytes_fields,
    connect,
    headers_option,
    json_option,
    moment,
    print_bytes,
    print_json,
    queue_argument,
    read_body,
    socket_option,
    standard_input,
)

PROGRESS_SECONDS = 0.1


@click.command()
@queue_argument
@click.argument("body", required=False)
@click.option("--id", "id_", metavar="ID", help="The idempotency key; a new one if absent.")
@click.option("--delay", type=click.FloatRange(min=0), metavar="SECONDS", help="Deliver it so much later.")
@click.option("--at", callback=moment, metavar="TIME", help="Deliver it then: epoch seconds or ISO 8601.")
@click.option("--priority", type=int, default=0, metavar="N", help="Higher is delivered first; 0 if absent.")
@click.option("--group", metavar="NAME", help="Messages of a group are delivered one at a time, in order.")
@headers_option
@click.option("--lines", is_flag=True, help="Each line of standard input is one message.")
@click.option("--jsonl", is_flag=True, help="Each line is an object: body, and any of the options by their names.")
@click.option("--wait", type=click.FloatRange(min=0), metavar="SECONDS", help="Wait for the result and print it.")
@json_option
@socket_option
def send(
    queue: str,
    body: str | None,
    id_: str | None,
    delay: float | None,
    at: float | None,
    priority: int,
    group: str | None,
    headers: dict[str, str],
    lines: bool,
    jsonl: bool,
    wait: float | None,
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
    eoq send render 'page 7' --wait 30
    """
    options: dict[str, Any] = {"priority": priority, "group": group, "delay": delay, "at": at}
    if delay is not None and at is not None:
        raise click.UsageError("give --delay or --at, not both")
    with connect(socket) as client:
        if lines or jsonl:
            if body is not None or id_ is not None or wait is not None or (lines and jsonl):
                raise click.UsageError(
                    "--lines and --jsonl read all messages from standard input: "
                    "without BODY, --id and --wait, and not both"
                )
            stdin = standard_input()
            template = Outgoing(b"", headers=headers, **options)
            source = _text_lines(stdin, template) if lines else _json_lines(stdin, template)
            _send_stream(client, queue, source, as_json)
            return
        sent = client.send(queue, read_body(body, "body"), id=id_, headers=headers, **options)
        if wait is not None:
            _print_result(client, queue, sent, wait, as_json)
        elif as_json:
            print_json({"id": sent.id, "duplicate": sent.duplicate})
        else:
            click.echo(sent.id)


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
    if result.outcome == "dead":
        raise InvalidRequest(f"{sent.id} is a dead letter: {result.error or 'no reason was given'}")


def _send_stream(client: Client, queue: str, source: Iterable[Outgoing], as_json: bool) -> None:
    progress = _Progress()
    output = sys.stdout
    try:
        for sent in client.send_stream(queue, source):
            if as_json:
                output.write(json.dumps({"id": sent.id, "duplicate": sent.duplicate}) + "\n")
            else:
                output.write(sent.id + "\n")
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
    unknown = fields.keys() - {"body", "id", "headers", "priority", "group", "delay", "at"}
    if unknown:
        raise InvalidRequest(f"the option {min(unknown)!r} is not known")
    return _replace(template, **fields)


def _replace(template: Outgoing, **fields: Any) -> Outgoing:
    values = {name: getattr(template, name) for name in ("headers", "priority", "group", "delay", "at")}
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
