"""The public names: what `storaged` says it has, what it has, and what the documentation lists."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

import storaged

ROOT = Path(__file__).parent.parent
INIT = ROOT / "storaged" / "__init__.py"


def names_for_type_checkers() -> set[str]:
    """Return the public names that a type checker finds in the package."""
    found = set()
    for node in ast.parse(INIT.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            imports = [inner for inner in node.body if isinstance(inner, ast.ImportFrom)]
            found |= {alias.asname or alias.name for part in imports for alias in part.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
    return {name for name in found if not name.startswith("_")}


def test_no_name_twice() -> None:
    assert len(storaged.__all__) == len(set(storaged.__all__))


def test_type_checkers_and_the_program_see_the_same_names() -> None:
    assert names_for_type_checkers() == set(storaged.__all__) - {"__version__"}


@pytest.mark.parametrize("name", storaged.__all__)
def test_name_exists(name: str) -> None:
    value = getattr(storaged, name)
    assert value is getattr(storaged, name)
    assert name in dir(storaged)
    if isinstance(value, type):
        assert value.__doc__, f"{name} has no docstring"
        home = importlib.import_module(value.__module__)
        assert getattr(home, value.__name__) is value


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = getattr(storaged, "no_such_name")  # noqa: B009 -- type checkers know better


def test_star_import() -> None:
    space: dict[str, object] = {}
    exec("from storaged import *", space)
    assert set(storaged.__all__) <= set(space)


def test_documentation_lists_every_name() -> None:
    text = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    words = set(re.findall(r"\w+", text))
    missing = [name for name in storaged.__all__ if name not in words and name != "__version__"]
    assert not missing, f"docs/library.md does not mention {missing}"
