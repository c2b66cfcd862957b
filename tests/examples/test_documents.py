"""What holds for every document: its links lead somewhere, and its Python and its JSON can be read."""

from __future__ import annotations

from typing import Final

import pytest

from tests.examples.pages import ROOT, Page

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


def test_the_contents_list_every_document() -> None:
    contents = Page("eoq/docs/README.md").text
    for path in (ROOT / "eoq" / "docs").glob("*.md"):
        assert path.name == "README.md" or f"]({path.name})" in contents, path.name


@pytest.mark.parametrize(
    "name", [f"eoq/docs/{page}.md" for page in ("guide", "recipes", "guarantees", "configuration", "operations")]
)
def test_the_first_lines_list_every_section(name: str) -> None:
    page = Page(name)
    for line in page.text.splitlines():
        if line.startswith("## "):
            assert f"[{line.removeprefix('## ')}](#" in page.text.replace("\n", " "), line
