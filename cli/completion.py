"""``eoq completion``: print what completes commands, options and the names of queues in a shell."""

from __future__ import annotations

import click
from click.shell_completion import ShellComplete, get_completion_class

VARIABLE = "_EOQ_COMPLETE"
"""The variable by which the shell asks `eoq` what could follow."""


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a script that completes commands, options, and names of queues, topics and schedules.

    The names are those of the daemon that runs. Without one there are none.

    \b
    eval "$(eoq completion bash)"                                   # in ~/.bashrc; needs bash 4.4
    eval "$(eoq completion zsh)"                                    # in ~/.zshrc, after compinit
    eoq completion fish > ~/.config/fish/completions/eoq.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 # click has these three
    made = kind(ctx.find_root().command, {}, "eoq", VARIABLE)
    # That of the base class: for bash, click's own would start bash, to look at its version.
    click.echo(ShellComplete.source(made), nl=False)
