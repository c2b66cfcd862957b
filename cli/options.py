"""The arguments and options that several commands share, and how their values are checked."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import partial, wraps
from typing import Any, TypeVar, cast

import click

from eoq.errors import InvalidRequest
from eoq.message import Outgoing
from eoq.protocol.validation import check_queue

COMPLETED = 200
"""Queues that a shell is offered, of those that begin with what was typed."""
COMPLETION_SECONDS = 1.0
"""How long a completion waits for the daemon, at most."""

F = TypeVar("F", bound=Callable[..., Any])
Decorator = Callable[[F], F]


def gather(name: str, kind: Callable[..., object], **options: Decorator[Any]) -> Decorator[Any]:
    """Return a decorator that adds ``options`` to a command and passes their values as one object.

    ``kind`` makes the object from the values; its parameters have the names of the options. The command receives
    the object as its argument ``name``.
    """

    def decorate(command: F) -> F:
        @wraps(command)
        def run(**values: Any) -> Any:
            values[name] = kind(**{option: values.pop(option) for option in options})
            return command(**values)

        for option in reversed(options.values()):
            run = option(run)
        return cast(F, run)

    return decorate


def message_options(*, ttl_help: str, **more: Decorator[Any]) -> Decorator[Any]:
    """Return a decorator that adds the options that describe a message: ``--ttl --priority --group --header``.

    ``more`` are further options of the command that are fields of `Outgoing`. The command receives all of them as
    ``message``, an `Outgoing` with an empty body.
    """
    return gather(
        "message",
        partial(Outgoing, b""),
        **more,
        ttl=click.option("--ttl", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help=ttl_help),
        priority=click.option(
            "--priority",
            type=int,
            default=0,
            metavar="N",
            help="Messages with a higher number are delivered first; default 0.",
        ),
        group=click.option(
            "--group",
            metavar="NAME",
            help="Messages of one group are delivered one at a time, in the order of sending.",
        ),
        headers=header_option("Add a header; may be repeated."),
    )


def socket_option(command: F) -> F:
    """Add ``--socket PATH``."""
    return click.option(
        "--socket", metavar="PATH", help="Socket of the daemon; default: EOQ_SOCKET, else the user's socket."
    )(command)


def json_option(command: F) -> F:
    """Add ``--json``, which the command receives as ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a line.")(command)


def header_option(help: str) -> Decorator[Any]:
    """Return a decorator that adds ``--header K=V``; the command receives all of them as the dictionary ``headers``."""
    return click.option("--header", "headers", multiple=True, callback=_read_headers, metavar="K=V", help=help)


def time_option(help: str) -> Decorator[Any]:
    """Return a decorator that adds ``--at TIME``; the command receives seconds since the epoch."""
    return click.option("--at", callback=_read_time, metavar="TIME", help=help)


def queue_argument(command: F) -> F:
    """Add ``QUEUE``, and check the name before the command runs."""
    return click.argument("queue", callback=check_queue_option, shell_complete=complete_queue)(command)


def queues_argument(command: F) -> F:
    """Add ``[QUEUE]…``, which the command receives as ``queues``, and check the names before it runs."""
    return click.argument(
        "queues", nargs=-1, metavar="[QUEUE]…", callback=_check_queues, shell_complete=complete_queue
    )(command)


def topic_argument(command: F) -> F:
    """Add ``TOPIC``, and check the name before the command runs."""
    return click.argument("topic", callback=check_queue_option, shell_complete=complete_topic)(command)


def check_queue_option(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    """Return ``value`` if it is a queue name or absent. This is the callback of an option or argument."""
    try:
        return None if value is None else check_queue(value)
    except InvalidRequest as error:
        raise click.BadParameter(str(error)) from error


def _check_queues(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        check_queue_option(ctx, param, value)
    return values


def complete_queue(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Return the queues of the daemon that begin with ``incomplete``, for the completion of a shell."""
    request: dict[str, Any] = {"op": "queues", "prefix": incomplete, "limit": COMPLETED}
    return _names(ctx, incomplete, request, "queues", "name")


def complete_topic(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Return the topics of the daemon that begin with ``incomplete``, for the completion of a shell."""
    return _names(ctx, incomplete, {"op": "topics"}, "bindings", "topic")


def complete_schedule(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Return the schedules of the daemon that begin with ``incomplete``, for the completion of a shell."""
    return _names(ctx, incomplete, {"op": "schedules"}, "schedules", "name")


def _names(ctx: click.Context, incomplete: str, request: dict[str, Any], listed: str, name: str) -> list[str]:
    """Return names that the daemon knows; none where it does not answer at once."""
    from eoq.errors import EoqError
    from eoq.transport.single import Single

    try:
        with Single(ctx.params.get("socket"), timeout=COMPLETION_SECONDS) as single:
            found = {entry[name] for entry in single.ask(request)[listed]}
    except (EoqError, OSError):
        return []
    return sorted(one for one in found if one.startswith(incomplete))


def parse_time(value: str) -> float:
    """Return ``value`` in seconds since the epoch.

    ``value`` is seconds since the epoch or ISO 8601; a time without a zone is local. Raises `InvalidRequest` for
    anything else.
    """
    try:
        return float(value)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(value).timestamp()
    except (ValueError, OverflowError):
        raise InvalidRequest(
            f"{value!r} is not a time; use seconds since the epoch or ISO 8601, such as 2030-01-31T09:00"
        ) from None


def _read_time(_ctx: click.Context, _param: click.Parameter, value: str | None) -> float | None:
    try:
        return None if value is None else parse_time(value)
    except InvalidRequest as error:
        raise click.BadParameter(str(error)) from error


def _read_headers(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    headers = {}
    for value in values:
        name, separator, content = value.partition("=")
        if not separator or not name:
            raise click.BadParameter(f"{value!r} is not a header; write NAME=VALUE")
        headers[name] = content
    return headers
