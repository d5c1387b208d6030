"""Changing volumes of directories: the same calls to libvirt's daemon and to storaged.

Where storaged answers something else on purpose, the test says so with ``differs``, ``refuses`` or
``refuses_alone`` and the reason.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.storaged.differential import Failure, Pair, open_pair, volume_document

#: Two engines at work, thousands of calls: for the whole run, not for every change.
pytestmark = pytest.mark.slow

MIB = 1 << 20
ALLOCATE, DELTA, SHRINK = 1, 2, 4
REFLINK = 2
SPARSE = "<allocation>0</allocation>"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with open_pair(tmp_path_factory.mktemp("data")) as pair:
        pair.pool("p", 1)
        pair.pool("q", 2)
        yield pair


@pytest.fixture
def name(pair: Pair, request: pytest.FixtureRequest) -> str:
    """A name that no other test uses."""
    return str(request.node.name).replace("/", "")


def made(pair: Pair, name: str, capacity: int = MIB, top: str = "", target: str = "") -> None:
    document = volume_document(name, capacity, top=top, target=target)
    pair.same("volume_create", "p", document)


def written(pair: Pair, name: str, data: bytes, offset: int = 0) -> None:
    """Write into the file of a volume behind both engines' backs."""

    def write(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    pair.on_disk(write, "p", name)
    pair.both("refresh", "p")


def content(pair: Pair, pool: str, name: str) -> bytes:
    """Return the bytes of the files, which must be the same."""
    theirs, ours = (
        (side.directory / pool / name).read_bytes() for side in (pair.theirs, pair.ours)
    )
    assert ours == theirs
    return ours


# Resizing


def test_resize(pair: Pair, name: str) -> None:
    for top in ("", SPARSE):
        made(pair, name, top=top)
        for capacity, flags in (
            (2 * MIB, 0), (MIB, 0), (MIB, SHRINK), (0, 0), (3 * MIB, ALLOCATE), (MIB, DELTA),
            (MIB, DELTA | SHRINK), (1 << 40, ALLOCATE), (1 << 62, 0), ((1 << 63) - 1, 0),
        ):  # fmt: skip
            pair.same("volume_resize", "p", name, capacity, flags)
            pair.volume("p", name)
        pair.same("volume_delete", "p", name)


def test_resize_with_allocation_takes_all_the_space(pair: Pair, name: str) -> None:
    made(pair, name, top=SPARSE)
    written(pair, name, b"data", 500_000)
    pair.same("volume_resize", "p", name, 2 * MIB, ALLOCATE)
    assert pair.same("volume_info", "p", name) == [0, 2 * MIB, 2 * MIB, 2 * MIB]
    assert content(pair, "p", name)[500_000:].startswith(b"data\0")


def test_resize_below_the_allocation(pair: Pair, name: str) -> None:
    made(pair, name)
    why = "what counts is where the data end"
    theirs, ours = pair.differs(why, "volume_resize", "p", name, 4096, SHRINK)
    assert (theirs.code, ours) == (8, None)
    made(pair, f"{name}-full")
    written(pair, f"{name}-full", b"end", MIB - 3)
    failures = pair.both("volume_resize", "p", f"{name}-full", 4096, SHRINK)
    assert [failure.code for failure in failures] == [8, 8]


def test_resize_counts_what_is_taken(pair: Pair, name: str) -> None:
    before = pair.both("pool_info", "p")
    made(pair, name, top=SPARSE)
    pair.same("volume_resize", "p", name, 3 * MIB + 5, ALLOCATE)
    taken = [
        now[2] - then[2] for now, then in zip(pair.both("pool_info", "p"), before, strict=True)
    ]
    assert taken == [3 * MIB + 5, 3 * MIB + 4096]  # libvirt counts what was asked for


def test_resize_of_images(pair: Pair, name: str) -> None:
    made(pair, name, target="<format type='qcow2'/>")
    for capacity in (2 * MIB, 2 * MIB + 100, 3 * MIB):
        pair.same("volume_resize", "p", name, capacity)
        theirs, ours = pair.both("volume_info", "p", name)
        assert ours[1] == theirs[1]
    for flags in (0, ALLOCATE):
        pair.same("volume_resize", "p", name, 2 * MIB if not flags else 4 * MIB, flags)
    assert pair.same("volume_resize", "p", name, 2 * MIB, SHRINK) is None
    theirs, ours = pair.both("volume_info", "p", name)
    assert ours[1] == theirs[1] == 2 * MIB
    for format, target in (("vmdk", 2 * MIB), ("dir", 2 * MIB)):
        made(pair, f"{name}-{format}", target=f"<format type='{format}'/>")
        why = "libvirt shows the command and what it printed"
        pair.refuses(why, (1, 84), "volume_resize", "p", f"{name}-{format}", target)


def test_resize_beyond_all_files(pair: Pair, name: str) -> None:
    made(pair, name, (1 << 63) - 1, top=SPARSE)
    why = "told before anything is tried"
    pair.refuses(why, (38, 8), "volume_resize", "p", name, (1 << 63) - 1, DELTA)


# Moving bytes


def test_transfers(pair: Pair, name: str) -> None:
    made(pair, name, 100_000, top=SPARSE)
    for data, offset, length in (
        (b"abc", 0, 0), (b"x" * 70_000, 50_000, 0), (b"z" * 10, 200_000, 0), (b"12345", 10, 3),
        (b"12345", 10, 5), (b"12345", 10, 50), (b"", 0, 0), (b"k", 0, 1 << 62),
    ):  # fmt: skip
        pair.same("volume_upload", "p", name, base64.b64encode(data).decode(), offset, length)
        if not 0 < length < len(data):  # how much of too much libvirt writes is not settled
            content(pair, "p", name)
        assert pair.same("volume_info", "p", name)[1] >= 100_000
    for offset, length in (
        (0, 10), (49_999, 3), (0, 0), (200_000, 0), (199_999, 5), (10**9, 0), (10, 1 << 62),
        (1 << 62, 1),
    ):  # fmt: skip
        pair.same("volume_download", "p", name, offset, length)


def test_transfers_of_what_has_no_bytes(pair: Pair, name: str) -> None:
    made(pair, name, target="<format type='dir'/>")
    assert pair.same("volume_upload", "p", name, "QQ==").code == 38
    assert pair.same("volume_download", "p", name).code == 38
    for call, *more in (("volume_upload", "QQ=="), ("volume_download",)):
        assert pair.same(call, "p", "nobody", *more).code == 50


# Wiping


def test_wipe(pair: Pair, name: str) -> None:
    made(pair, name)
    written(pair, name, b"secret" * 1000, 4096)
    pair.same("volume_wipe", "p", name)
    pair.volume("p", name)
    assert content(pair, "p", name) == bytes(MIB)
    pair.same("volume_wipe", "p", name, 9)
    pair.same("volume_wipe", "p", "nobody")


def test_wipe_of_a_sparse_volume(pair: Pair, name: str) -> None:
    made(pair, name, top=SPARSE)
    written(pair, name, b"secret", 4096)
    why = "libvirt only lets go of the space, with the data in it"
    theirs, ours = pair.both("volume_wipe", "p", name)
    assert (theirs, ours) == (None, None)
    theirs, ours = pair.differs(why, "volume_info", "p", name)
    assert (theirs[2], ours[2]) == (0, 4096)
    assert content(pair, "p", name) == bytes(MIB)


def test_wipe_of_an_image(pair: Pair, name: str) -> None:
    made(pair, name, target="<format type='qcow2'/>")
    pair.same("volume_wipe", "p", name)
    theirs, ours = pair.differs("it is an empty image afterwards", "volume_xml", "p", name)
    assert "<format type='raw'/>" in theirs
    assert "<format type='qcow2'/>" in ours


# Cloning


CAPACITIES = (
    "",
    "<capacity>0</capacity>",
    "<capacity>5</capacity>",
    f"<capacity>{2 * MIB}</capacity>",
)
ALLOCATIONS = ("", SPARSE, f"<allocation>{2 * MIB}</allocation>", "<allocation>5000</allocation>")


@pytest.mark.parametrize("sparse", [False, True])
def test_clone(pair: Pair, sparse: bool) -> None:
    source = f"source-{sparse}"
    made(pair, source, MIB + 7 * sparse, top=SPARSE if sparse else "")
    written(pair, source, b"hello" * 1000, 4096)
    for capacity in CAPACITIES:
        for allocation in ALLOCATIONS:
            for pool in ("p", "q"):
                document = f"<volume><name>copy</name>{capacity}{allocation}</volume>"
                assert pair.same("volume_clone", pool, document, "p", source) == "copy"
                pair.volume(pool, "copy")
                assert b"hello" in content(pair, pool, "copy")
                pair.same("volume_delete", pool, "copy")


def test_clone_with_options(pair: Pair, name: str) -> None:
    made(pair, name)
    written(pair, name, b"hello" * 1000, 4096)
    for inner in (
        "<target><permissions><mode>0640</mode><owner>5</owner></permissions></target>",
        "<target><compat>1.1</compat></target>",
        "<backingStore><path>base</path><format type='raw'/></backingStore>",
    ):
        document = f"<volume><name>{name}-copy</name>{inner}</volume>"
        for flags in (0, 1):
            if isinstance(pair.same("volume_clone", "p", document, "p", name, flags), str):
                pair.theirs.call("refresh", "p")  # till then it repeats what was asked for
                pair.volume("p", f"{name}-copy")
                pair.same("volume_delete", "p", f"{name}-copy")
    document = f"<volume><name>{name}-copy</name></volume>"
    theirs, ours = pair.both("volume_clone", "p", document, "p", name, REFLINK)
    assert [theirs.code, ours.code] == [38, 38]
    pair.same("volumes", "p")


def test_refused_clones(pair: Pair, name: str) -> None:
    made(pair, name)
    for document in (
        f"<volume><name>{name}</name></volume>", "<volume><name>a/b</name></volume>", "<volume/>",
        "<volume><name>..</name></volume>", "<volume",
    ):  # fmt: skip
        assert isinstance(pair.same("volume_clone", "p", document, "p", name), Failure)
    for of in ("p", "nowhere"):
        document = "<volume><name>copy</name></volume>"
        assert isinstance(pair.same("volume_clone", "q", document, of, "nobody"), Failure)


def test_clones_with_a_conversion(pair: Pair, name: str) -> None:
    made(pair, name)
    written(pair, name, b"hello" * 1000, 4096)
    for kind in ("qcow2", "vmdk", "vdi", "qed", "qcow"):
        for capacity in (MIB, 2 * MIB):
            document = volume_document("converted", capacity, target=f"<format type='{kind}'/>")
            assert pair.same("volume_clone", "p", document, "p", name) == "converted"
            pair.same("refresh", "p")  # till then libvirt repeats what was asked for
            theirs, ours = pair.both("volume_info", "p", "converted")
            assert (theirs[1], ours[1]) == (MIB, capacity)  # ours is as large as it was asked to be
            if capacity == MIB:
                back = volume_document("back", capacity, target="<format type='raw'/>")
                assert pair.same("volume_clone", "p", back, "p", "converted") == "back"
                assert b"hello" * 1000 in content(pair, "p", "back")
                pair.same("volume_delete", "p", "back")
            pair.same("volume_delete", "p", "converted")


def test_clones_to_what_nobody_makes(pair: Pair, name: str) -> None:
    made(pair, name)
    for kind in ("bochs", "cloop", "dmg", "fat", "vhd", "cow"):
        document = volume_document("never", MIB, target=f"<format type='{kind}'/>")
        why = "libvirt shows the command and what it printed"
        pair.refuses(why, (1, 67), "volume_clone", "p", document, "p", name)


# Going away


def test_delete(pair: Pair, name: str) -> None:
    made(pair, name, target="<format type='dir'/>")
    pair.on_disk(Path.touch, "p", name, "inner")
    assert pair.same("volume_delete", "p", name).code == 38
    pair.on_disk(Path.unlink, "p", name, "inner")
    assert pair.same("volume_delete", "p", name) is None
    assert pair.same("volume_delete", "p", name).code == 50


def test_what_has_vanished(pair: Pair, name: str) -> None:
    made(pair, name, 5)
    pair.on_disk(Path.unlink, "p", name)
    for call in ("volume_info", "volume_xml"):
        assert pair.same(call, "p", name).code == 50
    assert pair.same("volume_upload", "p", name, "QQ==").code == 38
    assert pair.same("volume_download", "p", name).code == 38
    why = "libvirt says that of its record"
    pair.refuses(why, (8, 50), "volume_resize", "p", name, 4)
    assert pair.same("volume_delete", "p", name) is None
    pair.same("volumes", "p")


def test_what_others_made(pair: Pair, name: str) -> None:
    pair.on_disk(lambda path: path.write_bytes(b"123"), "p", name)
    why = "seen without a refresh"
    for call, *arguments in (("volume_xml", "p", name), ("by_path", f"$DIR/p/{name}")):
        theirs, ours = pair.differs(why, call, *arguments)
        assert theirs.code == 50
        assert not isinstance(ours, Failure)
    pair.same("refresh", "p")
    pair.volume("p", name)
    assert pair.same("by_path", f"$DIR/p/{name}") == ["p", name, f"$DIR/p/{name}"]


def test_in_a_stopped_pool(pair: Pair, name: str) -> None:
    pair.pool("stopped", 3)
    pair.same("volume_create", "stopped", volume_document("v", 5))
    pair.same("stop", "stopped")
    for call, *more in (
        ("volumes",), ("volume_xml", "v"), ("volume_create", volume_document("n", 5)), ("refresh",),
        ("volume_delete", "v"), ("stop",),
    ):  # fmt: skip
        assert pair.same(call, "stopped", *more).code == 55
    document = f"<volume><name>{name}</name></volume>"
    assert pair.same("volume_clone", "p", document, "stopped", "v").code == 55
    for call in ("by_path", "by_key"):
        assert pair.same(call, "$DIR/stopped/v").code == 50
    assert os.path.lexists(pair.ours.directory / "stopped/v")
