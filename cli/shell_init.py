"""``eoq shell-init``: print a shell function that leaves messages in the daemon's spool, without starting Python."""

from __future__ import annotations

import shlex
import sys
from importlib.resources import files

import click

from .daemon_options import daemon_options, from_cli
from .running import spool_in_use


@click.command("shell-init")
@daemon_options
@click.pass_context
def shell_init(ctx: click.Context, /, **_options: object) -> None:
    """Print a function for shell scripts: eoq_send QUEUE [BODY|-] [--id ID].

    It leaves the message in the spool, syncs it, and prints its id, within a few milliseconds, whether the daemon runs
    or not. The daemon stores it at once, or when it runs again. It must have been started once before. If it runs
    now, the function uses its spool; else the options say which daemon that is, as for `eoq daemon`.

    It works in sh, dash, bash, zsh and busybox sh. Instead of running `eoq shell-init` in each script, which starts
    Python once, you may save or paste what it prints.

    `eoq send` asks the daemon, and the function does not: it never answers `duplicate`, and a message that the daemon
    refuses moves to `.rejected` in the queue's folder of the spool, with the reason. `eoq_send --help` prints the exit
    statuses.

    \b
    eval "$(eoq shell-init)"
    eoq_send mail 'hello'
    id=$(eoq_send payments '{"amount": 5}' --id order-17) || echo "not sent: $?"
    pg_dump shop | gzip | eoq_send backups -
    eoq shell-init > ~/.eoq.sh           # later, in a script: . ~/.eoq.sh
    """
    from eoq.daemon.config.resolve import resolve

    spool = spool_in_use(resolve(from_cli(ctx)), ctx.params["socket"])
    text = files(__package__).joinpath("eoq_send.sh").read_text()
    values = {"@SPOOL@": shlex.quote(str(spool)), "@PYTHON@": shlex.quote(sys.executable)}
    for name, value in values.items():
        text = text.replace(name, value)
    click.echo(text, nl=False)
