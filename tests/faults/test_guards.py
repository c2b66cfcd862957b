"""Each guard that a guarantee rests on is removed once, and a test must fail. The guards are in ``.ci/guards.py``."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pytest

SCRIPT: Final = Path(__file__).parents[2] / ".ci" / "guards.py"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("eoq_guards", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look for it there
    spec.loader.exec_module(module)
    return module


script = _load()


@pytest.fixture(scope="module")
def guards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The checks, with what they know of the tests that pass."""
    yield script.Guards(tmp_path_factory.mktemp("guards"))


@pytest.mark.slow
@pytest.mark.parametrize("guard", script.GUARDS, ids=lambda guard: guard.name)
def test_the_loss_of_a_guard_fails_a_test(guards: Any, guard: Any) -> None:
    try:
        guards.check(guard)
    except script.Skipped as reason:
        pytest.skip(str(reason))


def test_each_guard_has_a_name_of_its_own_and_its_text_is_there_once() -> None:
    names = [guard.name for guard in script.GUARDS]
    assert len(set(names)) == len(names)
    for guard in script.GUARDS:
        assert (script.ROOT / guard.file).read_text().count(guard.old) == 1, guard.name
        assert (script.ROOT / guard.tests).is_file(), guard.name
