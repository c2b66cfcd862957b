"""``eoq dashboard``: look at the daemon, and change it, in a browser."""

from __future__ import annotations

import asyncio

import click

from .options import socket_option


@click.command()
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, metavar="PORT", help="The port; any free one if absent."
)
@click.option("--host", default="127.0.0.1", metavar="HOST", help="127.0.0.1, ::1 or localhost; default 127.0.0.1.")
@socket_option
def dashboard(port: int, host: str, socket: str | None) -> None:
    """Look at queues, messages, schedules and dead letters in a browser, live, and change them.

    Prints a URL with a random token: whoever has it may do what you may. Open it in a browser of this machine. It is
    served on loopback only, until Ctrl-C. It waits while the daemon does not run.

    It needs an extra: pip install 'eoq[dashboard]'.

    \b
    eoq dashboard
    eoq dashboard --port 8321
    """
    try:
        from eoq.dashboard.serving import serve
    except ImportError as error:
        raise click.UsageError(
            f"the dashboard needs starlette and uvicorn, which cannot be loaded ({error}): pip install 'eoq[dashboard]'"
        ) from None
    asyncio.run(serve(socket, host, port, _print_url))


def _print_url(url: str) -> None:
    click.echo(url)
    click.echo("eoq dashboard: open this URL in a browser of this machine; Ctrl-C ends it", err=True)
