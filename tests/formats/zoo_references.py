"""Sound images that name others: files, devices, servers, themselves."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from storaged.formats import vmdk_create
from storaged.formats.vmdk_create import Parent
from tests.formats.memory import MemoryHandle
from tests.formats.zoo_case import GIB, MIB, OK, SUSPICIOUS, Case
from tests.formats.zoo_qcow2 import sound


@dataclass(frozen=True)
class ReferenceCase(Case):
    """An image that refers to something.

    :param danger: what speaks against following the reference; "" if its words do not.
    :param note: what is to be known of it.
    """

    danger: str = ""
    note: str = ""
    backing: bytes = b""


def reference_cases() -> Iterator[ReferenceCase]:
    yield from _files()
    yield from _others()
    yield from _odd_names()
    yield from _parents()


def _over(
    name: str, backing: bytes, format: str | None = "raw", danger: str = "", note: str = ""
) -> ReferenceCase:
    data = bytes(sound(backing=backing, backing_format=format))
    return ReferenceCase(name, data, "qcow2", OK, GIB, danger=danger, note=note, backing=backing)


def _files() -> Iterator[ReferenceCase]:
    outside = "outside the pool"
    yield _over("q-bk-passwd", b"/etc/passwd", note=outside)
    yield _over("q-bk-nofmt", b"secret.txt", None, note="not recorded")
    yield _over("q-bk-self", b"q-bk-self", "qcow2")
    yield _over("q-bk-loopA", b"q-bk-loopB", "qcow2")
    yield _over("q-bk-loopB", b"q-bk-loopA", "qcow2")
    yield _over("q-bk-dots", b"../../../../../../etc/shadow", note=outside)
    yield _over("q-bk-missing", b"nonexistent")
    yield _over("q-bk-1023", b"a" * 1023)
    yield _over("q-bk-colon", b"./nbd:1:2")
    yield _over("q-bk-fifo", b"fifo")
    yield _over("q-bk-dir", b".", "qcow2", note=outside)
    yield _over("q-chain300", b"q-chain299", "qcow2")


def _others() -> Iterator[ReferenceCase]:
    for name, backing, danger in (
        (
            "json",
            b'json:{"driver":"raw","file":{"driver":"file","filename":"/etc/passwd"}}',
            "json:",
        ),
        ("jsonbad", b"json:" + b"[" * 900, "json:"),
        ("nbd", b"nbd://127.0.0.1:1/x", "network"),
        ("http", b"http://127.0.0.1:1/x", "network"),
        ("rbd", b"rbd:pool/img:conf=/etc/passwd", "network"),
        ("fat", b"fat:/etc", "network"),
        ("file", b"file:/etc/passwd", "network"),
        ("dev", b"/dev/vda", "a device"),
        ("devdots", b"../../../../../../../../../../../../dev/./vda", "a device"),
        ("devslash", b"//dev///vda", "a device"),
        ("zero", b"/dev/zero", "a device"),
        ("proc", b"/proc/self/mem", "a device"),
    ):
        yield _over(f"q-bk-{name}", backing, danger=danger)


def _odd_names() -> Iterator[ReferenceCase]:
    yield _over("q-bk-nonutf8", b"\xff\xfe\xfdbad", danger="no name of a file")
    yield _over("q-bk-control", b"a\x1b[2Jb\r\n", danger="no name of a file")
    # as wide as the one it takes the place of, and not ours to make
    data = bytes(sound(backing=b"secret.txt", backing_format="raw"))
    yield ReferenceCase(
        "q-bk-nulname", data.replace(b"secret.txt", b"secret\0txt"), "qcow2", SUSPICIOUS, GIB,
        "zero byte", danger="zero byte", backing=b"secret\0txt",
    )  # fmt: skip


def _parents() -> Iterator[ReferenceCase]:
    """A parent's content id is not looked at before it is opened."""
    for name, parent in (
        ("v-ov-cid", b"v-unclean"),
        ("v-ov-self", b"v-ov-self"),
        ("v-ov-qcow2", b"q-hl105"),
    ):
        handle = MemoryHandle()
        vmdk_create.create(handle, 64 * MIB, cid=1, parent=Parent(parent, 0x5555))
        data = bytes(handle.data)
        yield ReferenceCase(name, data, "vmdk", OK, 64 * MIB, backing=parent)


def chain(length: int) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of so many images, each over the one before; the first is raw."""
    yield "q-chain0", bytes(MIB)
    for number in range(1, length):
        format = "qcow2" if number > 1 else "raw"
        backing = b"q-chain%d" % (number - 1)
        image = sound(MIB, cluster_size=512, backing=backing, backing_format=format)
        yield f"q-chain{number}", bytes(image)


def disguised() -> Iterator[Case]:
    """Raw data that some tool takes for more than that, and libvirt does not."""
    for name, magic in (
        ("gz", b"\x1f\x8b\x08\0"),
        ("xz", b"\xfd7zXZ\0"),
        ("zstd", b"\x28\xb5\x2f\xfd"),
        ("bz2", b"BZh9"),
        ("zip", b"PK\3\4"),
        ("elf", b"\x7fELF\2\1\1"),
        ("script", b"#!/bin/sh\nrm -rf /\n"),
        ("gpt", bytes(510) + b"\x55\xaaEFI PART"),
    ):
        yield Case(f"r-{name}", magic.ljust(65536, b"\0"), "raw", OK)
    gpt = bytearray(sound())
    gpt[510:520] = b"\x55\xaaEFI PART"
    yield Case("p-qcow2-gpt", bytes(gpt), "qcow2", OK, GIB)
    moved = bytearray(65536)
    moved[512:] = sound()[: 65536 - 512]
    yield Case("r-qcow2-behind", bytes(moved), "raw", OK)
    ends = bytes(65536 - 512) + struct.pack(">4sI", b"QFI\xfb", 3).ljust(512, b"\0")
    yield Case("r-qcow2-end", ends, "raw", OK)
