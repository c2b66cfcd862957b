"""What holds for every document: its links lead somewhere, and its Python and its JSON can be read."""

from __future__ import annotations

import os
from typing import Final

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
