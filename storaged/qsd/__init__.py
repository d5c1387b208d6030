"""What is not native goes through qemu-storage-daemon: one for each operation, shut in.

A daemon is started for one operation and ended with it. It is told every node of its block graph,
so that no image opens another file; it has no network, no sockets, no privileges, and of the file
system what is installed and the images it was given.
"""

from __future__ import annotations

from storaged.qsd.change import (
    add_passphrase,
    create_snapshot,
    delete_snapshot,
    remove_passphrase,
    resize,
)
from storaged.qsd.copying import backup, commit, mirror, stream
from storaged.qsd.creation import CREATABLE, create
from storaged.qsd.daemon import PACKAGE, PROGRAM, Daemon
from storaged.qsd.export import export
from storaged.qsd.graph import FORMATS, Image, ImageFile

__all__ = [
    "CREATABLE",
    "FORMATS",
    "PACKAGE",
    "PROGRAM",
    "Daemon",
    "Image",
    "ImageFile",
    "add_passphrase",
    "backup",
    "commit",
    "create",
    "create_snapshot",
    "delete_snapshot",
    "export",
    "mirror",
    "remove_passphrase",
    "resize",
    "stream",
]
