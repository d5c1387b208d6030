"""What the daemon opens, written out: a node for every file and every image, and nothing implied.

QEMU follows what an image's header says of a backing image or a data file unless it is told
otherwise. Here it always is: a hostile image opens nothing. What cannot be told otherwise (the
extents of a vmdk) is looked at first and refused.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from storaged.errors import OperationUnsupported

#: QEMU's names of the formats that are opened, those that are only read included.
FORMATS: Final = frozenset(
    {"raw", "luks", "qcow", "qcow2", "qed", "parallels", "vdi", "vhdx", "vmdk", "vpc"}
    | {"bochs", "cloop", "dmg"}
)
#: Those whose header can name a backing image.
_WITH_BACKING: Final = frozenset({"qcow", "qcow2", "qed", "vmdk"})
#: Those that keep their content encrypted, and how QEMU calls the encryption inside of them.
_WITH_SECRET: Final = frozenset({"luks", "qcow2"})

_QCOW2_HEADER: Final = struct.Struct(">4sI64xQ")
_QCOW2_MAGIC: Final = b"QFI\xfb"
#: Incompatible feature of a qcow2: its data lie in another file.
_EXTERNAL_DATA: Final = 1 << 2
_VMDK_HEADER: Final = struct.Struct("<4s8xQ")
_VMDK_MAGIC: Final = b"KDMV"

#: A node as ``blockdev-add`` takes it.
Node: TypeAlias = dict[str, object]


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An open file or block device that is handed to the daemon.

    :param fd: a descriptor; the daemon opens it again for itself.
    :param writable: whether the daemon may write to it.
    :param locked: the caller holds QEMU's image locks (`storaged.imagelock`), or nobody else can
        have the file; False has the daemon take them.
    :param building: it is a new image that is of no use before all has succeeded: the daemon does
        not wait for the disk, and the caller makes the file durable afterwards.
    """

    fd: int
    writable: bool = False
    locked: bool = True
    building: bool = False


@dataclass(frozen=True, slots=True)
class Image:
    """An image and all that belongs to it.

    :param format: QEMU's name of it, one of `FORMATS`; never probed.
    :param backing: what lies below it; None: what it does not have reads as zeros, whatever its
        header says.
    :param data_file: where a qcow2 keeps its data, if its header says that they are elsewhere.
    :param secret: the passphrase, in UTF-8, of a luks image or of a qcow2 that is encrypted so.
    """

    file: ImageFile
    format: str
    backing: Image | None = None
    data_file: ImageFile | None = None
    secret: bytes | None = field(default=None, repr=False)

    def files(self) -> Iterator[ImageFile]:
        """Yield all files, those of backing images included."""
        yield self.file
        if self.data_file is not None:
            yield self.data_file
        if self.backing is not None:
            yield from self.backing.files()

    def secrets(self, name: str) -> dict[str, bytes]:
        """Return the secrets that the nodes of this image called *name* refer to."""
        own = {} if self.secret is None else {_secret(name): self.secret}
        below = {} if self.backing is None else self.backing.secrets(_below(name))
        return {**own, **below}

    def nodes(self, name: str, path: Callable[[ImageFile], str]) -> Iterator[Node]:
        """Yield the nodes of this image in the order in which they have to be added.

        :param name: what the image's own node is called; the others begin with it.
        :param path: what the daemon finds a file under.
        :raise OperationUnsupported: QEMU would open a file that is not named here.
        """
        self._check()
        node: Node = {"driver": self.format, "node-name": name, "file": f"{name}.file"}
        node |= {"read-only": not self.file.writable, "discard": "unmap"}
        yield file_node(self.file, f"{name}.file", path)
        if self.data_file is not None:
            yield file_node(self.data_file, f"{name}.data", path)
            node["data-file"] = f"{name}.data"
        if self.backing is not None:
            yield from self.backing.nodes(_below(name), path)
            node["backing"] = _below(name)
        elif self.format in _WITH_BACKING:
            node["backing"] = None
        if self.secret is not None:
            key = {"key-secret": _secret(name)}
            node |= key if self.format == "luks" else {"encrypt": {"format": "luks", **key}}
        yield node

    def _check(self) -> None:
        if self.format not in FORMATS:
            raise OperationUnsupported(f"images of format '{self.format}' are not opened")
        if self.backing is not None and self.format not in _WITH_BACKING:
            raise OperationUnsupported(f"format '{self.format}' has no backing images")
        if self.secret is not None and self.format not in _WITH_SECRET:
            raise OperationUnsupported(f"images of format '{self.format}' are not decrypted")
        if self.format == "qcow2":
            external = _keeps_data_elsewhere(self.file.fd)
            if external and self.data_file is None:
                raise OperationUnsupported("the image keeps its data in another file")
            if self.data_file is not None and not external:
                raise OperationUnsupported("the image keeps its data in itself")
        elif self.data_file is not None:
            raise OperationUnsupported(f"format '{self.format}' has no external data files")
        if self.format == "vmdk" and not _is_one_file(self.file.fd):
            raise OperationUnsupported("the vmdk image is not one sparse extent")


def file_node(file: ImageFile, name: str, path: Callable[[ImageFile], str]) -> Node:
    """Return the node of a file or a block device."""
    block = stat.S_ISBLK(os.fstat(file.fd).st_mode)
    return {
        "driver": "host_device" if block else "file",
        "node-name": name,
        "filename": path(file),
        "read-only": not file.writable,
        "auto-read-only": False,
        "discard": "unmap",
        "cache": {"no-flush": file.building},
        "locking": "off" if file.locked else "auto",
    }


def _keeps_data_elsewhere(fd: int) -> bool:
    head = os.pread(fd, _QCOW2_HEADER.size, 0)
    if len(head) < _QCOW2_HEADER.size:
        return False
    magic, version, features = _QCOW2_HEADER.unpack(head)
    return magic == _QCOW2_MAGIC and version >= 3 and bool(features & _EXTERNAL_DATA)


def _is_one_file(fd: int) -> bool:
    """Tell whether a vmdk is a sparse extent of its own.

    Everything else is a descriptor, which names other files; so is one whose capacity is 0.
    """
    head = os.pread(fd, _VMDK_HEADER.size, 0)
    if len(head) < _VMDK_HEADER.size:
        return False
    magic, capacity = _VMDK_HEADER.unpack(head)
    return bool(magic == _VMDK_MAGIC and capacity)


def _below(name: str) -> str:
    """Return a name for the image below; the daemon takes no more than 31 characters."""
    base, _, depth = name.partition("-")
    return f"{base}-{int(depth or 0) + 1}"


def _secret(name: str) -> str:
    return f"{name}.key"
