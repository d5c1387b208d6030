"""All that is said of one volume, and what is not said of its backing store."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storaged.errors import NoSuchVolume
from tests.backends.conftest import Pool
from tests.formats import qemu


def test_raw(pool: Pool) -> None:
    (pool.path / "disk").write_bytes(bytes(5000))
    told = pool.backend.describe(pool.look("disk"))
    status = (pool.path / "disk").stat()
    assert told.path == told.key == str(pool.path / "disk")
    assert (told.capacity, told.physical, told.format) == (5000, 5000, "raw")
    assert told.timestamps is not None
    assert told.timestamps.mtime == status.st_mtime_ns
    assert told.timestamps.btime is None or told.timestamps.btime <= status.st_ctime_ns
    assert (told.compat, told.features, told.backing, told.encryption) == (None, None, None, None)


def test_qcow2(pool: Pool) -> None:
    qemu.create(pool.path / "v3", 1 << 20, "lazy_refcounts=on", "cluster_size=4096")
    qemu.create(pool.path / "v2", 1 << 20, "compat=0.10")
    new, old = (pool.backend.describe(pool.look(name)) for name in ("v3", "v2"))
    assert (new.compat, new.cluster_size) == ("1.1", 4096)
    assert new.features == frozenset({"lazy_refcounts"})
    assert (old.compat, old.features) == (None, None)


def test_encrypted(pool: Pool) -> None:
    header = b"LUKS\xba\xbe\0\1" + bytes(96) + (8).to_bytes(4, "big")
    (pool.path / "secret").write_bytes(header.ljust(1 << 20, b"\0"))
    told = pool.backend.describe(pool.look("secret"))
    assert told.format == "raw"
    assert told.encryption is not None
    assert told.encryption.format == "luks"


def test_local_backing_store(pool: Pool) -> None:
    qemu.create(pool.path / "base", 1 << 20)
    (pool.path / "base").chmod(0o444)
    qemu.run("qemu-img", "create", "-f", "qcow2", "-b", "base", "-F", "qcow2", pool.path / "top")
    told = pool.backend.describe(pool.look("top"))
    assert told.backing is not None
    assert told.backing.path == str(pool.path / "base")
    assert told.backing.format == "qcow2"
    assert told.backing.permissions.mode == 0o444
    assert told.backing.timestamps is not None


def test_backing_store_is_never_waited_for(pool: Pool, tmp_path: Path) -> None:
    """libvirt's refresh hangs on this one."""
    os.mkfifo(tmp_path / "fifo")
    qemu.run(
        "qemu-img", "create", "-u", "-f", "qcow2", "-F", "raw", "-b", tmp_path / "fifo",
        pool.path / "trap", "1M",
    )  # fmt: skip
    told = pool.backend.describe(pool.look("trap"))
    assert told.backing is not None
    assert told.backing.path == str(tmp_path / "fifo")
    assert told.backing.timestamps is None


def test_unrecorded_format_prints_as_raw(pool: Pool) -> None:
    image = qemu.create(pool.path / "top", 1 << 20)
    data = bytearray(image.read_bytes())
    data[8:16], data[16:20] = (0x8000).to_bytes(8, "big"), (4).to_bytes(4, "big")
    data[0x8000:0x8004] = b"base"
    image.write_bytes(data)
    told = pool.backend.describe(pool.look("top"))
    assert told.backing is not None
    assert told.backing.format == "raw"


def test_gone(pool: Pool) -> None:
    (pool.path / "disk").touch()
    record = pool.look("disk")
    (pool.path / "disk").unlink()
    with pytest.raises(NoSuchVolume):
        pool.backend.describe(record)


MAGICS = (
    b"QFI\xfb\0\0\0\3", b"QFI\xfb\0\0\0\2", b"QFI\xfb\0\0\0\1", b"KDMV\1\0\0\0",
    b"QED\0", b"conectix", b"LUKS\xba\xbe\0\1", b"LUKS\xba\xbe\0\2", b"WithouFreSpacExt",
    b"OOOM\0\0\0\2", bytes(64) + b"\x7f\x10\xda\xbe\1\0\1\0",
)  # fmt: skip


@given(st.sampled_from(MAGICS), st.binary(max_size=600), st.integers(0, 2))
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_header_breaks_a_listing(pool: Pool, magic: bytes, rest: bytes, fill: int) -> None:
    (pool.path / "disk").write_bytes(magic + rest + bytes([fill * 255 // 2]) * 1024)
    record = pool.refresh()["disk"]
    told = pool.backend.describe(record)
    assert 0 <= told.capacity < 1 << 63
    assert told.path == str(pool.path / "disk")
