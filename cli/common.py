"""What the commands share: their common options, and how they print."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, BinaryIO, TypeVar

import click

from eoq.client.blocking import Client
from eoq.errors import InvalidRequest, MessageTooLarge
from eoq.message import Result
from eoq.protocol.codec import put_bytes
from eoq.protocol.limits import MAX_BODY
from eoq.protocol.validation import check_queue

F = TypeVar("F", bound=Callable[..., Any])

NOTHING_THERE = 1
"""Exit status where there was no message or no result."""


def socket_option(command: F) -> F:
    """``--socket PATH``."""
    return click.option(
        "--socket", metavar="PATH", help="The daemon's socket; else EOQ_SOCKET, else the user's default."
    )(command)


def json_option(command: F) -> F:
    """``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a line.")(command)


def header_option(help: str) -> Callable[[F], F]:
    """``--header K=V``, any number of them, as a dictionary ``headers``."""

    def read(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
        headers = {}
        for value in values:
            name, separator, content = value.partition("=")
            if not separator or not name:
                raise click.BadParameter(f"{value!r} is no header; write NAME=VALUE")
            headers[name] = content
        return headers

    return click.option("--header", "headers", multiple=True, callback=read, metavar="K=V", help=help)


def queue_argument(command: F) -> F:
    """``QUEUE``, checked before anything is asked."""
    return click.argument("queue", callback=_check_queue)(command)


def topic_argument(command: F) -> F:
    """``TOPIC``, checked before anything is asked."""
    return click.argument("topic", callback=_check_queue)(command)


def _check_queue(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    try:
        return check_queue(value)
    except InvalidRequest as error:
        raise click.BadParameter(str(error)) from error


def read_time(_ctx: click.Context, _param: click.Parameter, value: str | None) -> float | None:
    """The callback of an option that takes a time: seconds since the epoch."""
    try:
        return None if value is None else parse_time(value)
    except InvalidRequest as error:
        raise click.BadParameter(str(error)) from error


def parse_time(value: str) -> float:
    """Seconds since the epoch, of these or of ISO 8601; local where it names no zone. Raises `InvalidRequest`."""
    try:
        return float(value)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(value).timestamp()
    except (ValueError, OverflowError):
        raise InvalidRequest(
            f"{value!r} is no time; use seconds since the epoch or ISO 8601, such as 2030-01-31T09:00"
        ) from None


def connect(socket: str | None) -> Client:
    """A client for one command."""
    return Client(socket)


def confirm(question: str, yes: bool, flag: str = "--yes") -> None:
    """Asks at a terminal, and goes on only at a yes; elsewhere ``flag`` has to be given."""
    if yes:
        return
    if not (sys.stdin is not None and sys.stdin.isatty()):
        raise click.UsageError(f"{question} Nobody can be asked here: give {flag} to do it.")
    click.confirm(question, abort=True, err=True)


def print_json(value: Mapping[str, Any]) -> None:
    """One object on one line."""
    click.echo(json.dumps(value, ensure_ascii=False))


def visible(text: str) -> str:
    """A text without what a terminal would act on."""
    return "".join(letter if letter.isprintable() else "·" for letter in text)


def print_bytes(value: bytes) -> None:
    """Bytes as they are, ended by a line feed where they have none."""
    sys.stdout.buffer.write(value if value.endswith(b"\n") else value + b"\n")


def refuse_failed(id: str, result: Result) -> None:
    """Raises `InvalidRequest` where a message ended without having been done."""
    if result.outcome != "done":
        how = {"dead": "is a dead letter", "expired": "has expired", "dropped": "was dropped"}.get(result.outcome)
        raise InvalidRequest(f"{id} {how or result.outcome}: {result.error or 'no reason was given'}")


def bytes_fields(name: str, value: bytes) -> dict[str, Any]:
    """Bytes for JSON: ``name``, or ``name_base64`` where they are no text."""
    fields: dict[str, Any] = {}
    put_bytes(fields, name, value)
    return fields


def standard_input() -> BinaryIO:
    """Standard input as bytes; `InvalidRequest` where whoever started the command has closed it."""
    if sys.stdin is None:
        raise InvalidRequest("standard input is closed; give the body as an argument, or redirect a file to it")
    return sys.stdin.buffer


def read_body(given: str | None, what: str) -> bytes:
    """The bytes of an argument, or standard input where it is absent or ``-``; never more than a body may have."""
    if given is not None and given != "-":
        return given.encode(errors="surrogateescape")
    stdin = standard_input()
    if stdin.isatty():
        click.echo(f"eoq: reading the {what} from the terminal; end it with Ctrl-D", err=True)
    body = stdin.read(MAX_BODY + 1)
    if len(body) > MAX_BODY:
        raise MessageTooLarge(
            f"the {what} on standard input has more than {MAX_BODY:,} bytes; store it elsewhere and send its name"
        )
    return body
