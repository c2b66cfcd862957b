"""The page on the architecture is true: its rooms hold every file, and its arrows are the imports."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = (ROOT / "eoq" / "docs" / "architecture.md").read_text()
FILES: Final = {
    str(path.relative_to(ROOT)): path for top in ("eoq", "cli") for path in sorted((ROOT / top).rglob("*.py"))
}
FACE: Final = "eoq/__init__.py"
"""The file that hands the public names on. It imports all rooms, and only the command line imports it."""


def _section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def _rooms() -> dict[str, list[str]]:
    """Return the rooms of the page, with the patterns of their files."""
    rows = re.findall(r"^\| `([\w-]+)` \| ([^|]+) \|", _section("The rooms"), re.MULTILINE)
    return {room: re.findall(r"`([^`]+)`", files) for room, files in rows}


def _room_of(file: str) -> list[str]:
    return [room for room, patterns in _rooms().items() if any(fnmatch(file, pattern) for pattern in patterns)]


def _arrows() -> set[tuple[str, str]]:
    """Return the arrows of the drawing."""
    (drawing,) = re.findall(r"```mermaid\n(.*?)```", _section("The floors"), re.DOTALL)
    arrows: set[tuple[str, str]] = set()
    for line in drawing.splitlines():
        if "-->" in line:
            left, right = line.split("-->")
            arrows |= {(a.strip(), b.strip()) for a in left.split("&") for b in right.split("&")}
    return arrows


def _module(file: str) -> str:
    parts = list(Path(file).with_suffix("").parts)
    if parts[0] == "cli":
        parts.insert(0, "eoq")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES: Final = {_module(file): file for file in FILES}


def _imports(file: str) -> Iterator[str]:
    """Yield the files that a file imports, also those that it imports in a function or for its types."""
    own = _module(file).split(".")
    package = own if file.endswith("__init__.py") else own[:-1]
    for node in ast.walk(ast.parse(FILES[file].read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *(node.module.split(".") if node.module else [])])
            for name in node.names:
                found = MODULES.get(f"{stem}.{name.name}") or MODULES.get(stem)
                if found is not None:
                    yield found


def _edges() -> dict[tuple[str, str], list[str]]:
    """Return the imports between rooms, with the files that make them."""
    edges: dict[tuple[str, str], list[str]] = {}
    for file in FILES:
        for imported in _imports(file):
            if FACE not in (file, imported):
                edge = _room_of(file)[0], _room_of(imported)[0]
                if edge[0] != edge[1]:
                    edges.setdefault(edge, []).append(f"{file} imports {imported}")
    return edges


def _reachable(arrows: set[tuple[str, str]], room: str) -> set[str]:
    found: set[str] = set()
    ahead = [room]
    while ahead:
        here = ahead.pop()
        for a, b in arrows:
            if a == here and b not in found:
                found.add(b)
                ahead.append(b)
    return found


def test_each_file_is_in_one_room() -> None:
    rooms = {file: _room_of(file) for file in FILES if file != FACE}
    wrong = {file: found for file, found in rooms.items() if len(found) != 1}
    assert not wrong, wrong


def test_each_pattern_of_a_room_has_files() -> None:
    patterns = [pattern for patterns in _rooms().values() for pattern in patterns]
    assert not [pattern for pattern in patterns if not any(fnmatch(file, pattern) for file in FILES)]


def test_each_import_follows_the_arrows() -> None:
    arrows = _arrows()
    below = {room: _reachable(arrows, room) for room in _rooms()}
    wrong = {edge: files for edge, files in _edges().items() if edge[1] not in below[edge[0]]}
    assert not wrong, wrong


def test_each_arrow_is_an_import() -> None:
    assert not _arrows() - set(_edges())


def test_no_arrow_leads_back_up() -> None:
    arrows = _arrows()
    assert not [room for room in _rooms() if room in _reachable(arrows, room)]


def test_each_file_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"`([\w./]+\.(?:py|sql|md|toml))`", PAGE))
    there = {str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_file()}
    missing = [name for name in named if not any(path == name or path.endswith(f"/{name}") for path in there)]
    assert not missing, missing
