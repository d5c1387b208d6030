"""What may be asked of a new file volume: libvirt's rules, in its order, with its texts.

Everything that can be known beforehand is refused here, before anything is made.
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import replace

from storaged.backends._newfile import PART_NAME
from storaged.errors import (
    ConfigUnsupported,
    InternalError,
    InvalidArgument,
    OperationInvalid,
    Unsupported,
)
from storaged.model import Encryption, VolumeDef, VolumeType

#: What is made natively, and what QEMU's storage daemon makes.
NATIVE_FORMATS = ("raw", "iso", "qcow2", "vmdk", "dir")
FOREIGN_FORMATS = ("vpc", "vdi", "qcow", "qed")
#: Those whose header can name a backing file.
WITH_BACKING = ("qcow2", "vmdk", "qcow", "qed")
#: libvirt 10.2.0: from here on a qcow2 without compat is version 3.
COMPAT_11_LEVEL = 10_002_000
#: File systems hold names of at most this many bytes.
NAME_MAX = 255
#: qemu-img, and so libvirt, counts the capacity of a new image in KiB.
_QEMU_UNIT = 1024

_CONTROL = re.compile("[\x00-\x1f\x7f]")
_FEATURES = frozenset({"lazy_refcounts", "extended_l2"})


def check_name(name: str) -> None:
    """Refuse what cannot be, or should not be, the name of a file.

    :raise OperationInvalid: it contains a slash.
    :raise InvalidArgument: it is empty, too long, has control characters, or is one of ours.
    """
    if "/" in name:
        raise OperationInvalid(
            f"volume name '{name}' cannot contain '/'",
            advice="A volume lies in the pool's directory itself: give its name, not a path.",
        )
    if not name:
        raise InvalidArgument("volume name must not be empty")
    if _CONTROL.search(name):
        raise InvalidArgument(f"volume name {name!r} contains a control character")
    length = len(encoded(name, "volume name"))
    if length > NAME_MAX:
        raise InvalidArgument(f"volume name of {length} bytes is longer than {NAME_MAX}")
    if PART_NAME.fullmatch(name):
        raise InvalidArgument(f"volume name '{name}' is reserved for files under construction")


def encoded(text: str, what: str) -> bytes:
    """Return the bytes of a file name.

    :param what: whose name it is, for the message.
    :raise InvalidArgument: the kernel has no such names.
    """
    try:
        name = os.fsencode(text)
    except UnicodeEncodeError:
        name = b"\0"
    if b"\0" in name:
        raise InvalidArgument(f"{what} {text!r} cannot be the name of a file")
    return name


def check_request(volume: VolumeDef, *, preallocate_metadata: bool) -> None:
    """Refuse what the format of a new volume does not allow.

    :raise StorageError: libvirt's class and text for the first rule that is broken.
    """
    kind = volume.format
    if kind == "raw" and volume.encryption is None:
        _check_raw(volume, preallocate_metadata=preallocate_metadata)
    elif kind == "dir":
        _check_directory(volume, preallocate_metadata=preallocate_metadata)
    elif kind == "ploop":
        raise not_made("ploop")
    else:
        _check_options(volume, preallocate_metadata=preallocate_metadata)


def check_rest(volume: VolumeDef) -> None:
    """Refuse what qemu-img would, and what nobody makes; the backing store was looked at."""
    kind = volume.format or "raw"
    features = volume.features or frozenset()
    _check_encryption(volume.encryption, kind)
    if volume.compat == "0.10" and kind == "qcow2":
        if "lazy_refcounts" in features:
            raise ConfigUnsupported("lazy_refcounts not supported with compat level 0.10")
        if "extended_l2" in features:
            raise ConfigUnsupported("'extended_l2' not supported with compat level 0.10")
    if kind not in (*NATIVE_FORMATS, *FOREIGN_FORMATS):
        raise not_made(kind)
    if kind == "qcow2" and volume.compat not in (None, "0.10", "1.1"):
        raise ConfigUnsupported(f"unknown qcow2 compatibility level '{volume.compat}'")
    if not features <= _FEATURES:
        raise ConfigUnsupported(f"unsupported feature {min(features - _FEATURES)}")
    if kind not in ("raw", "qcow2", "dir") and volume.cluster_size:
        raise ConfigUnsupported("cluster size only available with qcow2")
    if volume.backing is not None:
        if kind not in WITH_BACKING:
            raise ConfigUnsupported(f"backing storage not supported for {kind} volumes")
        if kind == "vmdk" and volume.backing.format != "vmdk":
            raise ConfigUnsupported("the backing store of a vmdk volume must be of format vmdk")


def require_secret(volume: VolumeDef, secret: bytes | None) -> None:
    """Refuse to make a volume in plain that was to be encrypted, or the other way round.

    :raise ConfigUnsupported: there is no passphrase for it.
    :raise InvalidArgument: there is one for nothing.
    """
    if volume.encryption is not None and secret is None:
        raise ConfigUnsupported(
            f"volume '{volume.name}' is to be encrypted, and no passphrase was given",
            advice="storagectl takes it from a file: --secret-file PATH",
        )
    if volume.encryption is None and secret is not None:
        raise InvalidArgument(
            f"a secret was given for volume '{volume.name}', which is not to be encrypted"
        )


def settle(volume: VolumeDef, path: str, compat_level: int) -> VolumeDef:
    """Return the request with everything filled in that follows from it."""
    kind = volume.format or "raw"
    compat = volume.compat
    if kind == "qcow2" and compat is None:
        modern = volume.features is not None or compat_level >= COMPAT_11_LEVEL
        compat = "1.1" if modern else "0.10"
    capacity = volume.capacity
    if kind not in ("raw", "dir"):
        capacity = -(-capacity // _QEMU_UNIT) * _QEMU_UNIT
    return replace(
        volume,
        format=kind,
        type=VolumeType.DIR if kind == "dir" else VolumeType.FILE,
        capacity=capacity,
        compat=compat,
        path=path,
        key=path,
    )


def _check_options(volume: VolumeDef, *, preallocate_metadata: bool) -> None:
    """Refuse options that do not go together, in the order in which libvirt looks at them."""
    kind = volume.format
    encryption = volume.encryption
    if encryption and kind in ("qcow", "qcow2") and encryption.format in ("default", "qcow"):
        raise ConfigUnsupported("creation of qcow2 encrypted image is not supported")
    if preallocate_metadata and kind != "qcow2":
        raise ConfigUnsupported("metadata preallocation only available with qcow2")
    if volume.compat and kind != "qcow2":
        raise ConfigUnsupported("compatibility option only available with qcow2")
    if volume.features and kind != "qcow2":
        raise ConfigUnsupported("format features only available with qcow2")
    if kind == "raw" and encryption and encryption.format != "luks":
        raise InternalError("Only luks encryption is supported for raw files")
    if volume.backing is not None:
        if kind in ("raw", "iso"):
            raise ConfigUnsupported("cannot set backing store for raw volume")
        if preallocate_metadata:
            raise ConfigUnsupported("metadata preallocation conflicts with backing store")


def not_made(kind: str, *, filled: bool = False) -> ConfigUnsupported:
    """Return the error for a format that can only be read.

    :param filled: a copy was to be made of that format, which no directory can be.
    """
    made = [each for each in (*NATIVE_FORMATS, *FOREIGN_FORMATS) if not (filled and each == "dir")]
    what = "filled with the content of another" if filled and kind == "dir" else "created"
    return ConfigUnsupported(
        f"volumes of format '{kind}' cannot be {what}",
        advice=f"What can be is {', '.join(made)}.",
    )


def no_nocow(path: str) -> tuple[str, int]:
    """Return libvirt's text and error number where copy on write cannot be controlled."""
    return f"unable to control COW flag on '{path}', not btrfs", errno.ENOSYS


def _check_raw(volume: VolumeDef, *, preallocate_metadata: bool) -> None:
    if preallocate_metadata:
        raise ConfigUnsupported("metadata preallocation is not supported for raw volumes")
    if volume.backing is not None:
        raise Unsupported("backing storage not supported for raw volumes")


def _check_directory(volume: VolumeDef, *, preallocate_metadata: bool) -> None:
    if preallocate_metadata:
        raise InvalidArgument("metadata preallocation is not supported for directory volumes")
    if volume.backing is not None:
        raise Unsupported("backing storage not supported for directories volumes")
    if volume.encryption is not None:
        raise ConfigUnsupported("volume encryption unsupported with format dir")


def _check_encryption(encryption: Encryption | None, kind: str) -> None:
    """Refuse what cannot be encrypted: such an image is never made in plain instead."""
    if encryption is None:
        return
    if kind not in ("raw", "qcow2"):
        raise ConfigUnsupported(f"volume encryption unsupported with format {kind}")
    if encryption.format != "luks":
        raise ConfigUnsupported(f"unsupported volume encryption format {encryption.format}")
