"""The built distribution: what is in it, and that it works in a fresh virtual environment.

Nothing is fetched: the build runs with the setuptools of this environment, and the fresh one sees
this environment's packages (but not this checkout) for what storaged depends on.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from storaged.version import VERSION

ROOT = Path(__file__).parent.parent
STEM = f"storaged-{VERSION}"

pytestmark = [
    pytest.mark.install,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed"),
    pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs the files that git lists"),
    pytest.mark.skipif(
        int(version("setuptools").partition(".")[0]) < 77,
        reason="the build needs setuptools >= 77 (make setup)",
    ),
]

IMPORT_ALL = """
import importlib, pkgutil, sys, storaged
names = [info.name for info in pkgutil.walk_packages(storaged.__path__, "storaged.")]
for name in names:
    if not name.endswith(".__main__"):  # that would run the program
        importlib.import_module(name)
print(storaged.__file__, *names)
"""


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def project_files() -> list[str]:
    """Return what belongs to the project: tracked files, and new ones that are not ignored."""
    listed = run("git", "-c", "safe.directory=*", "ls-files", "-zco", "--exclude-standard")
    return [name for name in listed.split("\0") if name and os.path.lexists(ROOT / name)]


def modules() -> set[str]:
    """Return the import names of all modules below `storaged`."""
    found = set()
    for name in project_files():
        path = Path(name)
        parts = path.with_suffix("").parts
        if path.suffix != ".py" or parts[0] not in ("storaged", "backends", "formats"):
            continue
        parts = parts if parts[0] == "storaged" else ("storaged", *parts)
        found.add(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found - {"storaged"}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project as a fresh clone would have it."""
    tree = tmp_path_factory.mktemp("clone")
    for name in project_files():
        target = tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target, follow_symlinks=False)
    return tree


def build(source: Path, kind: str, target: Path) -> Path:
    run(sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "-o", target, source)
    [made] = target.iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the checkout."""
    return build(tree, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution."""
    return build(tree, "sdist", tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment with the wheel in it."""
    venv = tmp_path_factory.mktemp("fresh")
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    python = venv / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    run(*pip, "install", "-q", "--no-index", "--no-deps", wheel)
    # A path entry is searched after the environment's own, and its .pth files are not read.
    site = Path(sysconfig.get_path("purelib", vars={"base": str(venv)}))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return venv


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_packages_are_the_folders_with_an_init() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = settings["tool"]["setuptools"]["packages"]
    assert len(packages) == len(set(packages))
    folders = {str(Path(name).parent) for name in project_files() if name.endswith("__init__.py")}
    named = {folder.replace("/", ".") for folder in folders if folder.partition("/")[0] != "tests"}
    assert set(packages) == {
        name if name.partition(".")[0] == "storaged" else f"storaged.{name}" for name in named
    }


def test_wheel_has_one_top_level_name(wheel: Path) -> None:
    names = contents(wheel)
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"storaged", f"{STEM}.dist-info"}
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read(f"{STEM}.dist-info/top_level.txt").split() == [b"storaged"]


def test_wheel_has_every_module_and_the_data(wheel: Path) -> None:
    names = contents(wheel)
    for module in modules():
        path = module.replace(".", "/")
        assert {f"{path}.py", f"{path}/__init__.py"} & names, f"{module} is not in the wheel"
    data = {name for name in project_files() if name.startswith("storaged/schemas/")}
    assert data | {"storaged/py.typed"} <= names


def test_sdist_has_the_top_level_folders_and_builds_the_same_wheel(
    sdist: Path, wheel: Path, tmp_path: Path
) -> None:
    with tarfile.open(sdist) as archive:
        names = set(archive.getnames())
        archive.extractall(tmp_path, filter="data")
    wanted = {"backends/__init__.py", "formats/__init__.py", "pyproject.toml", "LICENSE"}
    assert {f"{STEM}/{name}" for name in wanted} <= names
    again = build(tmp_path / STEM, "wheel", tmp_path / "again")
    assert contents(again) == contents(wheel)


def test_every_module_imports_without_warnings(fresh: Path, tmp_path: Path) -> None:
    python = fresh / "bin" / "python"
    file, *names = run(python, "-I", "-W", "error", "-c", IMPORT_ALL, cwd=tmp_path).split()
    assert Path(file).is_relative_to(fresh)
    assert set(names) == modules()


def test_storagectl_runs(fresh: Path, tmp_path: Path) -> None:
    assert VERSION in run(fresh / "bin" / "storagectl", "--version", cwd=tmp_path)
