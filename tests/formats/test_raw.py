"""Raw images: sizes, sparseness, allocation, cancel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from storaged.formats import raw, syscalls
from storaged.formats.file import FileHandle
from tests.formats.qemu import open_native

MIB = 1 << 20


@pytest.mark.parametrize(
    ("capacity", "allocation", "size", "least"),
    [
        (0, 0, 0, 0),
        (1000, 0, 1000, 0),
        (1 << 40, 0, 1 << 40, 0),
        (10 * MIB, 10 * MIB, 10 * MIB, 10 * MIB),
        (10 * MIB, 3 * MIB, 10 * MIB, 3 * MIB),
        (2 * MIB, 5 * MIB, 5 * MIB, 5 * MIB),
    ],
)
def test_create(tmp_path: Path, capacity: int, allocation: int, size: int, least: int) -> None:
    with open_native(tmp_path / "raw") as handle:
        raw.create(handle, capacity, allocation=allocation)
    status = (tmp_path / "raw").stat()
    assert status.st_size == size
    assert least <= status.st_blocks * 512 <= least + MIB


def test_progress_and_cancel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
        raise OSError(95, os.strerror(95))

    monkeypatch.setattr(syscalls, "fallocate", fallocate)
    seen: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        if done > 8 * MIB:
            raise InterruptedError

    with open_native(tmp_path / "raw") as handle, pytest.raises(InterruptedError):
        raw.create(handle, 64 * MIB, allocation=64 * MIB, checkpoint=stop)
    assert [total for _, total in seen] == [64 * MIB] * len(seen)
    assert len(seen) > 1
    assert (tmp_path / "raw").stat().st_size < 32 * MIB


def test_what_cannot_fit_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else all others on the file system would find it full for a while."""
    begun: list[int] = []
    monkeypatch.setattr(syscalls, "fallocate", lambda *given: begun.append(given[-1]))
    with (
        (tmp_path / "a").open("w+b") as file,
        pytest.raises(OSError, match="No space left on device"),
    ):
        raw.create(FileHandle(file.fileno(), owned=False), 1 << 60, allocation=1 << 60)
    assert begun == []
