"""What the commands share: the connection, questions to the user, reading a body, and printing."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any, BinaryIO

import click

from eoq.client.blocking import Client
from eoq.errors import InvalidRequest, MessageTooLarge
from eoq.message import Result
from eoq.protocol.codec import put_bytes
from eoq.protocol.limits import MAX_BODY

NOTHING_THERE = 1
"""Exit status when there was no message or no result."""


def connect(socket: str | None) -> Client:
    """Return a client for one command."""
    return Client(socket)


def confirm(question: str, yes: bool, flag: str = "--yes") -> None:
    """Ask ``question`` at a terminal, and abort the command unless the answer is yes.

    ``yes`` skips the question. Without a terminal the user cannot be asked: the command fails unless ``yes`` is true.
    """
    if yes:
        return
    if not (sys.stdin is not None and sys.stdin.isatty()):
        raise click.UsageError(f"{question} Standard input is not a terminal: give {flag} to confirm.")
    click.confirm(question, abort=True, err=True)


def print_json(value: Mapping[str, Any]) -> None:
    """Print one object on one line. Text that is not valid Unicode, such as a strange path, is printed as escapes.

    JSON is UTF-8 everywhere. Where the locale has another encoding, all that is not ASCII is printed as escapes.
    """
    escaped = (sys.stdout.encoding or "").lower() != "utf-8"
    click.echo(json.dumps(value, ensure_ascii=escaped).encode(errors="backslashreplace").decode())


def visible(text: str) -> str:
    """Return ``text`` with a dot for each character that a terminal would act on."""
    return "".join(letter if letter.isprintable() else "·" for letter in text)


def print_bytes(value: bytes) -> None:
    """Print bytes as they are, and a line feed after them unless they end with one."""
    sys.stdout.buffer.write(value if value.endswith(b"\n") else value + b"\n")


def refuse_failed(id: str, result: Result) -> None:
    """Raise `InvalidRequest` if the message ended in any other way than ``done``."""
    if result.outcome != "done":
        how = {"dead": "is a dead letter", "expired": "has expired", "dropped": "was dropped"}.get(result.outcome)
        raise InvalidRequest(f"{id} {how or result.outcome}: {result.error or 'no reason was given'}")


def bytes_fields(name: str, value: bytes) -> dict[str, Any]:
    """Return the JSON field of ``value``: ``name`` for UTF-8 text, else ``name_base64``."""
    fields: dict[str, Any] = {}
    put_bytes(fields, name, value)
    return fields


def standard_input() -> BinaryIO:
    """Return standard input as bytes. Raises `InvalidRequest` if the caller of the command has closed it."""
    if sys.stdin is None:
        raise InvalidRequest("standard input is closed; give the body as an argument, or redirect a file to it")
    return sys.stdin.buffer


def read_body(argument: str | None, what: str) -> bytes:
    """Return the bytes of ``argument``, or of standard input if it is absent or ``-``.

    ``what`` names the body in messages to the user. Raises `MessageTooLarge` if standard input has more bytes than a
    body may have.
    """
    if argument is not None and argument != "-":
        return argument.encode(errors="surrogateescape")
    stdin = standard_input()
    if stdin.isatty():
        click.echo(f"eoq: reading the {what} from the terminal; end it with Ctrl-D", err=True)
    body = stdin.read(MAX_BODY + 1)
    if len(body) > MAX_BODY:
        raise MessageTooLarge(
            f"the {what} on standard input has more than {MAX_BODY:,} bytes; store it elsewhere and send its name"
        )
    return body
