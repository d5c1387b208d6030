"""Pool type dir: the files of a directory of this host are the volumes.

libvirt's behaviour, but for what it does badly: a bad file never stops the pool, nothing half made
is seen, and what libvirt leaves to qemu-img is done natively where that is possible.
"""

from __future__ import annotations

from typing import ClassVar

from storaged.backend import Descriptor
from storaged.backends._build import BuildsDirectory
from storaged.backends._local import FILE_FORMATS, FileVolumes


class Dir(FileVolumes, BuildsDirectory):
    """A directory, made by `build` if it is not there."""

    descriptor: ClassVar[Descriptor] = Descriptor("dir", volume_formats=FILE_FORMATS)
