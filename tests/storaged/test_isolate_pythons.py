"""Children under other interpreters than ours, of parents that end without ending them."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from storaged import isolate
from tests.doubles import eventually
from tests.storaged.test_isolate import gone

_SYSTEM = "/usr/bin/python3"
_PACKAGE = Path(isolate.__file__).parent
#: Prints what a child loads with its service that the interpreter does not bring.
_LOADED = """
import importlib.util, sys
before = set(sys.modules)
spec = importlib.util.spec_from_file_location("__script__", sys.argv[1] + "/isolatescript.py")
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
script.load(sys.argv[1], sys.argv[2])
assert not hasattr(sys.modules["storaged"], "__file__")
new = {name for name in sys.modules if name not in before}
print(*(name for name in new if name.partition(".")[0] not in sys.stdlib_module_names))
"""


def _pythons() -> list[str]:
    """Return our interpreter, the system's, and one of each further version that is here."""
    found = {sys.version_info[:2]: sys.executable}
    for path in sorted(Path(sys.base_prefix).parent.glob("3.1[1-9].*/bin/python3")):
        minor = int(path.parts[-3].split(".")[1])
        found.setdefault((3, minor), str(path))
    return [*found.values(), _SYSTEM]


def _require(python: str, oldest: str = "3.8") -> None:
    """Skip the test unless there is such an interpreter, of that version at least."""
    code = f"import sys; sys.exit(sys.version_info < ({oldest.replace('.', ',')}))"
    if not os.access(python, os.X_OK) or subprocess.run([python, "-c", code]).returncode:
        pytest.skip(f"there is no {python} of version {oldest}")


def _parent(mode: str, parent: str, child: str, note: Path) -> subprocess.Popen[bytes]:
    argv = [parent, "-X", "dev", "-m", "tests.storaged.isolateparent", mode, child, str(note)]
    return subprocess.Popen(
        argv, cwd=_PACKAGE.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.mark.parametrize(
    ("parent", "child"),
    [(sys.executable, sys.executable), (_SYSTEM, sys.executable)]
    + [(python, _SYSTEM) for python in _pythons()],
)
def test_parents_and_children_of_all_versions(parent: str, child: str, tmp_path: Path) -> None:
    """A parent that does not end its child at its own end does not hang, and says nothing."""
    _require(parent, "3.11")
    _require(child)
    with _parent("all", parent, child, tmp_path / "note") as process:
        said, complaints = process.communicate(timeout=60)
    assert (process.returncode, complaints) == (0, b"")
    eventually(lambda: gone(int(said)))
    assert (tmp_path / "note").read_text() == "closed"


def test_the_child_of_a_parent_that_was_killed_ends_its_work(tmp_path: Path) -> None:
    note = tmp_path / "note"
    with _parent("hang", sys.executable, sys.executable, note) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.kill()
    eventually(lambda: gone(pid))
    assert note.read_text() == "finished closed"


def _imported(path: Path) -> Iterator[str]:
    """Yield the modules that a file names, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level
            yield str(node.module)


@pytest.mark.parametrize("name", ["backends/__init__", "backends/ceph/*", "isolatescript"])
def test_the_child_needs_nothing_but_the_standard_library(name: str) -> None:
    """It may be another Python than ours; the bindings are asked for when they are needed."""
    found = list(_PACKAGE.glob(f"{name}.py"))
    assert found
    for path in found:
        for imported in _imported(path):
            ours = path.parent.name == "ceph" and imported.startswith("storaged.backends.ceph.")
            assert ours or imported.partition(".")[0] in sys.stdlib_module_names, path


@pytest.mark.parametrize("python", _pythons())
def test_the_child_loads_nothing_else_of_ours(python: str) -> None:
    _require(python)
    argv = [python, "-I", "-c", _LOADED, str(_PACKAGE), "storaged.backends.ceph.service"]
    loaded = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.split()
    assert "storaged.backends.ceph.service" in loaded
    for name in loaded:
        assert name.startswith("storaged.backends") or name in ("storaged", "__script__")


@pytest.mark.parametrize("version", ["3.9", "3.10"])
def test_what_a_child_runs_is_for_older_pythons_too(version: str) -> None:
    found = sorted(Path(sys.base_prefix).parent.glob(f"{version}.*/bin/python3"))
    if not found:
        pytest.skip(f"there is no Python {version} beside ours")
    loading = _LOADED.partition("assert")[0]
    argv = [str(found[0]), "-I", "-c", loading, str(_PACKAGE), "storaged.backends.ceph.service"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
