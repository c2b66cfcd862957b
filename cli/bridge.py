"""``eoq forward`` and ``eoq ingest``: move a queue to other machines, over PostgreSQL or a stream of NATS."""

from __future__ import annotations

import signal
import sys
from time import localtime, strftime
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from .common import confirm, connect, print_json, visible
from .logs import log_to_standard_error
from .options import Decorator, gather, json_option, socket_option
from .table import print_table

if TYPE_CHECKING:
    from eoq.bridge.bridge import Bridge
    from eoq.bridge.engine import Engine
    from eoq.client.blocking import Client

SET_ASIDE = 65
"""Exit status while rows are set aside."""
BRIDGE_FIELDS = ("direction", "queue", "place", "here", "there", "claimed", "rate", "error")


class Between(NamedTuple):
    """The engine that a command names, and how it divides the queue."""

    url: str
    partitions: int | None
    partition: str | None

    def engine(self) -> Engine:
        """Return the engine. Raises `InvalidRequest`."""
        from eoq.bridge.places import open_engine

        return open_engine(*self)


def _engine(direction: str) -> Decorator[Any]:
    """Add the options ``--to`` and ``--to-env`` (or ``--from``), and those of partitions: the command gets `place`."""

    def find(url: str | None, variable: str | None, partitions: int | None, partition: str | None = None) -> Between:
        from eoq.bridge.places import find_url, open_engine

        if (url is None) == (variable is None):
            raise click.UsageError(f"give either --{direction} URL or --{direction}-env NAME")
        if url is not None:
            open_engine(url).refuse_password()
        return Between(find_url(url, variable), partitions, partition)

    own = click.option(
        "--partition", metavar="0-3", help="Those of a stream that belong to this machine. Default: all."
    )
    return gather(
        "place",
        find,
        url=click.option(
            f"--{direction}", "url", metavar="URL", help="postgresql://… or nats://HOST/STREAM, without a password"
        ),
        variable=click.option(
            f"--{direction}-env", "variable", metavar="NAME", help="The environment variable that has the URL."
        ),
        partitions=click.option(
            "--partitions", type=click.IntRange(1, 256), help="Into how many a stream divides the queue, for ever."
        ),
        **({"partition": own} if direction == "from" else {}),
    )


@click.command()
@click.argument("queue")
@_engine("to")
@click.option("--results", is_flag=True, help="Let their results come back, for `eoq result`.")
@click.option("--until-empty", is_flag=True, help="Forward what is ready, then end.")
@json_option
@socket_option
def forward(queue: str, place: Between, results: bool, until_empty: bool, as_json: bool, socket: str | None) -> None:
    """Move the messages of QUEUE to a PostgreSQL database or a stream of NATS JetStream, each once.

    QUEUE is a name, or a pattern with * ? [...]: all queues that match, also those that are made later. `eoq ingest`
    takes the messages from there, on any machine. Give a queue either to workers or to a forwarder. It runs until
    it is stopped, and waits while the database or the daemon is away. The password comes from PGPASSFILE, a service, or
    the variable that --to-env names; for NATS from a file of credentials (?creds=FILE) or that variable.

    \b
    eoq forward payments --to postgresql://eoq@db/shop
    eoq forward payments --to-env SHOP_URL
    eoq forward payments --to postgresql://eoq@db/shop --until-empty
    eoq forward 'orders.*' --to postgresql://eoq@db/shop --results
    eoq forward payments --to nats://db:4222/PAY --partitions 8
    """
    from eoq.bridge.bridge import Bridge

    log_to_standard_error("eoq forward")
    one = Bridge.forward(queue, place.url, results=results, partitions=place.partitions, socket=socket)
    if not until_empty:
        click.echo(f"eoq forward: {queue} to {one.place}", err=True)
        _run(one)
        return
    one.flush()
    if as_json:
        print_json({"queue": queue, "to": one.place, "forwarded": one.moved, "rejected": one.refused})


@click.command()
@click.argument("queue", required=False)
@_engine("from")
@click.option("--as", "owner", metavar="NAME", help="The name of this machine. By default its daemon's identity.")
@click.option("--limit", type=click.IntRange(min=1), default=1000, help="Messages that are unsettled here at most.")
@click.option(
    "--keep",
    default="30d",
    metavar="DURATION",
    help="How long ids are remembered: seconds, or a number with h, d or w.",
)
@click.option("--results", is_flag=True, help="Tell how messages ended to the machines that ask for it.")
@click.option("--until-empty", is_flag=True, help="Take what is there, up to the limit, then end.")
@click.option("--claims", is_flag=True, help="Print which machine holds how many messages, and take none.")
@click.option("--release", metavar="NAME", help="Give up what a lost machine has claimed, so that others take it.")
@click.option("--yes", is_flag=True, help="Do not ask before a release.")
@json_option
@socket_option
def ingest(
    queue: str | None,
    place: Between,
    owner: str | None,
    limit: int,
    keep: str,
    results: bool,
    until_empty: bool,
    claims: bool,
    release: str | None,
    yes: bool,
    as_json: bool,
    socket: str | None,
) -> None:
    """Take messages for QUEUE from a PostgreSQL database or a stream of NATS JetStream, each once.

    In PostgreSQL, the machine claims rows by its name, stores them in its daemon, and marks them as taken. Of a stream,
    it has fixed partitions. Messages of one group go to one machine. It runs until it is stopped.

    \b
    eoq ingest payments --from postgresql://eoq@db/shop --as till-3
    eoq ingest --from postgresql://eoq@db/shop --claims
    eoq ingest payments --from postgresql://eoq@db/shop --release till-2
    eoq ingest payments --from nats://db:4222/PAY --partition 0-3 --as till-3
    """
    from eoq.bridge.patterns import check_ingested

    if queue is not None:
        check_ingested(queue)
    if claims:
        _print_claims(place, queue, as_json)
        return
    if queue is None:
        raise click.UsageError("name the QUEUE")
    if release is not None:
        _release(place, queue, release, yes)
        return
    from eoq.bridge.bridge import Bridge

    log_to_standard_error("eoq ingest")
    one = Bridge.ingest(
        queue,
        place.url,
        name=owner,
        limit=limit,
        keep=keep,
        results=results,
        partitions=place.partitions,
        partition=place.partition,
        socket=socket,
    )
    if not until_empty:
        click.echo(f"eoq ingest: {queue} from {one.place}", err=True)
        _run(one)
        return
    aside = one.flush()
    if as_json:
        print_json({"queue": queue, "taken": one.moved, "set_aside": aside})
    if aside:
        click.echo(f"eoq ingest: messages set aside: {aside:,}; {place.engine().aside} says why", err=True)
        sys.exit(SET_ASIDE)


@click.command()
@json_option
@socket_option
def bridges(as_json: bool, socket: str | None) -> None:
    """List the bridges that the daemon runs: [[forward]] and [[ingest]] of its configuration.

    The columns are: direction; queue; database or stream, without user and password; unsettled messages here; messages
    there that no machine has claimed (in a stream: has read); those that are claimed and not stored yet; messages moved
    a second, over a minute; why it waits, if it does. `?` is for what is not known while the engine is away.

    \b
    eoq bridges
    eoq bridges --json | jq 'select(.error) | .queue'
    """
    with connect(socket) as client:
        found = client.status().get("bridges", [])
        rows = [{**bridge, "here": _here(client, bridge["queue"])} for bridge in found]
    if as_json:
        for row in rows:
            print_json({name: row[name] for name in (*BRIDGE_FIELDS, "moved", "refused")})
    else:
        print_table(
            BRIDGE_FIELDS,
            [
                [
                    *(row["direction"], row["queue"], visible(row["place"] or "?"), row["here"]),
                    *("?" if row[name] is None else row[name] for name in ("there", "claimed")),
                    *(f"{row['rate']:.1f}", visible(row["error"] or "")),
                ]
                for row in rows
            ],
        )


def _here(client: Client, pattern: str) -> int:
    """Return how many messages are not settled, in one queue or in all that match."""
    from eoq.bridge.patterns import is_pattern, literal_prefix, matches

    queues = client.queues(prefix=literal_prefix(pattern))
    own = [row for row in queues if (matches(row["name"], pattern) if is_pattern(pattern) else row["name"] == pattern)]
    return sum(int(row[state]) for row in own for state in ("ready", "delayed", "leased", "blocked"))


def _run(bridge: Bridge) -> None:
    """Run a bridge until SIGTERM or Ctrl-C."""
    signal.signal(signal.SIGTERM, lambda *_: bridge.stop())
    bridge.run()


def _print_claims(place: Between, queue: str | None, as_json: bool) -> None:
    for claim in place.engine().list_claims(queue):
        if as_json:
            print_json(claim._asdict())
            continue
        since = "" if claim.oldest is None else f" since {strftime('%Y-%m-%d %H:%M:%S', localtime(claim.oldest))}"
        held = "waiting" if claim.owner is None else "claimed"
        taken = "" if claim.taken is None else f", taken {claim.taken:,}"
        part = "" if claim.partition is None else f"  partition {claim.partition}"
        said = f"{held} {claim.claimed:,}{since}, set aside {claim.set_aside:,}{taken}"
        click.echo(visible(f"{claim.queue}{part}  {claim.owner or '-'}  {said}"))


def _release(place: Between, queue: str, owner: str, yes: bool) -> None:
    confirm(
        f"What {owner} has claimed of {queue} goes to other machines. Its daemon may have stored some of it before it "
        "was lost, and may even have processed it: these messages are doubled if that machine comes back, or if their "
        "effects are seen elsewhere. Of a stream, so is what a forwarder publishes again that this machine has taken. "
        "Release them?",
        yes,
    )
    click.echo(f"{place.engine().release_claims(queue, owner):,}")
