"""The bytes of rbd images: a handle against a model of it, and where data are told to lie."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storaged.backends import _rbdhandle
from storaged.backends._rbdhandle import RbdHandle
from storaged.backends.rbd import Rbd
from storaged.errors import NoSuchVolume, VolumeBusy
from storaged.isolate import ChildDied
from tests.backends.rbdpools import made
from tests.ceph.cluster import Cluster
from tests.ceph.fixtures import CephPools
from tests.ceph.images import Image, Pool
from tests.kernel.programs import eventually

KIB, MIB = 1 << 10, 1 << 20

#: Kinds of images: an order of the objects' size, and how they are striped.
_KINDS: dict[str, dict[str, int]] = {
    "plain": {"order": 16},
    "large objects": {},
    "striped": {"order": 16, "stripe_unit": 16 * KIB, "stripe_count": 4},
    "no map of objects": {"order": 17, "features": 1},
}


@pytest.fixture
def backend(ceph_open: Cluster, ceph_pools: CephPools) -> Iterator[Rbd]:
    """A pool's backend, by which images are opened; it is not started."""
    backend = made(ceph_open, ceph_pools(ceph_open))
    yield backend
    backend.link.close()


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pieces and windows be so small that an image has many."""
    monkeypatch.setattr(_rbdhandle, "PIECE", _PIECE)
    monkeypatch.setattr(_rbdhandle, "_WINDOW", 5 * _PIECE)
    monkeypatch.setattr(_rbdhandle, "_WRITTEN", 3 * _PIECE)


def pool_of(backend: Rbd, cluster: Cluster) -> Pool:
    """Return the Ceph pool of a backend."""
    return cluster.admin.pool(backend.link.pool)


def handle_of(backend: Rbd, image: Image, **how: bool) -> RbdHandle:
    """Return a handle for an image."""
    return RbdHandle(backend.link, image.name, "", **{"writable": True, **how})


def check_map(handle: RbdHandle, model: bytes, offset: int = 0, length: int | None = None) -> None:
    """Check that a map is without gaps, in order, and tells of all that is not zero."""
    end = len(model) if length is None else min(offset + length, len(model))
    at = offset
    for extent in handle.map(offset, end - offset):
        assert extent.offset == at
        assert extent.length > 0
        at += extent.length
        if not extent.data:
            assert not any(model[extent.offset : at]), extent
    assert at == max(end, offset)


# A model

_SIZE = MIB + 12_345
#: pieces are made so small, that there are many
_PIECE = 64 * KIB
_edges = st.builds(
    lambda number, off: min(max(number * _PIECE + off, 0), _SIZE),
    st.integers(0, _SIZE // _PIECE + 1),
    st.sampled_from([-512, -1, 0, 0, 1, 4096]),
)
_offsets = st.one_of(st.integers(0, _SIZE), _edges)
_lengths = st.one_of(st.integers(0, 5000), _edges)
_steps = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "read", "zero", "thick", "map", "flush"]),
        _offsets,
        _lengths,
    ),
    max_size=20,
)


class Model:
    """What an image should hold, beside the handle of it."""

    def __init__(self, handle: RbdHandle, content: bytearray) -> None:
        self.handle = handle
        self.content = content
        self._pattern = random.Random(1).randbytes(_SIZE + 256)

    def step(self, number: int, what: str, offset: int, length: int) -> None:
        """Do one thing to both, and compare what they say."""
        length = min(length, len(self.content) - offset)
        end = offset + length
        match what:
            case "write":
                data = self._pattern[number : number + length]
                self.handle.pwrite(memoryview(data), offset)
                self.content[offset:end] = data
            case "read":
                assert self.handle.pread(length, offset) == self.content[offset:end]
            case "map":
                check_map(self.handle, bytes(self.content), offset, length)
            case "flush":
                self.handle.flush()
            case _:
                self.handle.write_zeroes(offset, length, unmap=what == "zero")
                self.content[offset:end] = bytes(length)

    def check(self) -> None:
        """Check all of it, and the map of it."""
        assert self.handle.pread(_SIZE + 1, 0) == self.content
        check_map(self.handle, bytes(self.content))


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.usefixtures("small_pieces")
@settings(
    max_examples=6,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=_steps)
def test_a_handle_is_a_row_of_bytes(
    kind: str, backend: Rbd, ceph_open: Cluster, steps: list[tuple[str, int, int]]
) -> None:
    pool = pool_of(backend, ceph_open)
    image = pool.create("image", _SIZE, **_KINDS[kind])
    try:
        with closing(handle_of(backend, image)) as handle:
            model = Model(handle, bytearray(_SIZE))
            for number, step in enumerate(steps):
                model.step(number, *step)
            model.check()
            handle.flush()
        with closing(handle_of(backend, image, writable=False)) as handle:
            Model(handle, model.content).check()
    finally:
        image.remove()


@pytest.mark.usefixtures("small_pieces")
@settings(
    max_examples=6,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=_steps)
def test_a_clone_is_one_too(
    backend: Rbd, ceph_open: Cluster, steps: list[tuple[str, int, int]]
) -> None:
    pool = pool_of(backend, ceph_open)
    parent = pool.create("parent", _SIZE - 100 * KIB, order=16)
    data = random.Random(2).randbytes(300 * KIB + 106)
    held = bytearray(_SIZE)
    held[100_000 : 100_000 + len(data)] = data
    parent.write(100_000, data)
    parent.create_snap("s", protect=True)
    clone = pool.clone(parent, "s", "clone")
    clone.resize(_SIZE)
    try:
        with closing(handle_of(backend, clone)) as handle:
            model = Model(handle, held)
            model.check()
            for number, step in enumerate(steps):
                model.step(number, *step)
            model.check()
    finally:
        clone.remove()
        parent.unprotect_snap("s")
        parent.remove_snap("s")
        parent.remove()


# One thing at a time


@pytest.fixture
def image(backend: Rbd, ceph_open: Cluster) -> Image:
    """An image with a pattern in it."""
    image = pool_of(backend, ceph_open).create("image", 2 * MIB)
    image.write(0, pattern(2 * MIB))
    return image


def pattern(size: int) -> bytes:
    """Return bytes that differ from piece to piece."""
    return b"".join(b"%08d" % number for number in range(size // 8))


@pytest.mark.usefixtures("small_pieces")
def test_reads_that_jump(backend: Rbd, image: Image) -> None:
    """What was read ahead elsewhere leaves room."""
    data = pattern(2 * MIB)
    with closing(handle_of(backend, image, writable=False)) as handle:
        for _ in range(2):
            for start in (0, MIB, MIB // 2, MIB + MIB // 2):
                for at in range(start, start + 7 * _PIECE, _PIECE):
                    assert handle.pread(_PIECE, at) == data[at : at + _PIECE]
                assert handle.pread(100, start + 33) == data[start + 33 : start + 133]


@pytest.mark.usefixtures("small_pieces")
def test_writes_of_one_place_keep_their_order(backend: Rbd, image: Image) -> None:
    with closing(handle_of(backend, image)) as handle:
        for number in range(64):
            handle.pwrite(bytes([number]) * _PIECE, _PIECE)
            handle.pwrite(bytes([number]) * 512, 0)
        handle.flush()
    assert image.read(_PIECE, _PIECE) == b"\x3f" * _PIECE
    assert image.read(0, 512) == b"\x3f" * 512


def test_more_than_is_under_way_at_once(backend: Rbd, image: Image) -> None:
    data = os.urandom(MIB) * 80
    image.resize(len(data))
    with closing(handle_of(backend, image)) as handle:
        handle.pwrite(data, 0)
        assert handle.pread(len(data), 0) == data


def test_an_image_does_not_grow(backend: Rbd, image: Image) -> None:
    with closing(handle_of(backend, image)) as handle:
        writes: list[Callable[[], None]] = [
            lambda: handle.pwrite(b"xy", 2 * MIB - 1),
            lambda: handle.write_zeroes(MIB, MIB + 1),
        ]
        for write in writes:
            with pytest.raises(OSError, match="No space left on device"):
                write()
        assert handle.pread(100, 2 * MIB - 3) == pattern(2 * MIB)[-3:]
        assert handle.pread(100, 3 * MIB) == b""
        assert handle.fileno() is None
        handle.truncate(MIB)
        assert handle.size() == image.size() == MIB
        handle.truncate(2 * MIB)
        assert handle.pread(MIB, MIB) == bytes(MIB)


def test_one_that_another_client_makes_smaller(backend: Rbd, image: Image) -> None:
    with closing(handle_of(backend, image)) as handle:
        handle.open()
        image.resize(MIB)

        def is_seen() -> bool:
            return handle.pread(MIB, MIB) == b""

        eventually(is_seen, what="the end to be seen")
        assert handle.pread(512, 0) == pattern(512)


def test_it_must_be_the_image_that_was_meant(
    backend: Rbd, image: Image, ceph_open: Cluster
) -> None:
    pool = pool_of(backend, ceph_open)
    number = image.query("id")
    image.remove()
    with pytest.raises(NoSuchVolume):
        RbdHandle(backend.link, "image", number).open()
    pool.create("image", MIB)
    with pytest.raises(NoSuchVolume):
        RbdHandle(backend.link, "image", number).open()
    with closing(RbdHandle(backend.link, "image", "")) as handle:
        assert handle.size() == MIB


def test_who_wants_it_alone_does_not_get_it(backend: Rbd, image: Image) -> None:
    with image.held() as held:
        held.write(0, b"x")
        with pytest.raises(VolumeBusy, match="in use by other clients"):
            handle_of(backend, image, alone=True).open()
        with closing(handle_of(backend, image, writable=False)) as handle:
            assert handle.pread(1, 0) == b"x"
    with closing(handle_of(backend, image, alone=True)) as handle:
        handle.open()
        assert image.watchers() != []
    assert image.watchers() == []
    handle.close()  # again


def test_nothing_is_left_open(backend: Rbd, image: Image) -> None:
    """Not in this process, nor in the other one."""
    backend.link.session()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(5):
        with closing(handle_of(backend, image)) as handle:
            handle.pread(1, 0)
        with suppress(NoSuchVolume), closing(RbdHandle(backend.link, "image", "other")) as other:
            other.open()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    maps = Path(f"/proc/{backend.link.pid}/maps")
    eventually(lambda: "memfd:rbd" not in maps.read_text(), what="the memory to be given back")


def test_a_dead_process_is_told(backend: Rbd, image: Image) -> None:
    handle = handle_of(backend, image)
    handle.pwrite(b"x", 0)
    child = backend.link.pid
    assert child is not None
    os.kill(child, signal.SIGKILL)
    with pytest.raises(ChildDied, match="SIGKILL"):
        handle.flush()
    handle.close()
    with closing(handle_of(backend, image, writable=False)) as again:
        assert again.size() == 2 * MIB
