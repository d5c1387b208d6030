"""The logical units of a SCSI host or of an iSCSI session, as sysfs shows them.

Source: libvirt's behaviour; the kernel's SCSI subsystem in sysfs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from storaged.backends._iscsisession import read_attribute

#: The kinds of units that are volumes: disks, and CD-ROMs and DVDs.
_KINDS: Final = frozenset({"0", "5"})
#: States of a unit in which reading it fails, or waits for its target.
_DEAD: Final = frozenset({"offline", "transport-offline", "blocked", "deleted", "cancel"})
#: ``HOST:BUS:TARGET:LUN``.
_ADDRESS: Final = re.compile(r"(\d+):(\d+):(\d+):(\d+)")
#: What the sizes of sysfs are counted in, in bytes.
_SECTOR: Final = 512
#: How much of a unit is read to see what it holds, in bytes.
HEAD: Final = 1024
#: The labels of disks: offset in the first `HEAD` bytes, what stands there, name.
_LABELS: Final = (
    (0x218, b"LVM2 001", "lvm2"),
    (0x200, b"EFI PART", "gpt"),
    (0, 0x41A9E50B.to_bytes(4, "little"), "dvh"),
    (0, 0x5245.to_bytes(2, "little"), "mac"),
    (0x40, 0x82564557.to_bytes(4, "little"), "bsd"),
    (0x1FC, 0xBEDA.to_bytes(2, "little"), "sun"),
    (0, 0x314C5049000000CB.to_bytes(8, "little"), "pc98"),
    (0x1FE, 0xAA55.to_bytes(2, "little"), "dos"),
)


@dataclass(frozen=True, slots=True)
class Unit:
    """A disk or a CD-ROM at one moment.

    :param address: host, bus, target and LUN.
    :param device: its directory in sysfs.
    :param block: the name of its block device, such as ``sdb``; None: it has none (yet).
    :param state: ``running``, or why it is not.
    """

    address: tuple[int, int, int, int]
    device: str
    block: str | None
    state: str

    @property
    def name(self) -> str:
        """Its name as a volume: libvirt leaves the host out."""
        _, bus, target, lun = self.address
        return f"unit:{bus}:{target}:{lun}"

    @property
    def node(self) -> str:
        """Its device node."""
        return f"/dev/{self.block}"

    @property
    def answers(self) -> bool:
        """Whether a read can come to its end soon."""
        return self.state not in _DEAD

    @property
    def size(self) -> int | None:
        """Its size in bytes, as the kernel last read it; None if it is not known."""
        with suppress(OSError, ValueError):
            return int(read_attribute(f"{self.device}/block/{self.block}/size")) * _SECTOR
        return None


def units_of_session(device: str) -> tuple[Unit, ...]:
    """Return the units of an iSCSI session, in order.

    :param device: the directory of the session in sysfs.
    """
    targets = (f"{device}/{name}" for name in _listed(device) if name.startswith("target"))
    return _units(f"{target}/{name}" for target in targets for name in _listed(target))


def units_of_host(host: int, sysfs: str = "/sys") -> tuple[Unit, ...]:
    """Return the units of a SCSI host, in order."""
    directory = f"{sysfs}/bus/scsi/devices"
    return _units(
        f"{directory}/{name}" for name in _listed(directory) if name.startswith(f"{host}:")
    )


def _units(devices: Iterable[str]) -> tuple[Unit, ...]:
    found = (unit for device in devices if (unit := read_unit(device)) is not None)
    return tuple(sorted(found, key=lambda unit: unit.address))


def read_unit(device: str) -> Unit | None:
    """Return the unit of a directory of sysfs, None if it is none that could be a volume."""
    address = _ADDRESS.fullmatch(device.rpartition("/")[2])
    if address is None:
        return None
    try:
        if read_attribute(f"{device}/type") not in _KINDS:
            return None
        state = read_attribute(f"{device}/state")
    except OSError:  # it has just gone
        return None
    host, bus, target, lun = (int(number) for number in address.groups())
    block = next(iter(_listed(f"{device}/block")), None)
    return Unit((host, bus, target, lun), device, block, state)


def label_of(head: bytes) -> str:
    """Return what kind of label a disk has.

    :param head: its first `HEAD` bytes, or what there is of them.
    """
    for offset, magic, name in _LABELS:
        if head.startswith(magic, offset):
            return name
    return "unknown"


def _listed(directory: str) -> list[str]:
    with suppress(OSError):
        return sorted(os.listdir(directory))  # noqa: PTH208 -- names are all it needs
    return []
