"""The package as it is installed: wheel, sdist and editable, with nothing but `eoq` in site-packages."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUFFIXES = {".py", ".sql", ".md", ".typed", ".html", ".css", ".js"}
NEEDED = {
    str(Path("eoq", path.relative_to(ROOT)) if top == "cli" else path.relative_to(ROOT))
    for top in ("eoq", "cli")
    for path in (ROOT / top).rglob("*")
    if path.suffix in SUFFIXES
}
"""Every file of the package: the list of packages in pyproject.toml is written by hand."""


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist, built from a copy of what belongs to the package."""
    source = tmp_path_factory.mktemp("source") / "eoq"
    source.mkdir()
    for name in ("eoq", "cli"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    target = tmp_path_factory.mktemp("dist")
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(target), str(source))
    return target


@pytest.mark.slow
def test_the_wheel_holds_eoq_and_nothing_else(distributions: Path) -> None:
    (wheel,) = distributions.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert names >= NEEDED
    assert {name.split("/")[0].split("-")[0] for name in names} == {"eoq"}
    assert not [name for name in names if "pictures" in name], "they are for readers of the tree"


@pytest.mark.slow
def test_the_sdist_builds_the_same_wheel(distributions: Path, tmp_path: Path) -> None:
    (sdist,) = distributions.glob("*.tar.gz")
    (wheel,) = distributions.glob("*.whl")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    _run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp_path / "again"), str(source))
    (again,) = (tmp_path / "again").glob("*.whl")
    assert set(zipfile.ZipFile(again).namelist()) == set(zipfile.ZipFile(wheel).namelist())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", pytest.param("editable", marks=pytest.mark.slow)])
def test_an_installed_eoq_runs(distributions: Path, tmp_path: Path, kind: str) -> None:
    environment = tmp_path / "venv"
    _run(sys.executable, "-m", "venv", "--without-pip", str(environment))
    python = str(environment / "bin" / "python")
    what = [str(next(distributions.glob("*.whl")))]
    if kind == "editable":
        source = tmp_path / "checkout"
        source.mkdir()
        for name in ("eoq", "cli"):
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, source / name)
        what = ["--no-build-isolation", "--editable", str(source)]
    _allow_packages_of(environment)
    _run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--force-reinstall", *what)
    assert _run(str(environment / "bin" / "eoq"), "--version").startswith("eoq, version ")
    where = _run(python, "-c", "import eoq, eoq.cli; print(eoq.__file__)")
    assert where.startswith(str(tmp_path))
    installed = {path.name for path in _site_packages(environment).iterdir() if "eoq" in path.name or path.suffix == ""}
    assert not installed & {"cli", "tests", "examples", "daemon"}


def _site_packages(environment: Path) -> Path:
    (found,) = environment.glob("lib/python*/site-packages")
    return found


def _allow_packages_of(environment: Path) -> None:
    """Lets the new environment find the packages of this one, behind its own."""
    (_site_packages(environment) / "others.pth").write_text(
        "\n".join(path for path in sys.path if "site-packages" in path)
    )


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
