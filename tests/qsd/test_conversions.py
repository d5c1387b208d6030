"""Foreign formats in the native engine: each is a source and a target like any other."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from storaged.formats.convert import convert
from storaged.formats.file import FileHandle
from storaged.formats.qcow2_create import CreateOptions
from storaged.formats.qcow2_writer import Qcow2Writer
from storaged.formats.raw_writer import RawWriter
from storaged.qsd import export
from tests.formats import qemu
from tests.qsd.images import MIB, Watched, image, made, needed

pytestmark = needed

SIZE = 40 * MIB
FORMATS = ["parallels", "qcow", "qed", "vdi", "vhdx", "vmdk", "vpc"]


@pytest.fixture
def content(tmp_path: Path) -> Path:
    """A sparse raw disk with data here and there, zeros that are written among them."""
    path = tmp_path / "content"
    with path.open("wb") as file:
        for offset, data in (
            (0, b"boot" * 200),
            (3 * MIB + 512, os.urandom(5 * MIB)),
            (20 * MIB, bytes(2 * MIB)),
            (SIZE - 4096, b"e" * 4096),
        ):
            file.seek(offset)
            file.write(data)
    return path


@pytest.mark.parametrize("format", FORMATS)
def test_there_and_back(tmp_path: Path, content: Path, format: str) -> None:
    foreign, back = made(tmp_path / "foreign", format, SIZE), tmp_path / "back"
    job = Watched()
    with FileHandle(os.open(content, os.O_RDONLY)) as source, image(foreign, format) as target:
        target = replace(target, file=replace(target.file, building=True))
        with export(target, job) as disk:
            moved = convert(source, RawWriter(disk, SIZE), checkpoint=job.checkpoint)
            disk.flush()
        assert moved.written < 16 * MIB
    qemu.run("qemu-img", "compare", "-f", "raw", "-F", format, content, foreign)
    assert foreign.stat().st_blocks * 512 < 24 * MIB
    with (
        image(foreign, format, writable=False) as readable,
        export(readable) as disk,
        FileHandle(os.open(back, os.O_RDWR | os.O_CREAT, 0o600)) as file,
    ):
        convert(disk, Qcow2Writer(file, CreateOptions(capacity=SIZE)))
    qemu.run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", content, back)
    qemu.check(back)
    assert back.stat().st_blocks * 512 < 24 * MIB
    assert job.told == sorted(job.told)
