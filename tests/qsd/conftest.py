"""Nothing that a daemon leaves behind goes unseen."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.qsd.images import children


@pytest.fixture(autouse=True)
def _nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No process, no descriptor, no temporary file."""
    places = tmp_path / "temporary"
    places.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(places))
    before, fds = children(), _descriptors()
    yield
    assert children() <= before
    assert _descriptors() <= fds
    assert not list(places.iterdir())


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
