"""All that the pool types whose volumes are files of a directory have in common."""

from __future__ import annotations

from storaged.backends._amend import AmendsFiles
from storaged.backends._check import ChecksFiles
from storaged.backends._clone import ClonesFiles
from storaged.backends._delete import DeletesFiles
from storaged.backends._inspect import InspectsFiles
from storaged.backends._resize import ResizesFiles
from storaged.backends._rewrite import RewritesFiles
from storaged.backends._transfer import TransfersFiles
from storaged.backends._wipe import WipesFiles

#: What libvirt's parser takes as ``target/format`` of a file volume, the default first.
FILE_FORMATS = (
    "raw", "dir", "bochs", "cloop", "dmg", "iso", "vpc", "vdi", "fat", "vhd", "ploop", "cow",
    "qcow", "qcow2", "qed", "vmdk",
)  # fmt: skip


class FileVolumes(
    ClonesFiles,
    DeletesFiles,
    ResizesFiles,
    WipesFiles,
    TransfersFiles,
    ChecksFiles,
    InspectsFiles,
    AmendsFiles,
    RewritesFiles,
):
    """The files of the target directory are volumes, wherever the directory comes from."""
