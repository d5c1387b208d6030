"""The examples of the documents run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import storaged

TOP = Path(__file__).parent.parent
_BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def blocks(document: str) -> list[str]:
    return _BLOCK.findall((TOP / document).read_text())


@pytest.mark.parametrize("code", blocks("docs/library.md"))
def test_recipe_runs(code: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(code, "docs/library.md", "exec"), {"storaged": storaged, "root": tmp_path})
    assert not list(tmp_path.rglob(".storaged-*"))


def test_readme_session_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("README.md")
    exec(compile(code, "README.md", "exec"), {})
    assert "web1.qcow2" in capsys.readouterr().out


def test_backend_example_runs(tmp_path: Path) -> None:
    (code,) = blocks("docs/backends.md")
    names: dict[str, object] = {"__name__": "example"}
    exec(compile(code, "docs/backends.md", "exec"), names)
    backend = names["Nothing"]
    with storaged.open(tmp_path, backends={"nothing": backend}) as storage:  # type: ignore[dict-item]
        pool = storage.define_pool("<pool type='nothing'><name>n</name></pool>")
        pool.start()
        assert pool.names() == []
        pool.stop()
