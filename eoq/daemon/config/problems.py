"""What can be wrong with a configuration, and the error that lists it."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from ...errors import InvalidRequest

MAX_FOUND: Final = 100
"""How many problems are collected."""
MAX_LISTED: Final = 20
"""How many of them an error lists."""


class Problem(NamedTuple):
    """One thing that is wrong: the place in the file, and what is wrong there."""

    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}" if self.place else self.text


class WrongConfig(InvalidRequest):
    """A configuration with one or more problems. Nothing of it is used."""

    def __init__(self, path: Path, problems: list[Problem]) -> None:
        lines = [str(problem) for problem in problems[:MAX_LISTED]]
        if len(problems) == 1:
            text = f"the configuration {path} is wrong: {lines[0]}"
        else:
            count = f"{len(problems)}" if len(problems) < MAX_FOUND else f"{MAX_FOUND} or more"
            more = ["and more"] if len(problems) > MAX_LISTED else []
            text = "\n  ".join([f"the configuration {path} is wrong in {count} places:", *lines, *more])
        super().__init__(text)
        self.problems = problems
