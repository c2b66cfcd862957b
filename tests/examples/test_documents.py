"""What holds for every document: its links lead somewhere, its Python can be read, its commands and extras exist."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator
from importlib import import_module
from typing import Final

import click
import pytest

from tests.examples.pages import ROOT, Page, anchor

NAMES: Final = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "eoq/**/*.md", "examples/**/*.md")
    for path in ROOT.glob(pattern)
)


@pytest.mark.parametrize("name", NAMES)
def test_each_link_leads_to_a_file_and_a_heading(name: str) -> None:
    assert list(Page(name).broken_links()) == []


@pytest.mark.parametrize("name", NAMES)
def test_each_python_block_compiles(name: str) -> None:
    for code in Page(name).blocks_of("python"):
        compile(code, name, "exec")


CONTENTS: Final = "eoq/docs/README.md"


@pytest.mark.parametrize("name", [name for name in NAMES if name != CONTENTS])
def test_the_contents_list_every_document_and_each_leads_back(name: str) -> None:
    assert f"]({os.path.relpath(ROOT / name, ROOT / 'eoq/docs')})" in Page(CONTENTS).text
    if name != "CHANGELOG.md":
        assert f"]({os.path.relpath(ROOT / CONTENTS, (ROOT / name).parent)})" in Page(name).text


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("eoq/docs/") and name != CONTENTS])
def test_the_first_lines_list_every_section(name: str) -> None:
    page = Page(name)
    first = page.text.partition("\n## ")[0]
    for line in page.text.splitlines():
        if line.startswith("## "):
            assert f"](#{anchor(line.removeprefix('## '))})" in first, line


def _commands(page: Page) -> Iterator[str]:
    """Yield each command line of eoq in a document: in its blocks, and in its text between backticks."""
    blocks = "\n".join(page.blocks_of("sh")).replace("\\\n", " ")
    text = re.sub(r"^```.*?^```", "", page.text, flags=re.DOTALL | re.MULTILINE)
    for code in [*blocks.splitlines(), *re.findall(r"`([^`]+)`", text)]:
        for line in re.split(r"[|;&]|\$\(", re.split(r"(?:^|\s)#", code)[0]):
            if re.match(r"eoq [a-z]", line.strip()):
                yield " ".join(line.split())


def _unknown(line: str) -> str | None:
    """Return what of a command line does not exist: a command, or an option of it."""
    words = line.split()[1:]
    command: click.Command = import_module("eoq.cli.commands").commands
    while isinstance(command, click.Group) and words and re.fullmatch(r"[a-z][a-z-]*", words[0]):
        found = command.get_command(click.Context(command), words[0])
        if found is None:
            return f"there is no `{words[0]}` in `{line}`"
        command = found
        words = words[1:]
    if "--" in words:
        words = words[: words.index("--")]
    known = {name for option in command.params for name in [*option.opts, *option.secondary_opts]} | {"--help"}
    wrong = [word for word in words if (name := word.partition("=")[0]).startswith("--") and name not in known]
    return f"there is no {wrong} in `{line}`" if wrong else None


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name != "CHANGELOG.md"])
def test_each_command_and_option_that_is_named_exists(name: str) -> None:
    assert [wrong for line in _commands(Page(name)) if (wrong := _unknown(line))] == []


def test_each_extra_that_is_named_exists() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = set(tomllib.load(file)["project"]["optional-dependencies"])
    named = {
        extra
        for name in NAMES
        for found in re.findall(r"(?:eoq|\.)\[([\w,]+)\]'", Page(name).text)
        for extra in found.split(",")
    }
    assert named and named <= extras
