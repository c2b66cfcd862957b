"""The page of the guarantees is complete, and its diagrams and tables name what there is."""

from __future__ import annotations

import re
from typing import Final, get_args, get_type_hints

from eoq.daemon.requests import Peek
from tests.examples.pages import ROOT, Page

PAGE: Final = Page("eoq/docs/guarantees.md")


def test_no_block_is_left_out() -> None:
    assert PAGE.inventory() == {("How it works", "mermaid"): 1, ("The life of a message", "mermaid"): 1}


def test_each_guarantee_is_stated() -> None:
    numbers = [heading.split()[0] for heading in PAGE.headings if re.match(r"G\d+ ", heading)]
    assert numbers == [f"G{number}" for number in range(1, 11)]
    assert all(PAGE.section(heading).strip() for heading in PAGE.headings if re.match(r"G\d+ ", heading))


def test_the_diagram_has_every_state_and_no_other() -> None:
    (diagram,) = PAGE.blocks("The life of a message", "mermaid")
    drawn = set(re.findall(r"(\w+) -->", diagram) + re.findall(r"--> (\w+)", diagram))
    assert drawn == set(get_args(get_type_hints(Peek)["state"]))


def test_the_folders_of_tests_are_there() -> None:
    folders = [name.strip("`") for name, _does in PAGE.rows("How they are tested")]
    assert folders
    for folder in folders:
        assert list((ROOT / folder).glob("test_*.py")), folder
