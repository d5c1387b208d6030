"""Bytes in and out: ends, limits, holes."""

from __future__ import annotations

import errno
import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storaged.backend import Durability, Hole, Host, Source
from storaged.errors import (
    InvalidArgument,
    NoSuchVolume,
    OperationInvalid,
    OperationUnsupported,
    SystemFailure,
    VolumeBusy,
)
from storaged.flow import write_all
from storaged.formats import syscalls
from tests.backends.conftest import Pool, make_pool, new_job
from tests.formats import qemu

MIB = 1 << 20


def drain(source: Source, size: int = 64 << 10) -> bytes:
    parts = []
    while piece := source.read(size):
        parts.append(bytes(piece.length) if isinstance(piece, Hole) else piece)
    source.close()
    source.close()
    return b"".join(parts)


def fill(pool: Pool, data: bytes, name: str = "disk") -> None:
    (pool.path / name).write_bytes(data)


# Down


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        (0, 0, b"0123456789"),
        (4, 0, b"456789"),
        (4, 3, b"456"),
        (4, 100, b"456789"),
        (10, 0, b""),
        (99, 5, b""),
    ],
)
@pytest.mark.parametrize("sparse", [False, True])
def test_download(pool: Pool, offset: int, length: int, expected: bytes, sparse: bool) -> None:
    fill(pool, b"0123456789")
    source = pool.backend.download(pool.look("disk"), offset, length, sparse=sparse)
    assert drain(source, 2) == expected


def test_sparse_download_tells_holes(pool: Pool) -> None:
    with (pool.path / "disk").open("wb") as file:
        file.truncate(8 * MIB)
        file.seek(2 * MIB)
        file.write(b"x" * MIB)
    source = pool.backend.download(pool.look("disk"), MIB, 0, sparse=True)
    assert source.read(4096) == Hole(MIB)
    assert source.read(4096) == b"x" * 4096
    rest = drain(source)
    assert rest == b"x" * (MIB - 4096) + bytes(5 * MIB)


def test_holes_are_only_told_who_asked(pool: Pool) -> None:
    fill(pool, b"")
    os.truncate(pool.path / "disk", MIB)
    assert drain(pool.backend.download(pool.look("disk"), 0, 0)) == bytes(MIB)


def test_volume_that_shrinks_meanwhile(pool: Pool) -> None:
    fill(pool, b"x" * 1000)
    source = pool.backend.download(pool.look("disk"), 0, 0)
    assert source.read(10) == b"x" * 10
    os.truncate(pool.path / "disk", 20)
    assert drain(source) == b"x" * 10


# Up


def test_upload_in_place(pool: Pool) -> None:
    fill(pool, b"0123456789")
    sink = pool.backend.upload(pool.look("disk"), 3, 0)
    sink.write(b"AB")
    assert (pool.path / "disk").read_bytes() == b"012AB56789"
    sink.write(memoryview(b"CD"))
    sink.finish()
    assert (pool.path / "disk").read_bytes() == b"012ABCD789"


def test_upload_beyond_the_end(pool: Pool) -> None:
    fill(pool, b"0123")
    sink = pool.backend.upload(pool.look("disk"), 6, 0)
    sink.write(b"xy")
    sink.finish()
    assert (pool.path / "disk").read_bytes() == b"0123\0\0xy"


def test_announced_length_is_the_most(pool: Pool) -> None:
    fill(pool, bytes(10))
    sink = pool.backend.upload(pool.look("disk"), 2, 4)
    sink.write(b"abc")
    with pytest.raises(SystemFailure) as caught:
        sink.write(b"de")
    assert caught.value.errno == errno.ENOSPC
    sink.write(b"d")
    with pytest.raises(SystemFailure):
        sink.hole(1)
    sink.abort()
    sink.abort()
    assert (pool.path / "disk").read_bytes() == b"\0\0abcd\0\0\0\0"


def test_pieces_at_once(pool: Pool) -> None:
    fill(pool, b"0123456789")
    sink = pool.backend.upload(pool.look("disk"), 1, 6)
    write_all(sink, [b"a", memoryview(b"bc"), bytearray(b"d")])
    with pytest.raises(SystemFailure) as caught:
        write_all(sink, [b"e", b"fg"])
    assert caught.value.errno == errno.ENOSPC
    sink.abort()
    assert (pool.path / "disk").read_bytes() == b"0abcde6789"
    with pytest.raises(OperationInvalid):
        write_all(sink, [b"x", b"y"])


def test_holes_erase_and_never_shorten(pool: Pool) -> None:
    """libvirt leaves the old data in a hole, and may cut the file off behind it."""
    fill(pool, b"x" * 4 * MIB)
    sink = pool.backend.upload(pool.look("disk"), 0, 0)
    sink.write(b"a" * 10)
    sink.hole(MIB)
    sink.write(b"b" * 10)
    sink.finish()
    data = (pool.path / "disk").read_bytes()
    assert data == b"a" * 10 + bytes(MIB) + b"b" * 10 + b"x" * (3 * MIB - 20)
    assert pool.look("disk").allocation < 4 * MIB


def test_hole_at_the_end_makes_it_longer(pool: Pool) -> None:
    fill(pool, b"xxxx")
    sink = pool.backend.upload(pool.look("disk"), 2, 0)
    sink.hole(100)
    sink.finish()
    assert (pool.path / "disk").read_bytes() == b"xx" + bytes(100)


pieces = st.lists(st.one_of(st.binary(min_size=1, max_size=50), st.integers(1, 9000)), max_size=6)


@given(st.binary(max_size=20_000), st.integers(0, 5000), pieces)
@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_upload_is_what_was_sent(
    pool: Pool, before: bytes, offset: int, sent: list[bytes | int]
) -> None:
    fill(pool, before)
    expected = bytearray(before)
    sink = pool.backend.upload(pool.look("disk"), offset, 0)
    for piece in sent:
        data = bytes(piece) if isinstance(piece, int) else piece
        expected.extend(bytes(max(0, offset + len(data) - len(expected))))
        expected[offset : offset + len(data)] = data
        offset += len(data)
        if isinstance(piece, int):
            sink.hole(piece)
        elif len(piece) % 2:
            sink.write(piece)
        else:
            write_all(sink, [piece[:7], memoryview(piece)[7:]])
    sink.finish()
    assert (pool.path / "disk").read_bytes() == expected
    source = pool.backend.download(pool.look("disk"), 0, 0, sparse=True)
    assert drain(source, 777) == expected


def test_upload_keeps_machines_out(pool: Pool, storage_daemon: Any) -> None:
    record = pool.create("disk", MIB, format="qcow2")
    sink = pool.backend.upload(record, 0, 0)
    with pytest.raises(AssertionError, match="lock"):
        qemu.run("qemu-io", "-c", "write 0 1", pool.path / "disk")
    sink.abort()
    storage_daemon(pool.path / "disk")
    with pytest.raises(VolumeBusy):
        pool.backend.upload(record, 0, 0)


def test_several_uploads_to_one_volume(pool: Pool) -> None:
    record = pool.create("disk", MIB)
    sinks = [pool.backend.upload(record, offset, 4) for offset in (0, 4, 8)]
    for number, sink in enumerate(sinks):
        sink.write(b"%04d" % number)
    with pytest.raises(VolumeBusy):  # nobody changes its size meanwhile
        pool.backend.resize(record, 2 * MIB, new_job())
    for sink in sinks:
        sink.finish()
    assert (pool.path / "disk").read_bytes()[:12] == b"000000010002"


def test_nothing_happens_after_the_end(pool: Pool) -> None:
    """The descriptor's number may be another file's by then."""
    fill(pool, b"0123")
    sink = pool.backend.upload(pool.look("disk"), 0, 0)
    sink.finish()
    calls: list[Callable[[], None]] = [
        lambda: sink.write(b"x"),
        lambda: sink.hole(1),
        sink.finish,
    ]
    for call in calls:
        with pytest.raises(OperationInvalid, match="the transfer has ended"):
            call()
    sink.abort()
    source = pool.backend.download(pool.look("disk"), 0, 0)
    source.close()
    with pytest.raises(OperationInvalid):
        source.read(1)


def test_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    for durability in Durability:
        pool = make_pool(tmp_path, host=Host("testhost", durability))
        fill(pool, b"1234")
        pool.backend.upload(pool.look("disk"), 0, 0).finish()
    assert len(synced) == 1


@pytest.fixture
def written_back(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What the disk was told to begin with: (offset, length)."""
    begun: list[tuple[int, int]] = []
    genuine = syscalls.begin_writing_back

    def begin(fd: int, offset: int, length: int) -> None:
        begun.append((offset, length))
        genuine(fd, offset, length)

    monkeypatch.setattr(syscalls, "begin_writing_back", begin)
    return begun


@pytest.mark.parametrize("durability", Durability)
def test_the_disk_works_while_more_comes(
    tmp_path: Path, written_back: list[tuple[int, int]], durability: Durability
) -> None:
    pool = make_pool(tmp_path, host=Host("testhost", durability))
    fill(pool, b"")
    content = os.urandom(20 * MIB)
    sink = pool.backend.upload(pool.look("disk"), 10, 0)
    for at in range(0, len(content), 3 * MIB):
        sink.write(content[at : at + 3 * MIB])
    sink.finish()
    assert (pool.path / "disk").read_bytes() == bytes(10) + content
    full = durability is Durability.FULL
    assert written_back == ([(10, 9 * MIB), (10 + 9 * MIB, 9 * MIB)] if full else [])


def test_a_slow_disk_is_left_to_the_kernel(
    tmp_path: Path, written_back: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(tmp_path, host=Host("testhost", Durability.FULL))
    clock = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    fill(pool, b"")
    sink = pool.backend.upload(pool.look("disk"), 0, 0)
    for _ in range(3):
        sink.write(bytes(8 * MIB))
    sink.finish()
    assert written_back == [(0, 8 * MIB)]


# What cannot be


def test_directories_and_what_is_gone(pool: Pool) -> None:
    (pool.path / "sub").mkdir()
    fill(pool, b"")
    record = pool.look("disk")
    (pool.path / "disk").unlink()
    with pytest.raises(OperationUnsupported):
        pool.backend.open_image(pool.look("sub"))
    with pytest.raises(NoSuchVolume):
        pool.backend.open_image(record)
    for transfer in (pool.backend.upload, pool.backend.download):
        with pytest.raises(SystemFailure, match=r"Unable to .*/sub'?: Is a directory$"):
            transfer(pool.look("sub"), 0, 0)
        text = f"Unable to open stream for '{pool.path}/disk': No such file or directory"
        with pytest.raises(SystemFailure, match=f"^{text}$"):
            transfer(record, 0, 0)


def test_replaced_by_a_fifo(pool: Pool) -> None:
    fill(pool, b"")
    record = pool.look("disk")
    (pool.path / "disk").unlink()
    os.mkfifo(pool.path / "disk")
    with pytest.raises(OperationUnsupported, match="no file any more"):
        pool.backend.download(record, 0, 0)


def test_open_image(pool: Pool) -> None:
    fill(pool, b"0123456789")
    handle = pool.backend.open_image(pool.look("disk"))
    assert handle.pread(3, 2) == b"234"
    with pytest.raises(OSError, match="Bad file descriptor"):
        handle.pwrite(b"x", 0)
    handle.close()
    handle = pool.backend.open_image(pool.look("disk"), writable=True)
    handle.pwrite(b"x", 0)
    handle.close()
    assert (pool.path / "disk").read_bytes() == b"x123456789"


def test_holes_go_forward_and_not_beyond_every_file(pool: Pool) -> None:
    fill(pool, b"1234")
    sink = pool.backend.upload(pool.look("disk"), 2, 0)
    with pytest.raises(InvalidArgument):
        sink.hole(-2)
    with pytest.raises(SystemFailure) as caught:
        sink.hole(2**63 - 1)
    assert caught.value.errno == errno.EFBIG
    sink.abort()
    assert (pool.path / "disk").read_bytes() == b"1234"


# Links


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("writing", [True, False])
def test_strangers_link_is_not_followed(pool: Pool, tmp_path: Path, writing: bool) -> None:
    """Else whoever can write to the directory could lead us to any file of the host."""

    def use() -> None:
        if writing:
            pool.backend.upload(pool.look("disk"), 0, 0).abort()
        else:
            pool.backend.download(pool.look("disk"), 0, 0).close()

    target, link = tmp_path / "shadow", pool.path / "disk"
    target.write_text("precious")
    link.symlink_to(target)
    use()  # root's own link
    os.lchown(link, 1234, -1)
    with pytest.raises(SystemFailure) as caught:
        use()
    assert caught.value.errno == errno.EACCES
    assert str(caught.value).startswith(f"Failed to open storage volume with path '{link}'")
    assert caught.value.advice == (
        "User 1234 made it as a link to a file of user root. "
        f"If that is meant: chown -h root {link}"
    )
    os.chown(target, 1234, -1)
    use()  # a link to a file of his own


def test_links_of_links(pool: Pool) -> None:
    fill(pool, b"0123", "image")
    (pool.path / "second").symlink_to("image")
    (pool.path / "disk").symlink_to("second")
    assert drain(pool.backend.download(pool.look("disk"), 1, 0)) == b"123"
