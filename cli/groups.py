"""Groups of commands: their help is whole, and a misspelt command gets a suggestion."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Final

import click

CLOSE: Final = 0.6
"""How alike two names must be, from 0 to 1, for one to be suggested for the other."""
WHOLE: Final = 1000
"""Characters of the first sentence of a help text: it is not cut."""


class Group(click.Group):
    """A group of commands."""

    meant: Mapping[str, str] = {}
    """The commands that people mean by other words."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that is named, and its arguments. Ends with a usage error that suggests others."""
        name = args[0]
        if name.startswith("-") or self.get_command(ctx, name) is not None:
            return super().resolve_command(ctx, args)
        return ctx.fail(f"There is no command {name!r}.{self._suggestion(ctx, name)}")

    def _suggestion(self, ctx: click.Context, name: str) -> str:
        meant = {**{one: one for one in self.list_commands(ctx)}, **self.meant}
        close = [name.lower()] if name.lower() in meant else difflib.get_close_matches(name.lower(), meant, 3, CLOSE)
        found = dict.fromkeys(meant[one] for one in close)
        if not found:
            return f" `{ctx.command_path} --help` lists the commands."
        return f" Do you mean {' or '.join(f'`{ctx.command_path} {one}`' for one in found)}?"

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write all commands, each with the first sentence of its help."""
        self.write_commands(ctx, formatter, "Commands", self.list_commands(ctx))

    def write_commands(
        self, ctx: click.Context, formatter: click.HelpFormatter, title: str, names: Iterable[str]
    ) -> None:
        """Write some commands under a title."""
        rows = []
        for name in names:
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                rows.append((name, command.get_short_help_str(WHOLE)))
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows)
