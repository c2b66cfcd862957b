"""A document whose examples the tests follow: its sections, its fenced blocks, its tables and its links."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tests.support import Shell

ROOT: Final = Path(__file__).parents[2]
PATIENT: Final = 300.0
"""Seconds that a block with many commands may take. It is only there so that nothing hangs for ever."""


class Block(NamedTuple):
    """A fenced block: the heading above it, its language ("" if none) and its text."""

    section: str
    language: str
    text: str


class Page:
    """A Markdown document of the project, named by its path from the root."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = ROOT / name
        self.text = self.path.read_text()
        self._sections: dict[str, list[str]] = {"": []}
        self._blocks: list[Block] = []
        self._parse()

    def _parse(self) -> None:
        title, fence, block = "", "", list[str]()
        for line in self.text.splitlines(keepends=True):
            if fence:
                if line.startswith("```"):
                    self._blocks.append(Block(title, fence.strip("`\n"), "".join(block)))
                    fence, block = "", []
                else:
                    block.append(line)
            elif line.startswith("```"):
                fence = line
            elif heading := re.match(r"#+ (.*)\n", line):
                title = heading[1]
                assert title not in self._sections, f"{self.name} has two headings `{title}`"
                self._sections[title] = []
                continue
            self._sections[title].append(line)
        assert not fence, f"{self.name} has a block without an end"

    @property
    def headings(self) -> list[str]:
        """All headings, in their order."""
        return [title for title in self._sections if title]

    def section(self, title: str) -> str:
        """Return the text under a heading, up to the next heading of any level."""
        return "".join(self._sections[title])

    def blocks(self, title: str, language: str) -> list[str]:
        """Return the blocks of one language under a heading."""
        return [block.text for block in self._blocks if (block.section, block.language) == (title, language)]

    def blocks_of(self, language: str) -> list[str]:
        """Return all blocks of one language."""
        return [block.text for block in self._blocks if block.language == language]

    def inventory(self) -> Counter[tuple[str, str]]:
        """Count the blocks by heading and language. A test names each, so that no new block is left unchecked."""
        return Counter((block.section, block.language) for block in self._blocks)

    def rows(self, title: str) -> list[list[str]]:
        """Return the cells of the tables under a heading, without the header rows."""
        lines = self.section(title).splitlines()
        rows = [line for line in lines if line.startswith("|")]
        rules = {number for number, line in enumerate(rows) if re.fullmatch(r"[|\- ]+", line)}
        wanted = [line for number, line in enumerate(rows) if number not in rules and number + 1 not in rules]
        return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))] for line in wanted]

    def broken_links(self) -> Iterator[str]:
        """Yield each link to a file or a heading that does not exist, and each picture that does not."""
        pictures = re.findall(r'\bsrc(?:set)?="([^"]+)"', self.text)
        for target in pictures + re.findall(r"\]\(([^)\s]+)\)", self.text):
            if re.match(r"\w+:", target):
                continue
            file, _, anchor = target.partition("#")
            path = (self.path.parent / file).resolve() if file else self.path
            if not path.exists() or (anchor and anchor not in _anchors(path)):
                yield target


def _anchors(path: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a document."""
    return {anchor(heading) for heading in Page(str(path.relative_to(ROOT))).headings}


def anchor(heading: str) -> str:
    """Return the anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def with_netcat(shell: Shell, script: str) -> str:
    """Return the script with a stand-in for ``nc -N -U``, which not every machine has."""
    nc = shell.folder / "tools" / "nc"
    nc.parent.mkdir(exist_ok=True)
    nc.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT}/tests/protocol/netcat.py" "$3"\n')
    nc.chmod(0o755)
    return f'PATH="{nc.parent}:$PATH"; {script}'


def follow(shell: Shell, script: str) -> list[str]:
    """Run a block in which no command may fail. Return the lines that it printed."""
    ran = shell.run(f"set -e; {script}", timeout=PATIENT, HOME=str(shell.folder))
    assert ran.status == 0, f"{script}\n{ran.text}\n{ran.errors}"
    return ran.lines
