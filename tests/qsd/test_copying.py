"""Jobs inside of the daemon: what they copy, their progress, their cancel."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from storaged.errors import Cancelled, OperationFailed, OperationUnsupported
from storaged.qsd import Image, backup, commit, export, mirror, stream
from tests.formats import qemu
from tests.qsd.images import MIB, Watched, image, made, needed, opened

pytestmark = needed


def raw(path: Path, size: int, data: int) -> Path:
    with path.open("wb") as file:
        file.write(os.urandom(data))
        file.truncate(size)
    return path


@pytest.mark.parametrize("format", ["vhdx", "qcow2", "vdi"])
def test_mirror(tmp_path: Path, format: str) -> None:
    source, target = raw(tmp_path / "s", 96 * MIB, 48 * MIB), tmp_path / "t"
    made(target, format, 96 * MIB)
    job = Watched()
    with image(source, "raw", writable=False) as old, image(target, format) as new:
        mirror(old, new, job)
    qemu.run("qemu-img", "compare", "-f", "raw", "-F", format, source, target)
    if format == "qcow2":
        assert target.stat().st_blocks * 512 < 64 * MIB
    assert job.told == sorted(job.told)
    assert job.told[-1] == (96 * MIB, 96 * MIB)


def test_backup_compressed(tmp_path: Path) -> None:
    source, target = tmp_path / "s", made(tmp_path / "t", "qcow2", 16 * MIB)
    source.write_bytes(b"compresses well " * MIB)
    with image(source, "raw", writable=False) as old, image(target, "qcow2") as new:
        backup(old, new, compress=True)
    qemu.run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", source, target)
    assert target.stat().st_blocks * 512 < 2 * MIB


def test_cancel(tmp_path: Path) -> None:
    source, target = raw(tmp_path / "s", 128 * MIB, 128 * MIB), tmp_path / "t"
    made(target, "vdi", 128 * MIB)
    job = Watched(cancel_at=1)
    with image(source, "raw", writable=False) as old, image(target, "vdi") as new:
        with pytest.raises(Cancelled, match="clone was cancelled"):
            mirror(old, new, job)
        cancelled = time.monotonic() - job.beat
    assert 0 < job.told[-1][0] <= 128 * MIB
    assert cancelled < 2


def test_failure(tmp_path: Path) -> None:
    """The target is too small."""
    source, target = raw(tmp_path / "s", 4 * MIB, MIB), made(tmp_path / "t", "vdi", MIB)
    with (
        image(source, "raw", writable=False) as old,
        image(target, "vdi") as new,
        pytest.raises(OperationFailed, match="cannot copy an image of format 'raw': "),
    ):
        mirror(old, new)


def test_commit_and_stream(tmp_path: Path) -> None:
    base, top = made(tmp_path / "base", "qcow2", 8 * MIB), tmp_path / "top"
    qemu.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top)
    with opened(top) as upper, opened(base) as lower:
        chain = Image(upper, "qcow2", backing=Image(lower, "qcow2"))
        with export(Image(lower, "qcow2")) as disk:
            disk.pwrite(b"base", MIB)
        with export(chain) as disk:
            disk.pwrite(b"top", 0)
        commit(chain, Watched())
        with export(Image(lower, "qcow2")) as disk:
            assert (disk.pread(3, 0), disk.pread(4, MIB)) == (b"top", b"base")
        job = Watched()
        stream(chain, job)
        with export(Image(upper, "qcow2")) as disk:
            assert (disk.pread(3, 0), disk.pread(4, MIB)) == (b"top", b"base")
        for act in (commit, stream):
            with pytest.raises(OperationUnsupported, match="without a backing image"):
                act(Image(upper, "qcow2"))
    assert "backing-filename" not in qemu.info(top)
    for path in (top, base):
        qemu.check(path)
    assert job.told == sorted(job.told)
