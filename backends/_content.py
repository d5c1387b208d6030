"""What a new file volume holds: nothing yet, or the content of another volume's disk.

raw, qcow2, vmdk and LUKS containers are written natively. The other formats that libvirt creates,
and qcow2 images that are encrypted, are made by QEMU's storage daemon and filled through it.

Import this where it is used, not at the top of a module: writers cost a program that only looks at
volumes more than the rest of the pool type.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from storaged import imagelock
from storaged.backend import ImageSource
from storaged.backends import _writers
from storaged.backends._plan import FOREIGN_FORMATS, NATIVE_FORMATS, not_made
from storaged.errors import ConfigUnsupported, InvalidArgument, OperationInvalid
from storaged.formats.errors import UnsupportedFormat
from storaged.formats.file import FileHandle
from storaged.formats.handle import Handle
from storaged.formats.image import ImageInfo
from storaged.formats.preallocating import Preallocating
from storaged.formats.qcow2 import CompressionType
from storaged.formats.vmdk_create import Parent
from storaged.formats.writer import Writer
from storaged.imaging import Compression
from storaged.job import Job
from storaged.model import Encryption, VolumeDef, VolumeRecord

if TYPE_CHECKING:
    from storaged.qsd import ImageFile

_PACKED: Final = {Compression.ZLIB: CompressionType.DEFLATE, Compression.ZSTD: CompressionType.ZSTD}
#: What is read through QEMU's storage daemon, by QEMU's name of it.
_EXPORTED: Final = MappingProxyType(
    {"ploop": "parallels", **{kind: kind for kind in FOREIGN_FORMATS}}
)
#: createTypes of the vmdk that are written.
SUBFORMATS: Final = ("monolithicSparse", "streamOptimized")
_DEFAULT_KEY_BITS: Final = 256


def check(
    volume: VolumeDef, *, compress: Compression | None = None, subformat: str | None = None
) -> None:
    """Refuse what the format of a planned volume does not allow.

    :raise ConfigUnsupported: the text names the option.
    """
    kind = volume.format
    if kind == "dir" or kind not in (*NATIVE_FORMATS, *FOREIGN_FORMATS):
        raise not_made(str(kind), filled=True)
    if subformat is not None and kind != "vmdk":
        raise ConfigUnsupported("subformats are only available with vmdk")
    if subformat not in (None, *SUBFORMATS):
        raise ConfigUnsupported(
            f"vmdk images of subformat '{subformat}' are not written",
            advice=f"What can be is {', '.join(SUBFORMATS)}.",
        )
    if compress is not None and kind != "qcow2":
        raise ConfigUnsupported("compression is only available with qcow2")
    if compress is not None and volume.encryption is not None:
        raise ConfigUnsupported("compressed data are not encrypted")
    if kind != "qcow2" and (volume.compat or volume.features or volume.cluster_size):
        raise ConfigUnsupported("compat, features and cluster size are only available with qcow2")
    if compress is Compression.ZSTD and volume.compat == "0.10":
        raise ConfigUnsupported("compression with zstd needs compat 1.1")


def is_foreign(volume: VolumeDef) -> bool:
    """Tell whether a planned volume is made by QEMU."""
    encrypted = volume.format == "qcow2" and volume.encryption is not None
    return encrypted or volume.format in FOREIGN_FORMATS


def create(
    handle: FileHandle,
    volume: VolumeDef,
    job: Job[Any],
    *,
    preallocate_metadata: bool = False,
    secret: bytes | None = None,
    parent: Parent | None = None,
) -> None:
    """Write the empty image of a planned volume into an empty file.

    :param parent: what a vmdk over a backing file has to know of it.
    :raise FormatError: the format does not allow it.
    """
    if is_foreign(volume):
        _create_foreign(
            handle, volume, job, secret=secret, preallocate_metadata=preallocate_metadata
        )
    elif volume.encryption is not None and secret is not None:
        create_container(handle, volume, secret)
    else:
        _writers.write(
            handle, volume, job.checkpoint,
            preallocate_metadata=preallocate_metadata, parent=parent,
        )  # fmt: skip


def _create_foreign(
    handle: FileHandle,
    volume: VolumeDef,
    job: Job[Any],
    *,
    secret: bytes | None,
    preallocate_metadata: bool = False,
) -> None:
    """Have QEMU write the empty image of a planned volume into an empty file."""
    from storaged import qsd

    options: dict[str, object] = {}
    if volume.format == "qcow2":
        wanted = _writers.qcow2_options(volume, preallocate_metadata)
        options = {
            "version": "v2" if wanted.version == 2 else "v3",
            "cluster-size": wanted.cluster_size,
            "preallocation": wanted.preallocation.value,
        }
        if wanted.version > 2:
            options["lazy-refcounts"] = wanted.lazy_refcounts
            options["extended-l2"] = wanted.extended_l2
    if volume.backing is not None:
        options["backing-file"] = volume.backing.path
        if volume.format != "qcow":  # it has no place for it
            options["backing-fmt"] = volume.backing.format or "raw"
    qsd.create(
        _new_file(handle), volume.format or "raw", volume.capacity, options,
        secret=secret, job=job,
    )  # fmt: skip


def create_container(handle: Handle, volume: VolumeDef, secret: bytes) -> Handle:
    """Make an empty file a LUKS container and return the disk in it, which reads as noise."""
    from storaged.formats import luks_create

    encryption = volume.encryption or Encryption("luks")
    cipher, ivgen = encryption.cipher, encryption.ivgen
    mode = cipher.mode if cipher and cipher.mode else "xts"
    generator = ivgen.name if ivgen else "plain64"
    if ivgen and ivgen.hash:
        generator += f":{ivgen.hash}"
    bits = cipher.size if cipher else _DEFAULT_KEY_BITS
    return luks_create.create(
        handle,
        volume.capacity,
        secret,
        cipher=cipher.name if cipher else "aes",
        mode=f"{mode}-{generator}",
        key_bytes=bits // 8 * (2 if mode == "xts" else 1),  # xts takes two keys
        hash=cipher.hash if cipher and cipher.hash else "sha256",
    )


@contextmanager
def writer(
    handle: FileHandle,
    volume: VolumeDef,
    job: Job[Any],
    *,
    like: ImageInfo | None = None,
    compress: Compression | None = None,
    subformat: str | None = None,
    secret: bytes | None = None,
    preallocate: bool = False,
) -> Iterator[Writer]:
    """Give what fills an empty file with a planned volume, while the context lasts.

    :param like: the image whose options that no volume's XML has are taken over.
    :param preallocate: what reads as zeros gets its room too, in an image that is made natively.
    :raise FormatError: the format does not allow it.
    """
    from storaged.formats.raw_writer import RawWriter

    if is_foreign(volume):
        from storaged import qsd

        _create_foreign(handle, volume, job, secret=secret)
        if volume.backing is not None:
            raise UnsupportedFormat(f"a copy of format {volume.format} over a backing file")
        image = qsd.Image(_new_file(handle), volume.format or "raw", secret=secret)
        with qsd.export(image, job) as disk:
            yield RawWriter(disk, disk.size())
    elif volume.encryption is not None and secret is not None:
        # A hole would read as noise: every zero has to be written.
        yield RawWriter(create_container(handle, volume, secret), volume.capacity, zeroed=False)
    else:
        filling = _native(handle, volume, like, compress, subformat)
        yield Preallocating(filling) if preallocate else filling


def _native(
    handle: FileHandle,
    volume: VolumeDef,
    like: ImageInfo | None,
    compress: Compression | None,
    subformat: str | None,
) -> Writer:
    if volume.format == "qcow2":
        from storaged.formats.qcow2_writer import Qcow2Writer

        options = _writers.qcow2_options(volume, False)
        if like is not None and like.format == "qcow2" and options.version > 2:
            options = replace(options, refcount_bits=like.refcount_bits)
        packed = None if compress is None else _PACKED[compress]
        return Qcow2Writer(handle, options, compression=packed)
    if volume.format == "vmdk":
        if subformat == "streamOptimized":
            from storaged.formats.vmdk_stream_writer import VmdkStreamWriter

            return VmdkStreamWriter(handle, volume.capacity, name=volume.name)
        from storaged.formats.vmdk_writer import VmdkWriter

        return VmdkWriter(handle, volume.capacity, name=volume.name)
    from storaged.formats.raw_writer import RawWriter

    return RawWriter(handle, volume.capacity)


@contextmanager
def disk_of(source: ImageSource, job: Job[Any], secret: bytes | None) -> Iterator[Handle]:
    """Open the disk of a volume for reading, as a guest sees it, while the context lasts.

    :param secret: its passphrase; a raw volume's container is read as it is without one.
    :raise StorageError: something of its chain must not be opened, or is not there.
    :raise InvalidArgument: a passphrase for what is not encrypted.
    """
    record = source.record
    image = record.image
    encryption = image.encryption if image is not None else None
    if secret is not None and encryption is None:
        raise InvalidArgument(
            f"a secret was given for volume '{record.name}', which is not encrypted"
        )
    if record.format == "raw" and secret is not None:
        from storaged.formats.luks_volume import unlock

        yield unlock(source.handle, secret)
    elif (encryption is not None and record.format != "raw") or record.format in _EXPORTED:
        with _exported(source, job, secret) as disk:
            yield disk
    else:
        with closing(source.open_disk()) as disk:
            yield disk


@contextmanager
def _exported(source: ImageSource, job: Job[Any], secret: bytes | None) -> Iterator[Handle]:
    """Have QEMU open the image of a volume that is not read natively."""
    from storaged import qsd

    record, image = source.record, source.record.image
    fd = source.handle.fileno()
    if image is not None and image.encryption is not None and secret is None:
        raise ConfigUnsupported(
            f"volume '{record.name}' is encrypted ({image.encryption}), and its passphrase was not"
            " given",
            advice="storagectl takes it from a file: --source-secret-file PATH",
        )
    if fd is None or (image is not None and (image.backing or image.data_file)):
        raise OperationInvalid(
            f"volume '{record.name}' of format '{record.format}' has its data in several places:"
            " that is not read"
        )
    with imagelock.hold(fd, record.name, writing=False):
        kind = record.format or "raw"
        wanted = qsd.Image(qsd.ImageFile(fd), _EXPORTED.get(kind, kind), secret=secret)
        with qsd.export(wanted, job) as disk:
            yield disk


def _new_file(handle: FileHandle) -> ImageFile:
    from storaged.qsd import ImageFile

    fd = handle.fileno()
    if fd is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return ImageFile(fd, writable=True, building=True)


def expected(
    record: VolumeRecord, volume: VolumeDef, disk: Handle, source_secret: bytes | None
) -> int:
    """Return about how many bytes of data a copy moves, 0 if what is known does not tell.

    :param record: of the source.
    :param disk: the source's.
    """
    flattened = record.image is not None and record.image.backing and volume.backing is None
    # Of a container also the holes are data: they read as noise, and zeros are encrypted.
    unlocked = record.format == "raw" and source_secret is not None
    if flattened or unlocked or volume.encryption is not None:
        return 0
    return min(record.allocation or record.physical or record.capacity, disk.size())


def like(record: VolumeRecord) -> ImageInfo | None:
    """Return the image that a copy takes its options from."""
    return record.image if record.format == "qcow2" else None
