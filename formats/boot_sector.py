"""What a disk's own first sectors say: a partition table or a FAT file system.

That is content, not a format: a guest writes it. It names what a raw image holds, and says nothing
against any other format. Source: the UEFI specification; Microsoft's FAT specification.
"""

from __future__ import annotations

import struct

_SECTOR = 512
_SIGNATURE = b"\x55\xaa"
_GPT = b"EFI PART"
_PARTITIONS = 446
_ENTRY = struct.Struct("<B3sB3sII")
#: BIOS parameter block from offset 11: bytes a sector, sectors a cluster, reserved sectors, FATs,
#: root entries, sectors, media, sectors a FAT; then, from 32 on, sectors and sectors a FAT.
_BPB = struct.Struct("<HBHBHHBH")
_BPB_LARGE = struct.Struct("<II")
#: Fewer clusters than these make FAT12 and FAT16.
_FAT12, _FAT16 = 4085, 65525


def content(head: bytes) -> str | None:
    """Return ``gpt``, ``mbr``, ``fat12``, ``fat16`` or ``fat32``; None if it is none of them.

    :param head: the first bytes of a disk; 4104 are enough.
    """
    for sector in (_SECTOR, 4096):
        if head[sector : sector + len(_GPT)] == _GPT:
            return "gpt"
    if head[510:512] != _SIGNATURE:
        return None
    return _fat(head) or ("mbr" if _has_partitions(head) else None)


def _has_partitions(head: bytes) -> bool:
    entries = [_ENTRY.unpack_from(head, _PARTITIONS + 16 * number) for number in range(4)]
    if any(status & 0x7F for status, *_ in entries):
        return False
    return any(kind and sectors for _, _, kind, _, _, sectors in entries)


def _fat(head: bytes) -> str | None:
    size, cluster, reserved, fats, root, sectors, media, length = _BPB.unpack_from(head, 11)
    large, length32 = _BPB_LARGE.unpack_from(head, 32)
    sane = (
        size in (512, 1024, 2048, 4096)
        and cluster.bit_count() == 1
        and reserved
        and fats in (1, 2)
        and (media == 0xF0 or media >= 0xF8)
    )
    if not sane:
        return None
    tables = fats * (length or length32)
    data = (sectors or large) - reserved - tables - -(-32 * root // size)
    if data < cluster or not tables:
        return None
    if not length:
        return "fat32"
    return "fat12" if data // cluster < _FAT12 else "fat16"
