"""Bodies that look like an option, such as ``-5``."""

from __future__ import annotations

import re
from typing import Final

import click

NEGATIVE: Final = re.compile(r"-\.?\d", re.ASCII)
"""How a text begins that is a body and no option: no option begins with a digit."""


class CommandWithBody(click.Command):
    """A command whose arguments may begin with ``-`` and a digit. All others that begin so need ``--`` before them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the words of a command line."""
        return super().parse_args(ctx, self._with_numbers_as_arguments(args))

    def _with_numbers_as_arguments(self, words: list[str]) -> list[str]:
        """Return the words with the arguments behind ``--``, if one of them begins like a negative number."""
        options = {name: param for param in self.params if isinstance(param, click.Option) for name in param.opts}
        named: list[str] = []
        arguments: list[str] = []
        left = iter(words)
        for word in left:
            if word == "--":
                arguments.extend(left)
            elif NEGATIVE.match(word) or word == "-" or not word.startswith("-"):
                arguments.append(word)
            else:
                named.append(word)
                name, equals, _ = word.partition("=")
                if name not in options:
                    return words  # click shows the help, or says what is wrong with it
                if not options[name].is_flag and not equals:
                    named.extend(value for value in [next(left, None)] if value is not None)
        return [*named, "--", *arguments] if any(map(NEGATIVE.match, arguments)) else words
