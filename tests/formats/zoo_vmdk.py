"""The zoo's VMDK images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from storaged.formats import vmdk_create
from storaged.formats.image import ImageState
from tests.formats.memory import MemoryHandle
from tests.formats.vmdk_images import text
from tests.formats.zoo_case import (
    ALL,
    CORRUPT,
    MIB,
    OK,
    SUSPICIOUS,
    UNSUPPORTED,
    Case,
    Patch,
    patched,
)


def vmdk_cases() -> Iterator[Case]:
    yield from field_cases()
    yield from descriptor_cases()
    yield from stream_cases()


def vmdk_image(*patches: Patch) -> bytes:
    handle = MemoryHandle()
    vmdk_create.create(handle, 64 * MIB, cid=0x1234ABCD)
    return patched(handle.data, *patches)


def vmdk_text(old: str, new: str) -> bytes:
    data = vmdk_image()
    assert old.encode() in data
    head = data[:10752].replace(old.encode(), new.encode())
    return head[:10752].ljust(10752, b"\0") + data[10752:]


def stream(*footer_patches: Patch) -> bytes:
    """An export of VMware's tools: the grain directory's place stands in the footer."""
    head = bytearray(vmdk_text("monolithicSparse", "streamOptimized").replace(b"RW ", b"RDONLY "))
    patched(head, (4, "<I", 3), (8, "<I", 0x30001), (77, "<H", 1))
    footer = bytearray(head[:512])
    patched(head, (56, "<Q", ALL))
    return bytes(head) + bytes(512) + patched(footer, *footer_patches) + bytes(512)


def stream_cases() -> Iterator[Case]:
    yield Case("v-stream", stream(), "vmdk", OK, 64 * MIB)
    for name, patch, reason in (
        ("magic", (0, "<I", 0), "no footer"),
        ("capacity", (12, "<Q", 5), "no footer"),
        ("gd", (56, "<Q", 1 << 40), "grain directory"),
        ("gd0", (56, "<Q", 0), "grain directory"),
    ):
        yield Case(f"v-stream-{name}", stream(patch), "vmdk", CORRUPT, 64 * MIB, reason)


def field_cases() -> Iterator[Case]:
    for name, patch, state, capacity, reason in (
        ("ver4", (4, "<I", 4), UNSUPPORTED, None, "version 4"),
        ("ver0", (4, "<I", 0), UNSUPPORTED, None, "version 0"),
        ("cap0", (12, "<Q", 0), CORRUPT, None, "capacity is 0"),
        ("capff", (12, "<Q", ALL), CORRUPT, None, "capacity"),
        ("grain0", (20, "<Q", 0), CORRUPT, 64 * MIB, "grain size"),
        ("grainodd", (20, "<Q", 127), CORRUPT, 64 * MIB, "grain size"),
        ("grainbig", (20, "<Q", 1 << 32), CORRUPT, 64 * MIB, "grain size"),
        ("grainff", (20, "<Q", ALL), CORRUPT, 64 * MIB, "grain size"),
        ("gte0", (44, "<I", 0), CORRUPT, 64 * MIB, "0 entries"),
        ("gte513", (44, "<I", 513), CORRUPT, 64 * MIB, "513 entries"),
        ("gdeof", (56, "<Q", 1 << 30), CORRUPT, 64 * MIB, "grain directory"),
        ("gdovf", (56, "<Q", 1 << 55), CORRUPT, 64 * MIB, "grain directory"),
        ("rgdovf", (48, "<Q", 1 << 55), CORRUPT, 64 * MIB, "redundant grain directory"),
        ("gdatend", (56, "<Q", ALL), CORRUPT, 64 * MIB, "footer"),
        ("descoff", (28, "<Q", 0x400), CORRUPT, 64 * MIB, "descriptor at sector 1024"),
        ("descsz", (36, "<Q", 1 << 40), CORRUPT, 64 * MIB, "descriptor of"),
        ("desc100", (36, "<Q", 100), SUSPICIOUS, 64 * MIB, "not read"),
        ("overhead", (64, "<Q", 1 << 40), CORRUPT, 64 * MIB, "beyond the end"),
        ("unclean", (72, "B", 1), SUSPICIOUS, 64 * MIB, "not closed cleanly"),
        ("nlbad", (74, "B", 10), CORRUPT, 64 * MIB, "newline"),
        ("comp2", (77, "<H", 2), UNSUPPORTED, 64 * MIB, "algorithm 2"),
    ):
        yield Case(f"v-{name}", vmdk_image(patch), "vmdk", state, capacity, reason)


def descriptor_cases() -> Iterator[Case]:
    for name, old, new, reason in (
        ("custom", '"monolithicSparse"', '"custom"', "createType"),
        ("cidbad", "CID=1234abcd", "CID=xyz", "CID"),
        ("extjson", '"disk.vmdk"', '"json:{}"', "no plain file name"),
        ("extdots", '"disk.vmdk"', '".."', "no plain file name"),
        ("flat", "SPARSE", "FLAT", "not a sparse one"),
        ("noaccess", "RW 131072", "NOACCESS 131072", "not a sparse one"),
        ("noext", "RW 131072", "# 131072", "0 extents"),
        ("badline", "RW 131072", "XX 131072", "not understood"),
        ("cidtwice", "#DDB", "CID=1", "CID again"),
        ("nocreatetype", "createType", "created", "createType"),
        ("extbig", "RW 131072", "RW 131073", "more than the disk"),
        ("two-hints", "version=1", '#parentFileNameHint="x"', "programs differ"),
        ("manyext", "\n#DDB", '\nRW 1 SPARSE "b"' * 20, "21 extents"),
    ):
        yield Case(f"v-in-{name}", vmdk_text(old, new), "vmdk", SUSPICIOUS, 64 * MIB, reason)
    other = vmdk_text('"disk.vmdk"', '"/etc/passwd"')
    yield Case("v-extname", other, "vmdk", SUSPICIOUS, 64 * MIB, "no plain file name")
    yield Case("v-trunc", vmdk_image()[:60000], "vmdk", CORRUPT, 64 * MIB, "beyond the end")
    yield Case("v-40", vmdk_image()[:40], "vmdk", CORRUPT, None, "truncated")
    for file in descriptor_files():
        # libvirt lists what is a descriptor alone as raw
        yield Case(f"v-{file.name}", file.data, "raw", SUSPICIOUS, None, "VMDK descriptor")


@dataclass(frozen=True)
class DescriptorFile:
    """A descriptor whose data lie in other files, and what opening it has to say."""

    name: str
    data: bytes
    state: ImageState
    reason: str = ""


def descriptor_files() -> list[DescriptorFile]:
    """Return them all; the file's own name is ``own.vmdk``."""
    sound = [DescriptorFile(*row) for row in _sound_files()]
    return sound + [DescriptorFile(*row) for row in (*_named_files(), *_odd_files())]


def _sound_files() -> Iterator[tuple[str, bytes, ImageState]]:
    yield "split", text('RW 8 FLAT "a" 0', 'RW 8 FLAT "b" 5'), OK
    yield "esx", text('RW 8 VMFS "own-flat.vmdk"', kind="vmfs"), OK
    yield "esx-delta", text('RW 8 VMFSSPARSE "own-delta.vmdk"', kind="vmfsSparse"), OK


def _named_files() -> Iterator[tuple[str, bytes, ImageState, str]]:
    for name, extent in (
        ("flat-passwd", "/etc/passwd"),
        ("flat-rel", "../../etc/passwd"),
        ("flat-dev", "/dev/vda"),
        ("flat-json", "json:{}"),
        ("nbd", "nbd:localhost:1"),
        ("backslash", "..\\secret"),
        ("dots", ".."),
        ("control", "a\x1b[2Jb"),
        ("noname", ""),
    ):
        yield name, text(f'RW 8 FLAT "{extent}" 0'), CORRUPT, "no plain file name"
    yield "vmfs", text('RW 8 VMFS "/etc/passwd"', kind="vmfs"), CORRUPT, "no plain file name"
    self = 'RW 8 FLAT "own.vmdk" 0'
    yield "flat-self", text(self), CORRUPT, "names itself"
    loop = text('RW 8 SPARSE "own.vmdk"', kind="twoGbMaxExtentSparse")
    yield "sparse-selfloop", loop, CORRUPT, "names itself"
    yield "twice", text(*['RW 8 FLAT "a" 0'] * 2), CORRUPT, "2 extents have the same name"


def _odd_files() -> Iterator[tuple[str, bytes, ImageState, str]]:
    flat = 'RW 8 FLAT "a" 0'
    yield "flat-neg", text('RW -8 FLAT "a" 0'), CORRUPT, "not understood"
    yield "flat-huge", text(f'RW {2**63} FLAT "a" 0'), CORRUPT, "line 6"
    yield "flat-noext", text(), CORRUPT, "0 extents"
    yield "rdonly", text(flat.replace("RW", "RDONLY")), UNSUPPORTED, "RDONLY"
    yield "noaccess", text(flat.replace("RW", "NOACCESS")), UNSUPPORTED, "NOACCESS"
    yield "zero", text(flat, "RW 8 ZERO"), UNSUPPORTED, "type ZERO"
    yield "rdm", text('RW 8 VMFSRDM "a"', kind="vmfs"), UNSUPPORTED, "type VMFSRDM"
    yield "sesparse", text('RW 8 SESPARSE "a"', kind="seSparse"), UNSUPPORTED, "createType"
    yield "custom", text(flat, kind="custom"), UNSUPPORTED, "createType"
    yield "fulldev", text(flat, kind="fullDevice"), UNSUPPORTED, "createType"
    yield "nocreatetype", text(flat).replace(b"createType", b"created"), UNSUPPORTED, "createType"
    yield "sparse", text('RW 8 SPARSE "a"', kind="monolithicSparse"), CORRUPT, "no separate"
    yield "twoflat", text(flat, 'RW 8 FLAT "b" 0', kind="monolithicFlat"), CORRUPT, "2 extents"
    yield "manyext", text(*[flat] * 10000), CORRUPT, "more than 4096 extents"
    yield "cidbad", text(flat, cid="xyz"), CORRUPT, "no valid CID"
    parent = 'parentFileNameHint="/etc/passwd"'
    yield "parent", text(flat, more=parent), CORRUPT, "cannot have a parent"
    yield "only", b"# Disk DescriptorFile", UNSUPPORTED, "createType"
    yield "binary", b"# Disk DescriptorFile" + bytes(range(256)) * 8, CORRUPT, "follows"
