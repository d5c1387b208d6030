"""A guest writes the header of an image to its raw disk: what that names is not the guest's."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import storaged
from storaged.errors import OperationInvalid
from storaged.formats.qcow2_create import CreateOptions, create
from tests.formats.memory import MemoryHandle

MIB = 1 << 20


def header(backing: bytes) -> bytes:
    handle = MemoryHandle(b"")
    create(handle, CreateOptions(MIB, backing=backing, backing_format="raw"))
    return bytes(handle.data)


class Host:
    """An engine that can be opened anew, as after a restart, and its pool."""

    def __init__(self, place: Path) -> None:
        self.images = place / "images"
        self.images.mkdir()
        (self.images / "neighbour").write_bytes(b"secret".ljust(MIB, b"\0"))
        self._state = place / "state"
        self._storage = storaged.open(self._state)
        self._storage.ensure_dir_pool("vms", self.images)

    @property
    def pool(self) -> storaged.Pool:
        return self._storage.pool("vms")

    def restart(self) -> None:
        self.close()
        self._storage = storaged.open(self._state)

    def close(self) -> None:
        self._storage.close()

    def write_header(self, name: str, backing: bytes = b"neighbour") -> None:
        with (self.images / name).open("r+b") as file:
            file.write(header(backing))

    def content(self, volume: storaged.Volume) -> bytes:
        out = io.BytesIO()
        volume.download(out)
        return out.getvalue()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    try:
        os.setxattr(made.images / "neighbour", "user.test", b"")
    except OSError:
        pytest.skip("the file system keeps no extended attributes of users")
    yield made
    made.close()


def is_refused(host: Host, name: str) -> None:
    volume = host.pool.volume(name)
    assert "it was a raw volume" in (volume.info().problem or "")
    for work in (
        lambda: host.pool.clone(volume, "copy"),
        lambda: volume.convert(format="qcow2", flatten=True),
        lambda: volume.resize(2 * MIB),
        lambda: host.pool.clone(volume, "overlay", backing="linked"),
    ):
        with pytest.raises(OperationInvalid, match="raw volume"):
            work()
    assert host.content(volume) == (host.images / name).read_bytes()
    assert {volume.name for volume in host.pool.volumes()} == {name, "neighbour"}


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("backing", [b"neighbour", b"/etc/passwd"])
def test_a_volume_that_was_made_raw(host: Host, backing: bytes, restarted: bool) -> None:
    host.pool.create("disk", MIB)
    host.write_header("disk", backing)
    if restarted:
        host.restart()
    is_refused(host, "disk")


def test_a_clone_that_was_made_raw(host: Host) -> None:
    with (host.images / "source").open("wb") as file:
        file.write(b"boot".ljust(MIB, b"\0"))
    host.pool.clone(host.pool.volume("source"), "disk")
    host.pool.volume("source").delete()
    host.write_header("disk")
    host.restart()
    is_refused(host, "disk")


def test_a_file_that_was_seen_as_raw(host: Host) -> None:
    """Not made here, but known: also after the next scan."""
    (host.images / "disk").write_bytes(bytes(MIB))
    host.pool.refresh()
    assert host.pool.volume("disk").info().format == "raw"
    host.write_header("disk")
    host.pool.refresh()
    is_refused(host, "disk")
    os.utime(host.images / "disk")
    host.pool.refresh()
    is_refused(host, "disk")


def test_another_file_of_the_name(host: Host) -> None:
    """Somebody has put an image in the volume's place: no guest can do that."""
    host.pool.create("disk", MIB)
    (host.images / "new").write_bytes(header(b"neighbour"))
    (host.images / "new").rename(host.images / "disk")
    volume = host.pool.volume("disk")
    assert volume.info().problem is None
    assert host.content(host.pool.clone(volume, "copy", format="raw")).startswith(b"secret")


def test_an_upload_says_what_it_is(host: Host) -> None:
    volume = host.pool.create("disk", MIB)
    volume.upload(io.BytesIO(header(b"neighbour")))
    host.restart()
    volume = host.pool.volume("disk")
    assert (volume.info().format, volume.info().problem) == ("qcow2", None)
    assert host.content(host.pool.clone(volume, "copy", format="raw")).startswith(b"secret")


def test_an_operator_says_what_it_is(host: Host) -> None:
    volume = host.pool.create("disk", MIB)
    host.write_header("disk")
    is_refused(host, "disk")
    volume.set_backing_format("raw")
    assert volume.info().problem is None
    host.restart()
    assert host.pool.volume("disk").info().problem is None


def test_what_names_nothing_is_let_pass(host: Host) -> None:
    """An image without references can only lie about itself."""
    host.pool.create("disk", MIB)
    handle = MemoryHandle(b"")
    create(handle, CreateOptions(MIB))
    with (host.images / "disk").open("r+b") as file:
        file.write(handle.data)
    assert host.pool.volume("disk").info().problem is None


def test_a_conversion_takes_the_mark_along(host: Host) -> None:
    volume = host.pool.create("disk", MIB)
    volume.convert(format="qcow2")
    volume.rebase(str(host.images / "neighbour"), "raw")
    host.restart()
    volume = host.pool.volume("disk")
    assert volume.info().problem is None
    volume.convert(format="raw")
    host.write_header("disk")
    host.restart()
    is_refused(host, "disk")
