"""The command ``top``: what it needs is checked before the terminal is taken over."""

from __future__ import annotations

import asyncio
import sys

import click

from eoq.client.aio import connect_async

from ..options import socket_option

ANSWER_SECONDS = 10.0
"""How long the daemon may take to answer before it is said to be away."""
NO_TEXTUAL = (
    "`eoq top` needs Textual, which is not installed. Install it with: pip install 'eoq[top]'. "
    "`eoq queues` shows the queues without it."
)


@click.command()
@click.option("--filter", "wanted", default="", metavar="TEXT", help="Only queues with this text in their name.")
@socket_option
def top(wanted: str, socket: str | None) -> None:
    """Watch the queues live, and change them by keys. Needs the extra: pip install 'eoq[top]'.

    The busiest queues come first. Each has its ready and leased messages, the course of its depth and of its rate, the
    age of its oldest ready message, messages sent and done per second, deliveries that were repeated since the daemon
    started, and dead letters.

    Keys: arrows move, enter opens a queue or a message, p pauses or resumes, r redrives, d drops (after a question),
    / filters, s changes the order, escape goes back, q or Ctrl-C ends.

    \b
    eoq top
    eoq top --filter mail
    """
    try:
        import textual  # noqa: F401 # only whether it is there; the view imports it
    except ImportError:
        raise click.UsageError(NO_TEXTUAL) from None
    if not all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        raise click.UsageError("`eoq top` needs a terminal. In a pipe, `eoq queues --json` has the same figures.")
    asyncio.run(_watch(socket, wanted))


async def _watch(socket: str | None, wanted: str) -> None:
    """Show the view until its user ends it. Raises `Unavailable` if there is no daemon to begin with."""
    from .app import TopApp

    async with connect_async(socket, timeout=ANSWER_SECONDS) as client:
        await client.status()
        await TopApp(client, wanted).run_async(mouse=False)
