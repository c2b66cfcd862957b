"""``eoq schedule``: recurring messages, which the daemon sends by itself."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Any

import click

from eoq.message import Outgoing
from eoq.protocol.codec import put_bytes
from eoq.protocol.limits import QUEUE_PATTERN
from eoq.protocol.validation import check_options

from .common import (
    F,
    connect,
    header_option,
    json_option,
    print_json,
    queue_argument,
    read_body,
    read_time,
    socket_option,
    visible,
)
from .table import print_table


def _name_argument(command: F) -> F:
    """``NAME``, checked before anything is asked."""

    def check(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
        if not re.match(QUEUE_PATTERN, value):
            raise click.BadParameter(f"{value!r} is no name; like a queue's it is up to 128 letters, digits and ._-")
        return value

    return click.argument("name", callback=check)(command)


@click.group()
def schedule() -> None:
    """Recurring messages: each occurrence is sent once, whatever is killed and whenever.

    \b
    eoq schedule add report reports --cron '30 6 * * MON-FRI' --timezone Europe/Berlin
    eoq schedule add tick ticks --every 60
    eoq schedule list
    eoq schedule remove tick

    The id of each message is made of the schedule's name and the occurrence's time, such as
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
@click.option("--cron", metavar="EXPRESSION", help="Five fields as for cron, or @hourly, @daily and so on.")
@click.option("--timezone", metavar="NAME", help="By whose clock --cron goes: an IANA name; UTC if absent.")
@click.option("--every", type=click.IntRange(min=1), metavar="SECONDS", help="Instead of --cron.")
@click.option(
    "--at",
    callback=read_time,
    metavar="TIME",
    help="The first occurrence of --every: epoch seconds or ISO 8601, local if without zone; "
    "SECONDS from now if absent.",
)
@click.option(
    "--catch-up",
    type=click.Choice(["last", "all", "none"]),
    default="last",
    help="What is sent of missed occurrences; last if absent.",
)
@click.option(
    "--ttl", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="Not so long after its occurrence."
)
@click.option("--priority", type=int, default=0, metavar="N", help="Higher is delivered first; 0 if absent.")
@click.option("--group", metavar="NAME", help="Messages of a group are delivered one at a time, in order.")
@header_option("May be repeated.")
@click.option("--replace", is_flag=True, help="Also where NAME stands for something else so far.")
@json_option
@socket_option
def add(
    name: str,
    queue: str,
    body: str | None,
    cron: str | None,
    timezone: str | None,
    every: int | None,
    at: float | None,
    catch_up: str,
    ttl: float | None,
    priority: int,
    group: str | None,
    headers: dict[str, str],
    replace: bool,
    as_json: bool,
    socket: str | None,
) -> None:
    """Send BODY to QUEUE at each occurrence from now on; print the time of the first.

    BODY is empty if absent, and standard input if it is `-`. Adding the same again changes nothing; another
    definition of NAME is refused, unless --replace.

    An occurrence is missed if it could not be sent within 60 seconds of its time, since the daemon or the machine
    was down or the queue was full. Of those that were missed, `last` sends the newest, unless something newer is
    sent at that moment; `all` each, but not more than the newest 1,000; `none` none. An hour that the time zone
    skips or has twice is treated as by Debian's cron: what is due in it at a certain time is sent once.
    """
    if (cron is None) == (every is None):
        raise click.UsageError("give either --cron or --every")
    if timezone is not None and cron is None:
        raise click.UsageError("--timezone belongs to --cron")
    if at is not None and every is None:
        raise click.UsageError("--at belongs to --every")
    content = b"" if body is None else read_body(body, "body")
    check_options(Outgoing(content, headers=headers, priority=priority, group=group, ttl=ttl))
    options = {"cron": cron, "timezone": timezone, "every": every, "at": at}
    options |= {"ttl": ttl, "priority": priority, "group": group}
    fields: dict[str, Any] = {option: value for option, value in options.items() if value is not None}
    if headers:
        fields["headers"] = headers
    put_bytes(fields, "body", content)
    with connect(socket) as client:
        reply = client.ask("schedule_add", name=name, queue=queue, catch_up=catch_up, replace=replace, **fields)
    if as_json:
        print_json({"name": name, "changed": reply["changed"], "next_at": reply["next_at"]})
    else:
        click.echo(_time(reply["next_at"]))


@schedule.command("list")
@json_option
@socket_option
def list_(as_json: bool, socket: str | None) -> None:
    """List the schedules: when each is next, and when it was last sent.

    \b
    eoq schedule list
    eoq schedule list --json | jq -r 'select(.error) | .name'
    """
    with connect(socket) as client:
        rows = client.ask("schedules")["schedules"]
    if as_json:
        for row in rows:
            print_json(row)
        return
    if rows:
        print_table(
            ("name", "queue", "occurrences", "next", "last"),
            [
                [row["name"], row["queue"], _occurrences(row), _time(row["next_at"]), _time(row["last_at"])]
                for row in rows
            ],
        )
    for row in rows:
        if "error" in row:
            click.echo(f"eoq: {row['name']}: {visible(row['error'])}", err=True)


@schedule.command()
@_name_argument
@json_option
@socket_option
def show(name: str, as_json: bool, socket: str | None) -> None:
    """Show all that is known of one schedule. Exit status 1 if there is none.

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
    """Send no more occurrences of a schedule; what was sent stays. Exit status 1 if there is none.

    \b
    eoq schedule remove report
    """
    with connect(socket) as client:
        client.ask("schedule_remove", name=name)


def _occurrences(row: dict[str, Any]) -> str:
    """When a schedule's messages are sent, in a few words."""
    return f"{row['cron']} {row['timezone']}" if "cron" in row else f"every {row['every']} s"


def _time(moment: float | None) -> str:
    """By the clock of whoever looks, in ISO 8601."""
    return "-" if moment is None else datetime.fromtimestamp(moment).astimezone().isoformat(" ")
