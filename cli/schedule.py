"""``eoq schedule``: manage recurring messages, which the daemon sends by itself."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import click

from eoq.message import Outgoing
from eoq.protocol.codec import put_bytes
from eoq.protocol.limits import QUEUE_PATTERN
from eoq.protocol.validation import check_options

from .common import connect, print_json, read_body, visible
from .groups import Group
from .options import (
    F,
    complete_schedule,
    gather,
    json_option,
    message_options,
    queue_argument,
    socket_option,
    time_option,
)
from .table import print_table


def _name_argument(command: F) -> F:
    """Add ``NAME``, and check it before the command runs."""

    def check(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
        if not re.match(QUEUE_PATTERN, value):
            raise click.BadParameter(
                f"{value!r} is not a schedule name; like a queue name, it has up to 128 letters, digits and ._-"
            )
        return value

    return click.argument("name", callback=check, shell_complete=complete_schedule)(command)


@dataclass(frozen=True, slots=True)
class Occurrences:
    """When a schedule sends its messages."""

    cron: str | None
    timezone: str | None
    every: int | None
    at: float | None
    catch_up: str

    def check(self) -> None:
        """Raise `click.UsageError` if the options do not belong together."""
        if (self.cron is None) == (self.every is None):
            raise click.UsageError("give either --cron or --every")
        if self.timezone is not None and self.cron is None:
            raise click.UsageError("--timezone needs --cron")
        if self.at is not None and self.every is None:
            raise click.UsageError("--at needs --every")


_occurrence_options = gather(
    "occurrences",
    Occurrences,
    cron=click.option("--cron", metavar="EXPRESSION", help="Five fields as for cron, or @hourly, @daily and so on."),
    timezone=click.option("--timezone", metavar="NAME", help="Time zone of --cron, an IANA name; default UTC."),
    every=click.option(
        "--every",
        type=click.IntRange(min=1),
        metavar="SECONDS",
        help="Send one message per interval; instead of --cron.",
    ),
    at=time_option(
        "The first occurrence of --every: epoch seconds or ISO 8601, local if without zone; default: SECONDS from now."
    ),
    catch_up=click.option(
        "--catch-up",
        type=click.Choice(["last", "all", "none"]),
        default="last",
        help="Which missed occurrences to send; default last.",
    ),
)


@click.group(cls=Group)
def schedule() -> None:
    """Manage recurring messages. Each occurrence is sent once, even if the daemon is killed.

    \b
    eoq schedule add report reports --cron '30 6 * * MON-FRI' --timezone Europe/Berlin
    eoq schedule add tick ticks --every 60
    eoq schedule list
    eoq schedule pause tick
    eoq schedule resume tick
    eoq schedule run tick
    eoq schedule remove tick

    The id of each message consists of the schedule's name and the occurrence's time, such as
    report@2026-11-24T05:30:00Z. Schedules may also be declared in the configuration file of the daemon, as
    [[schedule]] with the options of `add` as keys.
    """


@schedule.command(
    epilog="""\b
Examples:
  eoq schedule add report reports --cron '30 6 * * MON-FRI' --timezone Europe/Berlin
  eoq schedule add bill billing '{"kind": "monthly"}' --cron @monthly --catch-up all
  eoq schedule add tick ticks --every 60
  eoq schedule add shift shifts --every 1209600 --at 2026-01-05T08:00+01:00""",
)
@_name_argument
@queue_argument
@click.argument("body", required=False)
@_occurrence_options
@message_options(ttl_help="Let each message expire, undelivered, this long after its occurrence.")
@click.option("--replace", is_flag=True, help="Replace another definition of NAME.")
@json_option
@socket_option
def add(
    name: str,
    queue: str,
    body: str | None,
    occurrences: Occurrences,
    message: Outgoing,
    replace: bool,
    as_json: bool,
    socket: str | None,
) -> None:
    """Add a schedule that sends BODY to QUEUE at each occurrence; print the time of the first.

    BODY is empty if absent, and standard input if it is `-`. Adding the same schedule again changes nothing.
    Another definition of NAME is refused without --replace.

    An occurrence is missed if it could not be sent within 60 seconds of its time, because the daemon or the machine
    was down or the queue was full. --catch-up says which missed occurrences are sent later: `last` the newest one,
    unless a newer occurrence is due at that moment; `all` each of the newest 1,000; `none` none.

    Hours that the time zone skips or repeats are treated as by Debian's cron: a job at a fixed time in such an hour
    is sent once.
    """
    occurrences.check()
    content = b"" if body is None else read_body(body, "body")
    check_options(message)
    options = {
        **asdict(occurrences),
        "ttl": message.ttl,
        "priority": message.priority,
        "group": message.group,
        "headers": message.headers or None,
    }
    fields: dict[str, Any] = {option: value for option, value in options.items() if value is not None}
    put_bytes(fields, "body", content)
    with connect(socket) as client:
        reply = client.ask("schedule_add", name=name, queue=queue, replace=replace, **fields)
    if as_json:
        print_json({"name": name, "changed": reply["changed"], "next_at": reply["next_at"]})
    else:
        click.echo(_time(reply["next_at"]))


@schedule.command("list")
@json_option
@socket_option
def list_(as_json: bool, socket: str | None) -> None:
    """List the schedules with the time of their next and of their last occurrence.

    \b
    eoq schedule list
    eoq schedule list --json | jq -r 'select(.error) | .name'
    """
    with connect(socket) as client:
        rows = client.schedules()
    if as_json:
        for row in rows:
            print_json(row)
        return
    if rows:
        print_table(
            ("name", "queue", "occurrences", "next", "last"),
            [[row["name"], row["queue"], _rule(row), _time(row["next_at"]), _time(row["last_at"])] for row in rows],
        )
    for row in rows:
        if "error" in row:
            click.echo(f"eoq: {row['name']}: {visible(row['error'])}", err=True)


@schedule.command()
@_name_argument
@json_option
@socket_option
def show(name: str, as_json: bool, socket: str | None) -> None:
    """Show all settings and times of one schedule. Exit status 1 if it does not exist.

    \b
    eoq schedule show report
    """
    with connect(socket) as client:
        found = client.ask("schedule_show", name=name)["schedule"]
    if as_json:
        print_json(found)
        return
    found |= found.pop("message")
    width = max(len(field) for field in found)
    for field, value in found.items():
        if field == "at" or field.endswith("_at"):
            value = _time(value)
        elif not isinstance(value, str):
            value = json.dumps(value, ensure_ascii=False)
        click.echo(f"{field:{width}}  {visible(value)}")


@schedule.command()
@_name_argument
@socket_option
def remove(name: str, socket: str | None) -> None:
    """Remove a schedule. Messages already sent stay. Exit status 1 if it does not exist.

    \b
    eoq schedule remove report
    """
    with connect(socket) as client:
        client.unschedule(name)


@schedule.command()
@_name_argument
@socket_option
def pause(name: str, socket: str | None) -> None:
    """Pause a schedule: it sends nothing until it is resumed. Exit status 1 if it does not exist.

    \b
    eoq schedule pause report
    """
    with connect(socket) as client:
        if not client.pause_schedule(name):
            click.echo(f"eoq: the schedule {name} is already paused", err=True)


@schedule.command()
@_name_argument
@socket_option
def resume(name: str, socket: str | None) -> None:
    """Let a schedule go on with its next occurrence. Those while it was paused are not sent.

    Exit status 1 if it does not exist.

    \b
    eoq schedule resume report
    """
    with connect(socket) as client:
        if not client.resume_schedule(name):
            click.echo(f"eoq: the schedule {name} is not paused", err=True)


@schedule.command()
@_name_argument
@click.option("--id", "id_", metavar="ID", help="The id of the message; by default a new one.")
@json_option
@socket_option
def run(name: str, id_: str | None, as_json: bool, socket: str | None) -> None:
    """Send the message of a schedule now, besides its occurrences, and print its id.

    Exit status 1 if the schedule does not exist.

    \b
    eoq schedule run report
    """
    with connect(socket) as client:
        sent = client.run_schedule(name, id=id_)
    if as_json:
        print_json({"name": name, "id": sent.id, "duplicate": sent.duplicate})
    else:
        click.echo(sent.id)


def _rule(row: dict[str, Any]) -> str:
    """Return the rule of a schedule in a few words."""
    rule = f"{row['cron']} {row['timezone']}" if "cron" in row else f"every {row['every']} s"
    return f"{rule}, paused" if row.get("paused") else rule


def _time(seconds: float | None) -> str:
    """Return a time in ISO 8601, in the local time zone."""
    return "-" if seconds is None else datetime.fromtimestamp(seconds).astimezone().isoformat(" ")
