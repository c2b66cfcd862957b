"""What the commands share: the connection, questions to the user, reading a body, printing, and how an error ends them.

It imports neither click nor a client before it needs them, so that a short command starts fast.
"""

from __future__ import annotations

import json
import os
import sys

from eoq.errors import EoqError, InvalidRequest, MessageTooLarge
from eoq.protocol.codec import put_bytes
from eoq.protocol.limits import MAX_BODY, MAX_OUTPUT

TYPE_CHECKING = False  # without an import of `typing`, which takes milliseconds
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, BinaryIO

    from eoq.client.blocking import Client

NOTHING_THERE = 1
"""Exit status when there was no message or no result."""
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells report it."""
INPUT_OUTPUT_ERROR = 74
"""Exit status when standard input or output failed (EX_IOERR)."""


def connect(socket: str | None) -> Client:
    """Return a client for one command."""
    from eoq.client.blocking import Client

    return Client(socket)


def confirm(question: str, yes: bool, flag: str = "--yes") -> None:
    """Ask ``question`` at a terminal, and abort the command unless the answer is yes.

    ``yes`` skips the question. Without a terminal the user cannot be asked: the command fails unless ``yes`` is true.
    """
    if yes:
        return
    import click

    if not (sys.stdin is not None and sys.stdin.isatty()):
        raise click.UsageError(f"{question} Standard input is not a terminal: give {flag} to confirm.")
    click.confirm(question, abort=True, err=True)


def print_json(value: Mapping[str, Any]) -> None:
    """Print one object on one line. Text that is not valid Unicode, such as a strange path, is printed as escapes.

    JSON is UTF-8 everywhere. Where the locale has another encoding, all that is not ASCII is printed as escapes.
    """
    escaped = (sys.stdout.encoding or "").lower() != "utf-8"
    print_line(json.dumps(value, ensure_ascii=escaped).encode(errors="backslashreplace").decode())


def print_line(text: str) -> None:
    """Print a line that has no characters which a terminal would act on."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def report(text: str) -> None:
    """Tell the user something, on standard error."""
    import click

    click.echo(f"eoq: {text}", err=True)


def end(error: EoqError | KeyboardInterrupt | OSError) -> int:
    """Tell the user of an error that ends the command. Return the exit status."""
    if isinstance(error, EoqError):
        report(str(error))
        return error.exit_status
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    # Python flushes the rest of the buffer when it ends, which must not fail a second time.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if not isinstance(error, BrokenPipeError):  # a reader such as `head` may close the pipe early
        report(f"cannot read or write: {error}; check the disk or the redirection")
    return INPUT_OUTPUT_ERROR


def open_closed_streams() -> None:
    """Replace standard streams that the caller has closed by empty ones.

    This is done before anything else is opened, so that no other file gets the descriptors 0 to 2.
    """
    if sys.stdin is None:
        sys.stdin = open(os.devnull)  # noqa: SIM115, PTH123 # stays open; pathlib takes milliseconds to import
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 # stays open; pathlib takes milliseconds to import
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 # stays open; pathlib takes milliseconds to import


def visible(text: str) -> str:
    """Return ``text`` with a dot for each character that a terminal would act on."""
    return "".join(letter if letter.isprintable() else "·" for letter in text)


def print_bytes(value: bytes) -> None:
    """Print bytes as they are, and a line feed after them unless they end with one."""
    sys.stdout.buffer.write(value if value.endswith(b"\n") else value + b"\n")


def print_output(key: str, output: bytes | None, size: int) -> None:
    """Print the stored output of a key, which had ``size`` bytes, or tell the user that it is too large to be kept."""
    if output is None:
        report(
            f"the output of {key!r} has {size:,} bytes, and at most {MAX_OUTPUT:,} are stored: "
            "only the first run prints it"
        )
    else:
        sys.stdout.buffer.write(output)
        sys.stdout.buffer.flush()


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
        report(f"reading the {what} from the terminal; end it with Ctrl-D")
    body = stdin.read(MAX_BODY + 1)
    if len(body) > MAX_BODY:
        raise MessageTooLarge(
            f"the {what} on standard input has more than {MAX_BODY:,} bytes; store it elsewhere and send its name"
        )
    return body
