"""Make an empty image of a format that is not written natively."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from storaged.errors import OperationInvalid, OperationUnsupported, system_errors
from storaged.job import Job
from storaged.qsd.daemon import Daemon
from storaged.qsd.graph import ImageFile, file_node

#: QEMU's names of the formats that it can create in one file.
CREATABLE: Final = frozenset(
    {"luks", "parallels", "qcow", "qcow2", "qed", "vdi", "vhdx", "vmdk", "vpc"}
)
_FILE: Final = "image.file"
_KEY: Final = "image.key"
#: A vpc has exactly the size that is asked for, not one that old disks' geometry can express.
_EXACT: Final[Mapping[str, Mapping[str, object]]] = {"vpc": {"force-size": True}}


def create(
    file: ImageFile,
    format: str,
    capacity: int,
    options: Mapping[str, object] | None = None,
    *,
    secret: bytes | None = None,
    iter_time: int | None = None,
    job: Job[Any] | None = None,
) -> None:
    """Make an image in an empty file.

    After an error the file's content is of no use. Nothing is made durable.

    :param file: writable and empty, or a block device.
    :param format: one of `CREATABLE`.
    :param capacity: the virtual size in bytes.
    :param options: more of the format's options under QEMU's names, such as ``subformat``.
    :param secret: the passphrase, in UTF-8; needed for luks, and makes a qcow2 an encrypted one.
    :param iter_time: how long to make it take to try a passphrase, in milliseconds.
    :raise OperationUnsupported: *format* is not made here, or cannot be encrypted.
    :raise OperationInvalid: *file* is not empty: what it holds would be lost.
    :raise OperationFailed: the format does not allow it; the text is QEMU's.
    """
    if format not in CREATABLE:
        raise OperationUnsupported(f"images of format '{format}' are not created")
    with system_errors("cannot stat an image"):
        status = os.fstat(file.fd)
    if stat.S_ISREG(status.st_mode) and status.st_size:
        raise OperationInvalid("the file for a new image is not empty")
    wanted = {
        **_EXACT.get(format, {}),
        **(options or {}),
        "driver": format,
        "file": _FILE,
        "size": capacity,
    }
    wanted |= _encryption(format, secret is not None, iter_time)
    secrets = {} if secret is None else {_KEY: secret}
    file = replace(file, building=True)
    doing = f"create an image of format '{format}'"
    with Daemon(doing, [file], secrets=secrets, job=job) as daemon:
        daemon.add(file_node(file, _FILE, daemon.path))
        daemon.run_job("blockdev-create", figures=False, options=wanted)


def _encryption(format: str, encrypted: bool, iter_time: int | None) -> dict[str, object]:
    if not encrypted:
        return {}
    key: dict[str, object] = {"key-secret": _KEY}
    if iter_time is not None:
        key["iter-time"] = iter_time
    if format == "luks":
        return key
    if format == "qcow2":
        return {"encrypt": {"format": "luks", **key}}
    raise OperationUnsupported(f"images of format '{format}' are not encrypted")
