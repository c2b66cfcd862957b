"""Commands for dead letters: ``dead list show redrive drop``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import click

from eoq.errors import NotFound
from eoq.protocol.admin_calls import Changed

from .common import NOTHING_THERE, confirm, connect, print_json
from .groups import Group
from .options import gather, json_option, queue_argument, socket_option
from .queries import Search, print_found, print_message, search_options


@click.group(cls=Group)
def dead() -> None:
    """List, redrive and drop dead letters.

    Dead letters are messages that were rejected or have used up their attempts. They stay until they are redriven or
    dropped.

    \b
    eoq dead list mail
    eoq dead show mail ID
    eoq dead redrive mail ID
    eoq dead drop mail --older-than 604800 --yes
    """


@dataclass(frozen=True, slots=True)
class Selection:
    """Which dead letters of a queue a command changes: those with ``ids``, those older than an age, or all."""

    ids: tuple[str, ...]
    older_than: float | None
    everything: bool

    def check(self) -> None:
        """Raise `click.UsageError` unless exactly one of the three was given."""
        if bool(self.ids) + (self.older_than is not None) + self.everything != 1:
            raise click.UsageError("say which dead letters: their ids, --older-than SECONDS, or --all")

    def __str__(self) -> str:
        if self.everything:
            return "all dead letters"
        return f"{len(self.ids)} dead letters" if self.ids else f"dead letters older than {self.older_than:g} s"


_selection_options = gather(
    "selection",
    Selection,
    ids=click.argument("ids", metavar="[ID]...", nargs=-1),
    older_than=click.option(
        "--older-than", type=click.FloatRange(min=0), metavar="SECONDS", help="Those that failed last this long ago."
    ),
    everything=click.option("--all", "everything", is_flag=True, help="All dead letters of the queue."),
)


@dead.command("list")
@search_options(default_limit=100)
def list_(search: Search) -> None:
    """List the dead letters of QUEUE with their last errors. Exit status 1 if none was found.

    Only the first 50,000 dead letters are searched.

    \b
    eoq dead list mail
    eoq dead list mail --json | jq -r .id
    """
    print_found(search, "dead")


@dead.command()
@queue_argument
@click.argument("id_", metavar="ID")
@json_option
@socket_option
def show(queue: str, id_: str, as_json: bool, socket: str | None) -> None:
    """Show all that is stored about one message, like `eoq show`: each delivery, and how it failed.

    \b
    eoq dead show mail 0190f3c1-…
    """
    print_message(queue, id_, as_json, socket)


@dead.command()
@queue_argument
@_selection_options
@click.option("--to", metavar="OTHER", help="Redrive them to this queue instead.")
@json_option
@socket_option
def redrive(queue: str, selection: Selection, to: str | None, as_json: bool, socket: str | None) -> None:
    """Redrive dead letters: deliver them again, with a new set of attempts. Print their ids.

    Each keeps its id, so that an inbox does not apply again what it has already applied. Exit status 1 if one of the
    given ids is not a dead letter, or if there are none.

    \b
    eoq dead redrive mail 0190f3c1-… 0190f3c2-…
    eoq dead redrive mail --all
    eoq dead redrive mail --all --to mail.by-hand
    """
    selection.check()
    with connect(socket) as client:
        _change(partial(client.redrive, to=to), queue, selection, as_json)


@dead.command()
@queue_argument
@_selection_options
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@json_option
@socket_option
def drop(queue: str, selection: Selection, yes: bool, as_json: bool, socket: str | None) -> None:
    """Drop dead letters for good, and print their ids.

    Their bodies are deleted; their ids stay known, like those of other settled messages. Exit status 1 if one of the
    given ids is not a dead letter, or if there are none.

    \b
    eoq dead drop mail 0190f3c1-… --yes
    eoq dead drop mail --older-than 604800 --yes
    """
    selection.check()
    with connect(socket) as client:
        confirm(f"Drop {selection} of {queue}?", yes)
        _change(client.drop, queue, selection, as_json)


def _change(change: Callable[..., Changed], queue: str, selection: Selection, as_json: bool) -> None:
    """Call ``change`` on the selected dead letters and print the ids of those that it changed."""
    failed_before = None if selection.older_than is None else max(time.time() - selection.older_than, 0.0)
    changed = change(queue, selection.ids or None, failed_before=failed_before, everything=selection.everything)
    for id in changed.ids:
        if as_json:
            print_json({"queue": queue, "id": id})
        else:
            click.echo(id)
    if changed.missing:
        raise NotFound(f"no dead letters of {queue}: {', '.join(changed.missing)}; `eoq dead list {queue}` lists them")
    if not changed.ids:
        sys.exit(NOTHING_THERE)
