"""Dead letters: ``dead list show redrive drop``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import click

from eoq.errors import NotFound
from eoq.protocol.admin_calls import Changed

from .common import NOTHING_THERE, F, confirm, connect, json_option, print_json, queue_argument, socket_option
from .queries import filtered, print_found, print_life


@click.group()
def dead() -> None:
    """Dead letters: messages that were rejected, or had no attempt left. They stay until somebody decides.

    \b
    eoq dead list mail
    eoq dead show mail ID
    eoq dead redrive mail ID
    eoq dead drop mail --older-than 604800 --yes
    """


def _choice(command: F) -> F:
    """Which dead letters: ids, an age, or all."""
    for option in (
        click.option("--all", "everything", is_flag=True, help="All of the queue."),
        click.option(
            "--older-than",
            type=click.FloatRange(min=0),
            metavar="SECONDS",
            help="Those whose last failure is so long ago.",
        ),
        click.argument("ids", metavar="[ID]...", nargs=-1),
        queue_argument,
    ):
        command = option(command)
    return command


@dead.command("list")
@filtered(100)
def list_(**wanted: Any) -> None:
    """List the dead letters of QUEUE with their last errors. Exit status 1 if none was found.

    Only the first 50,000 are looked at for those that are wanted.

    \b
    eoq dead list mail
    eoq dead list mail --json | jq -r .id
    """
    print_found(state="dead", **wanted)


@dead.command()
@queue_argument
@click.argument("id_", metavar="ID")
@json_option
@socket_option
def show(**wanted: Any) -> None:
    """Show the whole life of one message, like `eoq show`: each delivery, and how it failed.

    \b
    eoq dead show mail 0190f3c1-…
    """
    print_life(**wanted)


@dead.command()
@_choice
@json_option
@socket_option
def redrive(
    queue: str, ids: tuple[str, ...], older_than: float | None, everything: bool, as_json: bool, socket: str | None
) -> None:
    """Deliver dead letters again, with another set of attempts. Prints their ids.

    Each keeps its id, and with it what is known of its processing: an effect that is in place is not made again. Exit
    status 1 if one of the given ids is no dead letter, or if there was none.

    \b
    eoq dead redrive mail 0190f3c1-… 0190f3c2-…
    eoq dead redrive mail --all
    """
    _check(ids, older_than, everything)
    with connect(socket) as client:
        _change(client.redrive, queue, ids, older_than, everything, as_json)


@dead.command()
@_choice
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@socket_option
def drop(
    queue: str,
    ids: tuple[str, ...],
    older_than: float | None,
    everything: bool,
    yes: bool,
    as_json: bool,
    socket: str | None,
) -> None:
    """Drop dead letters for good: their bodies go, their ids stay known like those of other settled messages.

    Prints their ids. Exit status 1 if one of the given ids is no dead letter, or if there was none.

    \b
    eoq dead drop mail 0190f3c1-… --yes
    eoq dead drop mail --older-than 604800 --yes
    """
    _check(ids, older_than, everything)
    with connect(socket) as client:
        what = f"{len(ids)} dead letters" if ids else "dead letters" if older_than is not None else "all dead letters"
        confirm(f"Drop {what} of {queue}?", yes)
        _change(client.drop, queue, ids, older_than, everything, as_json)


def _check(ids: tuple[str, ...], older_than: float | None, everything: bool) -> None:
    if bool(ids) + (older_than is not None) + everything != 1:
        raise click.UsageError("say which dead letters: their ids, --older-than SECONDS, or --all")


def _change(
    change: Callable[..., Changed],
    queue: str,
    ids: tuple[str, ...],
    older_than: float | None,
    everything: bool,
    as_json: bool,
) -> None:
    failed_before = None if older_than is None else max(time.time() - older_than, 0.0)
    changed = change(queue, ids or None, failed_before=failed_before, everything=everything)
    for id in changed.ids:
        if as_json:
            print_json({"queue": queue, "id": id})
        else:
            click.echo(id)
    if changed.missing:
        raise NotFound(f"no dead letters of {queue}: {', '.join(changed.missing)}; `eoq dead list {queue}` lists them")
    if not changed.ids:
        sys.exit(NOTHING_THERE)
