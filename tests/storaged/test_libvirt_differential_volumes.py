"""Making volumes of directories: the same documents to libvirt's daemon and to storaged.

Where storaged answers something else on purpose, the test says so with ``differs``, ``refuses`` or
``refuses_alone`` and the reason. Two things hold for every new image: storaged tells at once what
libvirt finds at the next refresh only, so libvirt's pool is refreshed before comparing; and what is
made takes less space on the disk, because nothing is written where zeros would be.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.storaged.differential import Failure, Pair, open_pair, volume_document, without

#: Two engines at work, thousands of calls: for the whole run, not for every change.
pytestmark = pytest.mark.slow

MIB = 1 << 20
QCOW2 = "<format type='qcow2'/>"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with open_pair(tmp_path_factory.mktemp("volumes")) as pair:
        pair.pool("p", 1)
        pair.same("volume_create", "p", volume_document("base.raw", MIB))
        pair.same("volume_create", "p", volume_document("base.qcow2", MIB, target=QCOW2))
        pair.both("refresh", "p")
        yield pair


def made(pair: Pair, document: str, flags: int = 0) -> None:
    """Have both make a volume or refuse it alike; compare it and delete it again."""
    name = pair.same("volume_create", "p", document, flags)
    if isinstance(name, Failure):
        return
    pair.theirs.call("refresh", "p")
    theirs, ours = pair.both("volume_xml", "p", name)
    image = "<format type='raw'/>" not in ours.partition("</target>")[0]
    aside = ("allocation",) if image else ()
    assert without(ours, *aside) == without(theirs, *aside), document
    if not image:
        pair.same("volume_info", "p", name)
    pair.same("volume_delete", "p", name)


def refused(pair: Pair, document: str, flags: int = 0) -> Failure:
    failure = pair.same("volume_create", "p", document, flags)
    assert isinstance(failure, Failure)
    return failure


@pytest.mark.parametrize(
    "unit",
    ["", "b", "bytes", "KiB", "k", "KB", "MB", "M", "MiB", "GB", "x", "kib", "T", "E", "YiB"],
)
def test_units(pair: Pair, unit: str) -> None:
    capacity = f"<capacity unit='{unit}'>3</capacity>"
    made(pair, f"<volume><name>u</name>{capacity}<allocation>0</allocation></volume>")


@pytest.mark.parametrize(
    "capacity",
    ["-1", "1k", "1.5", "", " 7 ", "0", "99999999999999999999", "9223372036854775807", "+5",
     "9223372036854775808", "18446744073709551615", "0x10", "1 000"],
)  # fmt: skip
def test_capacities(pair: Pair, capacity: str) -> None:
    made(pair, volume_document("c", capacity, top="<allocation>0</allocation>"))


@pytest.mark.parametrize("allocation", ["0", "1", "4096", "1000000", "3000000", "-1", "", None])
@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_allocations(pair: Pair, allocation: str | None, format: str) -> None:
    top = "" if allocation is None else f"<allocation>{allocation}</allocation>"
    target = f"<format type='{format}'/>"
    for flags in (0, 1):
        made(pair, volume_document("a", MIB + 1, top=top, target=target), flags)


def test_the_pools_figures(pair: Pair) -> None:
    pair.pool("figures", 2)
    before = pair.both("pool_info", "figures")

    def taken() -> list[list[int]]:
        now = pair.both("pool_info", "figures")
        return [
            [b - a for a, b in zip(*infos, strict=True)] for infos in zip(before, now, strict=True)
        ]

    for number, allocation in enumerate((0, 5000, 3 * MIB)):
        top = f"<allocation>{allocation}</allocation>"
        pair.same("volume_create", "figures", volume_document(str(number), MIB, top=top))
        theirs, ours = taken()
        assert ours == theirs
        pair.volume("figures", str(number))
    for number in range(3):
        pair.same("volume_delete", "figures", str(number))
        theirs, ours = taken()
        assert ours == theirs
    assert ours == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "name",
    ["a/b", ".", "..", "", "x y", "é", "a&amp;b", "&lt;", "q'", 'q"', "-x", "y" * 255, "/", "a,b",
     "a:b", "base.raw", "b\\"],
)  # fmt: skip
def test_names(pair: Pair, name: str) -> None:
    for target in ("", QCOW2):
        made(pair, volume_document(name, 512, target=target))


def test_refused_names(pair: Pair) -> None:
    for name in ("tab\tx", "nl\nx"):
        document = volume_document(name, 512)
        why = "a listing of such a name deceives"
        assert pair.refuses_alone(why, "volume_create", "p", document).code == 8
        pair.theirs.call("volume_delete", "p", name)
    why = "nothing is tried that cannot be"
    pair.refuses(why, (38, 8), "volume_create", "p", volume_document("y" * 256, 512))


def test_names_that_are_taken(pair: Pair) -> None:
    pair.on_disk(os.mkfifo, "p", "fifo")
    assert refused(pair, volume_document("fifo", 5)).code == 55
    pair.on_disk(Path.unlink, "p", "fifo")
    pair.on_disk(lambda path: path.symlink_to("nowhere"), "p", "link")
    why = "a link has the name too; libvirt sees it as it makes the file"
    pair.refuses(why, (38, 55), "volume_create", "p", volume_document("link", 5))
    pair.on_disk(Path.unlink, "p", "link")
    pair.on_disk(Path.touch, "p", "new")
    why = "what others made is seen without a refresh"
    pair.refuses(why, (55, 90), "volume_create", "p", volume_document("new", 5))
    pair.on_disk(Path.unlink, "p", "new")
    pair.both("refresh", "p")


@pytest.mark.parametrize("document", [
    "<vol/>", "<volume", "", "<volume><capacity>512</capacity></volume>",
    "<volume><name>n</name></volume>",
    "<volume type='block'><name>n</name><capacity>1</capacity></volume>",
    "<volume type='dir'><name>n</name><capacity>1</capacity></volume>",
    "<volume type='x'><name>n</name><capacity>1</capacity></volume>",
    "<volume><name>n</name><key>foo</key><capacity>1</capacity></volume>",
])  # fmt: skip
def test_documents(pair: Pair, document: str) -> None:
    made(pair, document)


FORMATS = ("raw", "dir", "qcow2", "vmdk", "", "RAW", "none", "luks", "vhdx", "auto")
FOREIGN = ("vpc", "vdi", "qcow", "qed")
UNMADE = ("bochs", "cloop", "dmg", "fat", "vhd", "ploop", "cow")


@pytest.mark.parametrize("format", FORMATS)
def test_formats(pair: Pair, format: str) -> None:
    target = f"<format type='{format}'/>"
    made(pair, volume_document("f", MIB, target=target))
    made(pair, volume_document("f", MIB, target=f"{target}<compat>1.1</compat>"))
    lazy = "<features><lazy_refcounts/></features>"
    made(pair, volume_document("f", MIB, target=target + lazy))
    if format != "vmdk":
        backing = "<backingStore><path>base.raw</path><format type='raw'/></backingStore>"
        made(pair, volume_document("f", MIB, top=backing, target=target))
        made(pair, volume_document("f", MIB, target=f"{target}<clusterSize>65536</clusterSize>"))
    if format != "dir":
        made(pair, volume_document("f", MIB, target=target), 1)


@pytest.mark.parametrize("format", FOREIGN)
def test_formats_that_are_not_native(pair: Pair, format: str) -> None:
    """QEMU makes them, ours with exactly the capacity that was asked for."""
    document = volume_document("f", MIB, target=f"<format type='{format}'/>")
    assert pair.same("volume_create", "p", document) == "f"
    pair.same("refresh", "p")
    theirs, ours = pair.both("volume_info", "p", "f")
    assert ours[1] == MIB
    assert theirs[1] in (MIB, 1079296)  # a geometry that old disks can have
    pair.same("volume_delete", "p", "f")


@pytest.mark.parametrize("format", UNMADE)
def test_formats_that_nobody_makes(pair: Pair, format: str) -> None:
    document = volume_document("f", MIB, target=f"<format type='{format}'/>")
    theirs, ours = pair.differs(
        "libvirt shows what qemu-img printed", "volume_create", "p", document
    )
    assert ours.code == 67
    assert isinstance(theirs, Failure)


def test_iso(pair: Pair) -> None:
    for capacity in (0, 5, MIB):
        document = volume_document("iso", capacity, target="<format type='iso'/>")
        pair.same("volume_create", "p", document)
        pair.theirs.call("refresh", "p")
        theirs, ours = pair.both("volume_xml", "p", "iso")
        assert without(ours, "allocation") == without(theirs, "allocation")
        pair.same("volume_delete", "p", "iso")
    for more in ("<compat>1.1</compat>", "<features><extended_l2/></features>"):
        refused(pair, volume_document("iso", 5, target=f"<format type='iso'/>{more}"))
    refused(pair, volume_document("iso", 5, target="<format type='iso'/>"), 1)


@pytest.mark.parametrize("permissions", [
    "<mode>0644</mode>", "<mode>0</mode>", "<mode>7777</mode>", "<mode>07777</mode>",
    "<mode>10000</mode>", "<mode>x</mode>", "<owner>5</owner>", "<owner>5</owner><group>7</group>",
    "<owner>-1</owner><group>-1</group>", "<owner>-2</owner>", "<owner>4294967295</owner>",
    "<owner>4294967296</owner>", "<owner>x</owner>", "<label>foo</label>", "<mode/>",
    "<mode>888</mode>", "<mode>0600</mode><owner>0</owner><group>0</group>", "<mode>u=rw</mode>",
])  # fmt: skip
def test_permissions(pair: Pair, permissions: str) -> None:
    for format in ("raw", "qcow2", "dir"):
        target = f"<format type='{format}'/><permissions>{permissions}</permissions>"
        made(pair, volume_document("perm", MIB, target=target))


OPTIONS = (
    "<compat>0.10</compat>", "<compat>1.1</compat>", "<compat>11</compat>", "<compat>a</compat>",
    "<compat>1.1.1</compat>", "<compat/>", "<compat>v2</compat>", "<features/>",
    "<features><lazy_refcounts/></features>", "<features><extended_l2/></features>",
    "<features><lazy_refcounts/><extended_l2/></features>", "<features>text</features>",
    "<compat>0.10</compat><features/>", "<features><bogus/></features>",
    "<compat>0.10</compat><features><lazy_refcounts/></features>",
    "<compat>0.10</compat><features><extended_l2/></features>",
    "<clusterSize>65536</clusterSize>", "<clusterSize unit='KiB'>64</clusterSize>",
    "<clusterSize>512</clusterSize>", "<clusterSize>0</clusterSize>", "<clusterSize/>",
    "<clusterSize unit='M'>2</clusterSize>", "<clusterSize>-1</clusterSize>",
    "<clusterSize>x</clusterSize>", "<clusterSize unit='x'>1</clusterSize>",
    "<features><extended_l2/></features><clusterSize>16384</clusterSize>", "<nocow/>",
    "<path>/foo/bar</path>", "<timestamps><mtime>5</mtime></timestamps>",
    "<encryption format='x'/>", "<encryption/>",
)  # fmt: skip


@pytest.mark.parametrize("option", OPTIONS)
def test_options(pair: Pair, option: str) -> None:
    for format in ("qcow2", "raw"):
        document = volume_document("o", MIB, target=f"<format type='{format}'/>{option}")
        for flags in (0, 1):
            made(pair, document, flags)


@pytest.mark.parametrize("option", [
    "<compat>1.2</compat>", "<clusterSize>511</clusterSize>", "<clusterSize>100000</clusterSize>",
    "<clusterSize unit='M'>4</clusterSize>",
    "<features><extended_l2/></features><clusterSize>8192</clusterSize>",
])  # fmt: skip
def test_options_that_qemu_img_would_refuse(pair: Pair, option: str) -> None:
    document = volume_document("o", MIB, target=QCOW2 + option)
    why = "libvirt shows the command and what it printed"
    pair.refuses(why, (1, 67), "volume_create", "p", document)


def test_a_compat_that_is_no_number(pair: Pair) -> None:
    for compat in ("-1.1", " 1.1"):
        document = volume_document("o", MIB, target=f"<compat>{compat}</compat>")
        why = "what libvirt's reader of numbers lets pass, and never means anything"
        assert pair.refuses_alone(why, "volume_create", "p", document).code == 27
        pair.theirs.call("volume_delete", "p", "o")


def test_a_feature_of_later_versions(pair: Pair) -> None:
    for format in ("raw", "qcow2"):
        target = f"<format type='{format}'/><features><data_file/></features>"
        assert refused(pair, volume_document("o", MIB, target=target)).code == 67


def test_no_encrypted_volumes(pair: Pair) -> None:
    for format in ("raw", "qcow2"):
        target = f"<format type='{format}'/><encryption format='luks'/>"
        document = volume_document("o", MIB, target=target)
        assert refused(pair, document).code == 8


BACKINGS = (
    "<path>$DIR/p/base.raw</path><format type='raw'/>", "<path>base.raw</path><format type='raw'/>",
    "<path>$DIR/p/base.raw</path>", "<path>base.qcow2</path><format type='qcow2'/>",
    "<path>base.qcow2</path>", "<path>$DIR/p/nope</path><format type='raw'/>", "<path/>", "",
    "<path>nope</path><format type='raw'/>", "<format type='raw'/>",
    "<path>base.raw</path><format type='x'/>", "<path>../p/base.raw</path><format type='raw'/>",
    "<path>./base.raw</path><format type='raw'/>", "<path>nbd:localhost:1</path>",
    "<path>base.raw</path><permissions><mode>x</mode></permissions>",
    "<path>base.qcow2</path><format type='raw'/>",
)  # fmt: skip


@pytest.mark.parametrize("backing", BACKINGS)
def test_backing_stores(pair: Pair, backing: str) -> None:
    for format in ("qcow2", "raw", "dir"):
        for capacity in (f"<capacity>{2 * MIB}</capacity>", ""):
            document = (
                f"<volume><name>b</name>{capacity}<backingStore>{backing}</backingStore><target>"
                f"<format type='{format}'/></target></volume>"
            )
            made(pair, document)


@pytest.mark.parametrize("backing", [
    "<path>base.raw</path><format type='qcow2'/>", "<path>base.raw</path><format type='vmdk'/>",
    "<path>.</path><format type='raw'/>", "<path>$DIR/p</path><format type='dir'/>",
])  # fmt: skip
def test_backing_stores_that_qemu_img_would_refuse(pair: Pair, backing: str) -> None:
    for capacity in (f"<capacity>{2 * MIB}</capacity>", ""):
        document = (
            f"<volume><name>b</name>{capacity}<backingStore>{backing}</backingStore>"
            f"<target>{QCOW2}</target></volume>"
        )
        theirs, ours = pair.differs("libvirt shows the command", "volume_create", "p", document)
        assert theirs.code == 1
        assert ours.code in (38, 67)
    pair.same("volumes", "p")
