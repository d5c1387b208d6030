"""What a device holds already: libvirt's rules for building on it, asked of blkid.

blkid tells the same for "there is nothing" and for "it cannot be read", so the ends of the device,
where signatures are, are read here first.

Sources: libvirt's behaviour for ``VIR_STORAGE_POOL_BUILD_NO_OVERWRITE``; blkid(8).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storaged import tool
from storaged.backends._inuse import require_unused
from storaged.errors import (
    MissingProgram,
    OperationInvalid,
    PoolBuilt,
    ProbeFailed,
    StorageError,
    system_errors,
)
from storaged.formats.file import FileHandle
from storaged.formats.probe import probe
from storaged.job import Job

#: How long blkid may take, in seconds.
_BLKID_TIMEOUT = 30.0
#: blkid's exit statuses: something was found, nothing was, several things contradict each other.
_FOUND, _NOTHING, _AMBIVALENT = 0, 2, 8
#: Names of libvirt that blkid has others for.
_BLKID_NAMES = {"hfs+": "hfsplus", "lvm2": "LVM2_member"}
#: How much of each end of a device is read, and is overwritten by `zero_ends`, in bytes.
_PROBED = 1 << 18
_ZEROED = 1 << 20


@dataclass(frozen=True, slots=True)
class Signature:
    """What blkid found on a device.

    :param type: of the file system or the like, such as ``ext4``; "" if there is none.
    :param table: kind of the partition table, such as ``gpt``; "" if there is none.
    :param ambivalent: several signatures contradict each other.
    """

    type: str = ""
    table: str = ""
    ambivalent: bool = False

    @property
    def format(self) -> str:
        """The one word for what is there; "" for nothing."""
        return self.type or self.table


def check_empty(device: str, wanted: str, job: Job[Any] | None = None) -> None:
    """Refuse a device that holds anything.

    :param device: path of a block device, or of a regular file.
    :param wanted: the format it is to get, in libvirt's or blkid's words.
    :raise PoolBuilt: it holds something.
    :raise ProbeFailed: it cannot be told what it holds.
    :raise OperationInvalid: there is no blkid to ask.
    """
    try:
        found = read_signature(device, wanted, job)
    except MissingProgram as err:
        raise OperationInvalid(
            f"Unable to probe '{device}' for existing data, forced overwrite is necessary",
            advice=err.advice,
        ) from err
    if found.ambivalent:
        raise ProbeFailed(
            "Found additional probes to run, probing may be incorrect",
            advice=f"Several signatures contradict each other: wipefs {device} lists them.",
        )
    if not found.format:
        return
    if found.format.lower() == _BLKID_NAMES.get(wanted, wanted).lower():
        raise PoolBuilt(
            f"Device '{device}' already formatted using '{wanted}'",
            advice="Build without a flag to keep it, or with --overwrite to lose what is on it.",
        )
    raise PoolBuilt(
        f"Format of device '{device}' does not match the expected format '{wanted}', "
        "forced overwrite is necessary",
        advice=f"It holds {found.format}, which --overwrite would lose.",
    )


def read_signature(device: str, wanted: str, job: Job[Any] | None = None) -> Signature:
    """Ask blkid what is on a device, past its cache.

    :param wanted: for the message: what was hoped for.
    :raise ProbeFailed: the device cannot be read.
    :raise MissingProgram: there is no blkid.
    """
    try:
        with system_errors(f"cannot read device '{device}'"):
            _read_ends(device)
    except StorageError as err:
        raise _unprobed(wanted, err.message) from err
    done = tool.run(
        ["blkid", "-p", "-o", "export", device],
        timeout=_BLKID_TIMEOUT,
        job=job,
        accept=(_FOUND, _NOTHING, _AMBIVALENT),
    )
    if done.status == _AMBIVALENT:
        return Signature(ambivalent=True)
    if done.status == _NOTHING:
        return _image_signature(device)
    facts = dict(line.split("=", 1) for line in done.text.splitlines() if "=" in line)
    found = Signature(facts.get("TYPE", ""), facts.get("PTTYPE", ""))
    if not found.format:
        if facts.keys() - {"DEVNAME"} and not any(key.startswith("PART_ENTRY") for key in facts):
            raise _unprobed(wanted, f"blkid printed: {done.text[:200]!r}")
        return Signature()  # only where it lies on its disk is told: it is an empty partition
    return found


def _image_signature(device: str) -> Signature:
    """Look for the image of a machine's disk, which blkid does not know."""
    with system_errors(f"cannot read device '{device}'"), Path(device).open("rb") as file:
        found = probe(FileHandle(file.fileno(), owned=False))
    return Signature("" if found.format == "raw" and found.encryption is None else found.format)


def zero_ends(device: str) -> None:
    """Overwrite the first and the last MiB of a device with zeros, and bring that to the disk.

    :raise OperationInvalid: it is in use.
    :raise SystemFailure: it cannot be written.
    """
    require_unused(device)
    with system_errors(f"cannot zero out the ends of device '{device}'"):
        fd = os.open(device, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
        try:
            size = os.lseek(fd, 0, os.SEEK_END)
            for offset in (0, max(size - _ZEROED, 0)):
                _write_zeros(fd, offset, min(_ZEROED, size - offset))
            os.fsync(fd)
        finally:
            os.close(fd)


def _write_zeros(fd: int, offset: int, length: int) -> None:
    while length:
        written = os.pwrite(fd, bytes(length), offset)
        offset += written
        length -= written


def _read_ends(device: str) -> None:
    fd = os.open(device, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        size = os.lseek(fd, 0, os.SEEK_END)
        os.pread(fd, _PROBED, 0)
        os.pread(fd, _PROBED, max(size - _PROBED, 0))
    finally:
        os.close(fd)


def _unprobed(wanted: str, why: str) -> ProbeFailed:
    return ProbeFailed(f"Failed to probe for format type '{wanted}'", advice=f"{why}.")
