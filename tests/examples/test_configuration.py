"""The page of the configuration can be followed, and its tables are those of the code."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Final

import click
import msgspec

from eoq.daemon.config.access import QueueAccess
from eoq.daemon.config.loader import load
from eoq.daemon.config.model import Config
from eoq.daemon.config.settings import QueueSettings, StorageSettings
from tests.examples.pages import Page, follow
from tests.support import Shell

PAGE: Final = Page("eoq/docs/configuration.md")


def test_no_block_is_left_out() -> None:
    assert PAGE.inventory() == {("The file", "toml"): 1, ("The file", "sh"): 1, ("Who may", "toml"): 1}


def test_the_file_is_right_and_can_be_explained(alone: Shell, folder: Path) -> None:
    (file,) = PAGE.blocks("The file", "toml")
    (commands,) = PAGE.blocks("The file", "sh")
    (folder / "eoq.toml").write_text(file)
    first, *settings = follow(alone, commands)
    assert "is right" in first
    values = {name: value for name, value, *_source in (line.split() for line in settings)}
    assert values["max_attempts"] == "3"
    assert values["rate"] == "10"
    assert values["retry_first"] == "5"
    assert values["retention"] == "604800"


def test_each_setting_of_a_queue_is_listed_with_its_default() -> None:
    listed = {name.strip("`"): default for name, default, _means in PAGE.rows("Settings of a queue")}
    defaults = msgspec.structs.asdict(QueueSettings())
    assert listed == {name: _shown(value) for name, value in defaults.items()}


def _shown(value: object) -> str:
    """Return a default as the page shows it."""
    return "none" if value is None else f"{value:.0f}" if isinstance(value, float) and value % 1 == 0 else str(value)


def test_each_section_is_listed() -> None:
    text = PAGE.section("Other sections")
    assert {name.strip("`[]") for name, _sets in PAGE.rows("Other sections")} == {*Config.__struct_fields__} - {
        "queues"
    }
    for name in StorageSettings.__struct_fields__:
        assert f"`{name}`" in text


def test_the_permissions_are_right_but_for_the_names_of_this_machine(tmp_path: Path) -> None:
    (file,) = PAGE.blocks("Who may", "toml")
    for name in ("www-data", "worker", "prometheus", "@ops", "eoq"):
        file = file.replace(f'"{name}"', '"@0"' if name.startswith("@") else '"0"')
    (tmp_path / "eoq.toml").write_text(file)
    config = load(tmp_path / "eoq.toml")
    rights = {right.strip("`") for right, _allows in PAGE.rows("Who may")}
    assert rights == {*QueueAccess.__struct_fields__, "observe", "once"}
    assert {place.rpartition(".")[2] for place, _ in config.permissions.entries()} >= {"send", "receive", "administer"}


def test_each_flag_is_listed_with_its_variable() -> None:
    listed = {flag.strip("`").split()[0]: variable.strip("`") for flag, variable, _ in PAGE.rows("Flags and variables")}
    options = [option for option in import_module("eoq.cli.daemon").daemon.params if isinstance(option, click.Option)]
    assert listed == {option.opts[0]: option.envvar for option in options if option.envvar}
    assert re.findall(r"`EOQ_\w+`", PAGE.section("Flags and variables"))
