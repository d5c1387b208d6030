"""Size, internal snapshots and passphrases, changed in place and judged by qemu-img."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from storaged.errors import OperationFailed
from storaged.formats.errors import WrongPassphrase
from storaged.qsd import (
    Image,
    add_passphrase,
    create,
    create_snapshot,
    delete_snapshot,
    export,
    remove_passphrase,
    resize,
)
from tests.formats import qemu
from tests.qsd.images import MIB, image, made, needed, opened

pytestmark = needed


@pytest.mark.parametrize("format", ["qcow2", "qed", "raw"])
def test_resize(tmp_path: Path, format: str) -> None:
    path = tmp_path / "i"
    if format == "raw":
        path.write_bytes(bytes(MIB))
    else:
        made(path, format, MIB)
    with image(path, format) as writable:
        resize(writable, 5 * MIB)
        with export(writable) as disk:
            assert disk.size() == 5 * MIB


@pytest.mark.parametrize("format", ["parallels", "qcow", "vdi", "vhdx", "vmdk", "vpc"])
def test_resize_is_refused(tmp_path: Path, format: str) -> None:
    path = made(tmp_path / "i", format, MIB)
    before = path.read_bytes()
    with image(path, format) as writable, pytest.raises(OperationFailed, match=f"'{format}'"):
        resize(writable, 5 * MIB)
    assert path.read_bytes() == before


def test_snapshots(tmp_path: Path) -> None:
    path = made(tmp_path / "i", "qcow2", MIB)

    def names() -> list[str]:
        listed = json.loads(qemu.run("qemu-img", "info", "--output=json", path))
        return [snapshot["name"] for snapshot in listed.get("snapshots", ())]

    with image(path, "qcow2") as writable:
        create_snapshot(writable, "one")
        with export(writable) as disk:
            disk.pwrite(b"x" * MIB, 0)
        create_snapshot(writable, "two")
        assert names() == ["one", "two"]
        with pytest.raises(OperationFailed, match="exists"):
            create_snapshot(writable, "one")
        delete_snapshot(writable, "one")
        assert names() == ["two"]
        with pytest.raises(OperationFailed, match="does not exist"):
            delete_snapshot(writable, "one")
    qemu.check(path)


@pytest.mark.parametrize("format", ["luks", "qcow2"])
@pytest.mark.slow
def test_passphrases(tmp_path: Path, format: str) -> None:
    with opened(tmp_path / "i") as file:
        create(file, format, MIB, secret=b"first", iter_time=10)
        first, second = Image(file, format, secret=b"first"), Image(file, format, secret=b"second")
        with export(first) as disk:
            disk.pwrite(b"content", 0)
        add_passphrase(first, b"second", slot=5, iter_time=10)
        for known in (first, second):
            with export(known) as disk:
                assert disk.pread(7, 0) == b"content"
        remove_passphrase(second, b"first")
        with pytest.raises(WrongPassphrase), export(first):
            pass
        with pytest.raises(OperationFailed):
            remove_passphrase(second, b"second")
        with export(second) as disk:
            assert disk.pread(7, 0) == b"content"
