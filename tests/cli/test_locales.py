"""The commands under locales whose encoding is not UTF-8."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import Shell, short_folder

LOCALES = {"ja_JP.EUC-JP": "EUC-JP", "zh_CN.GBK": "GBK"}


@pytest.fixture(scope="module")
def locales(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with these locales, which are made here: few machines have them."""
    if shutil.which("localedef") is None:
        pytest.skip("localedef is not installed")
    folder = tmp_path_factory.mktemp("locales")
    for name, charmap in LOCALES.items():
        made = subprocess.run(
            ["localedef", "-i", name.partition(".")[0], "-f", charmap, str(folder / name)],
            capture_output=True,
            check=False,
        )
        if made.returncode > 1 or not (folder / name).exists():
            pytest.skip(f"localedef cannot make {name}: {made.stderr.decode(errors='replace').strip()}")
    return folder


@pytest.fixture
def alone() -> Iterator[Shell]:
    """A shell without a daemon."""
    with short_folder() as folder:
        shell = Shell(folder / "s", folder)
        try:
            yield shell
        finally:
            shell.run("eoq stop")


@pytest.mark.parametrize("locale", LOCALES)
@pytest.mark.slow
def test_all_commands_work_in_a_locale_that_is_not_utf_8(alone: Shell, locales: Path, locale: str) -> None:
    script = """
        python -c 'import sys; assert sys.stdout.encoding.lower() in ("euc_jp", "gbk"), sys.stdout.encoding' || exit 99
        eoq --help >help && eoq send --help >>help
        eoq start
        printf 'h\\303\\251llo \\342\\202\\254' | eoq send q --id one --header 'a=b' >/dev/null
        eoq peek q; eoq show q one >/dev/null
        eoq receive q --json
    """
    ran = alone.run(script, LC_ALL=locale, LOCPATH=str(locales), PYTHONUTF8="0")
    assert ran.status == 0, ran.errors
    assert b'"body": "h\\u00e9llo \\u20ac"' in ran.stdout, ran.stdout
    assert (alone.folder / "help").read_bytes()


@pytest.mark.parametrize("locale", LOCALES)
@pytest.mark.first_by_default
def test_an_error_with_any_characters_is_printed(alone: Shell, locales: Path, locale: str) -> None:
    ran = alone.run("eoq send 'caf\u00e9' x", LC_ALL=locale, LOCPATH=str(locales), PYTHONUTF8="0")
    assert ran.status in (2, 65)
    assert ran.errors.startswith("eoq: ") or "Usage" in ran.errors


@pytest.mark.slow
def test_names_of_files_that_are_no_utf_8_are_used_and_printed_as_they_are(alone: Shell) -> None:
    script = """
        name=$(printf 'd\\377')
        eoq start --db "$name.db"
        eoq send q x >/dev/null && eoq queues >/dev/null
        eoq backup "$name.copy" --db "$name.db" && eoq stop
        eoq restore "$name.copy" --db "$name.db" --yes
    """
    ran = alone.run(script, PYTHONUTF8="1")
    assert ran.status == 0, ran.errors
    kept = [line for line in ran.stdout.splitlines() if b"before-restore" in line]
    assert b"d\xff.copy" in ran.stdout.splitlines()
    assert len(kept) == 1
    assert b"d\xff.db.before-restore" in kept[0]
