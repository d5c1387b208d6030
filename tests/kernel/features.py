"""The features of a kernel (and the programs to use them) that a test can ask for.

``@pytest.mark.kernel("dm", "lvm")`` runs a test where all of them are there. Natively the others
skip and name what is missing; in the guest of `make test-vm` that is a failure, because there all
must be there. Each feature is looked for once a process.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

import pytest

from tests.kernel.programs import SYSTEM_PATH, in_guest

#: What of a feature is missing, None if nothing is.
Answer = str | None


@dataclass(frozen=True, slots=True)
class Feature:
    """What must be there for a feature.

    :param modules: of the kernel; loaded if they are not there.
    :param programs: in the search path.
    :param ask: looks at what modules and programs do not tell.
    :param only_in_guest: natively nothing is touched for it, no module loaded.
    """

    modules: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    ask: Callable[[], Answer] = lambda: None
    only_in_guest: bool = False


def _exists(path: str) -> Callable[[], Answer]:
    return lambda: None if Path(path).exists() else f"there is no {path}"


def _opens(path: str) -> Callable[[], Answer]:
    def ask() -> Answer:
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        except OSError as err:
            return f"{path}: {os.strerror(err.errno or 0)}"
        return None

    return ask


def _knows(file_system: str) -> Callable[[], Answer]:
    def ask() -> Answer:
        known = Path("/proc/filesystems").read_text().split()
        return None if file_system in known else f"the kernel has no {file_system}"

    return ask


def _no_iscsi_of_others() -> Answer:
    """Natively there may be sessions that are in use."""
    if not Path("/sys/class/iscsi_transport/tcp").exists():
        return "the kernel has no iSCSI over TCP"
    if not in_guest() and any(Path("/sys/class").glob("iscsi_session/*")):
        return "this machine has iSCSI sessions of its own"
    return None


def _file_system(name: str, *programs: str) -> Feature:
    return Feature((name,), ("mount", *programs), _knows(name))


#: Every name that the marker takes.
FEATURES = MappingProxyType(
    {
        # block devices
        "loop": Feature(("loop",), ("losetup",), _opens("/dev/loop-control")),
        "dm": Feature(("dm_mod",), ("dmsetup",), _opens("/dev/mapper/control")),
        "lvm": Feature(("loop",), ("lvm",), _opens("/dev/loop-control")),  # metadata: no dm
        "thin": Feature(("dm_thin_pool",), ("lvm", "thin_check"), _opens("/dev/mapper/control")),
        "crypt": Feature(("dm_crypt",), ("cryptsetup",), _opens("/dev/mapper/control")),
        "multipath": Feature(("dm_multipath",), ("multipath", "multipathd")),
        "scsi_debug": Feature(programs=("modprobe",), only_in_guest=True),  # loading makes a disk
        "disks": Feature(only_in_guest=True),
        "parted": Feature(programs=("parted", "partprobe")),
        "udev": Feature(programs=("udevadm",), ask=_exists("/run/udev/control")),
        # iSCSI: the initiator, and two kinds of target
        "iscsi": Feature(("iscsi_tcp",), ("iscsiadm", "iscsid"), _no_iscsi_of_others),
        "tgt": Feature(programs=("tgtd", "tgtadm")),
        "lio": Feature(
            ("target_core_mod", "target_core_file", "iscsi_target_mod"), only_in_guest=True
        ),
        # network file systems: the client's side, and servers
        "nfs": _file_system("nfs", "mount.nfs", "showmount"),
        "nfsd": Feature(
            ("nfsd",), ("exportfs", "rpc.nfsd", "rpc.mountd", "rpcbind"), only_in_guest=True
        ),
        "cifs": _file_system("cifs", "mount.cifs"),
        "smbd": Feature(programs=("smbd",), only_in_guest=True),
        # glusterd has one port and one place for its state, which a developer's own may have
        "gluster": Feature(("fuse",), ("gluster", "glusterd", "glusterfs"), only_in_guest=True),
        "dummy": Feature(("dummy",), ("ip",), only_in_guest=True),
        # file systems
        "ext4": _file_system("ext4", "mkfs.ext4"),
        "xfs": _file_system("xfs", "mkfs.xfs"),
        "btrfs": _file_system("btrfs", "mkfs.btrfs"),
        "vfat": _file_system("vfat", "mkfs.vfat"),
        "iso9660": _file_system("iso9660", "genisoimage"),
        # other tools that only some machines have
        "virsh": Feature(programs=("virsh",)),
    }
)


@cache
def missing(name: str) -> Answer:
    """Return what is missing for a feature, None if it is there.

    :raise KeyError: there is no such feature.
    """
    feature = FEATURES[name]
    if os.geteuid() != 0:
        return "it needs root"
    if feature.only_in_guest and not in_guest():
        return "that is for the guest of make test-vm"
    for program in feature.programs:
        if shutil.which(program, path=SYSTEM_PATH) is None:
            return f"{program} is not installed"
    for module in feature.modules:
        _load(module)
    return feature.ask()


def lacking(item: pytest.Item) -> str | None:
    """Return which feature of a test is missing and why, None if all are there."""
    for marker in item.iter_markers("kernel"):
        for name in marker.args:
            why = missing(name)
            if why is not None:
                return f"kernel feature {name!r}: {why}"
    return None


def check(item: pytest.Item) -> None:
    """Skip a test whose features are not all there; in the guest: fail it."""
    text = lacking(item)
    if text is None:
        return
    if in_guest():
        pytest.fail(text, pytrace=False)
    pytest.skip(text)


def check_names(item: pytest.Item) -> None:
    """Refuse a marker with a misspelt feature, wherever the test would run.

    :raise pytest.UsageError: there is no such feature.
    """
    for marker in item.iter_markers("kernel"):
        unknown = [name for name in marker.args if name not in FEATURES]
        if unknown or not marker.args:
            raise pytest.UsageError(
                f"{item.nodeid}: kernel{marker.args}: the features are {', '.join(FEATURES)}"
            )


def _load(module: str) -> None:
    """Load a module, if it is one; what is built in, or missing, shows when it is used."""
    loader = shutil.which("modprobe", path=SYSTEM_PATH)
    if loader is not None and not Path("/sys/module", module).exists():
        subprocess.run(
            [loader, "-q", module], stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
