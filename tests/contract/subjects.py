"""The subjects of the contract suite: one line a pool type, and how to get storage for it.

A new backend enters by one line in `SUBJECTS` and a function that gives a pool on real storage.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from storaged.backend import Backend
from storaged.backends import BUILTIN
from storaged.poolxml import parse_pool
from storaged.registry import Registry
from tests.backends.rbdpools import pool_xml
from tests.ceph.cluster import Cluster
from tests.ceph.fixtures import CephPools
from tests.kernel.iscsi import Lio
from tests.kernel.nfs import NfsServer
from tests.kernel.programs import run

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Ground:
    """A pool that could be, on storage that is there.

    :param xml: the pool's definition, by the name of "ground".
    :param overwrite: how to build it.
    :param given: the volumes that are there from the first, for types that cannot make any.
    :param entries: gives the names of all that is in the storage; None: those in the target.
    :param peek: returns bytes of what is at a volume's path, by offset and length; None: it is a
        file.
    """

    xml: str
    overwrite: bool | None = None
    given: int = 0
    entries: Callable[[], list[str]] | None = None
    peek: Callable[[str, int, int], bytes] | None = None

    def names(self) -> list[str]:
        """Return the names of all that is in the storage, beside volumes too."""
        if self.entries is not None:
            return self.entries()
        target = parse_pool(self.xml).target
        assert target is not None
        return os.listdir(target)  # noqa: PTH208

    def read(self, path: str, offset: int, length: int) -> bytes:
        """Return bytes of a volume, not by way of us."""
        if self.peek is not None:
            return self.peek(path, offset, length)
        with Path(path).open("rb") as file:
            file.seek(offset)
            return file.read(length)


@dataclass(frozen=True, slots=True)
class Subject:
    """One line of the suite.

    :param kind: the pool's type.
    :param fixtures: the names of those that *prepare* takes, beside `tmp_path`.
    :param features: of the kernel, as the marker takes them.
    :param formats: those that volumes are made in, None for types whose volumes have none.
    :param shows: whether this host can see by itself that a pool is active.
    :param builder: the tool that makes what is there after a build, and its command if it has some.
    """

    name: str
    kind: str
    prepare: Callable[..., AbstractContextManager[Ground]]
    fixtures: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    formats: tuple[str | None, ...] = ("raw", "qcow2")
    builder: tuple[str, ...] = ()
    shows: bool = True

    @property
    def backend(self) -> type[Backend]:
        """Its class, loaded when it is asked for."""
        return Registry().find(self.kind)

    def can(self, ability: type) -> bool:
        """Tell whether the class line promises an ability."""
        return issubclass(self.backend, ability)


def _pool(kind: str, source: str, target: str) -> str:
    return (
        f"<pool type='{kind}'><name>ground</name><source>{source}</source>"
        f"<target><path>{target}</path></target></pool>"
    )


@contextmanager
def _directory(place: Path) -> Iterator[Ground]:
    yield Ground(_pool("dir", "", f"{place}/target"))


@contextmanager
def _file_system(place: Path, loop_device: Callable[[int], str], kind: str) -> Iterator[Ground]:
    device = loop_device(512)
    source = f"<device path='{device}'/><format type='{kind}'/>"
    yield Ground(_pool("fs", source, f"{place}/target"), overwrite=False)


def _ext4(place: Path, loop_device: Callable[[int], str]) -> AbstractContextManager[Ground]:
    return _file_system(place, loop_device, "ext4")


def _xfs(place: Path, loop_device: Callable[[int], str]) -> AbstractContextManager[Ground]:
    return _file_system(place, loop_device, "xfs")


@contextmanager
def _nfs(place: Path, nfs_server: NfsServer) -> Iterator[Ground]:
    exported = place / "exported"
    exported.mkdir()
    path = nfs_server.export(exported, version4=True)  # 3 has its locks of another server
    source = (
        f"<host name='127.0.0.1'/><dir path='{path}'/><format type='nfs'/><protocol ver='4.2'/>"
    )
    yield Ground(_pool("netfs", source, f"{place}/target"))


@contextmanager
def _volume_group(place: Path, loop_device: Callable[[int], str]) -> Iterator[Ground]:
    source = f"<device path='{loop_device(512)}'/><name>groundvg</name><format type='lvm2'/>"
    try:
        yield Ground(_pool("logical", source, "/dev/groundvg"), overwrite=False)
    finally:
        run("vgremove", "--force", "--yes", "groundvg", check=False)


@contextmanager
def _target_of_lio(place: Path, lio: Lio, initiator: object) -> Iterator[Ground]:
    images = [place / f"lun{number}" for number in range(2)]
    for image in images:
        with image.open("wb") as file:
            file.truncate(32 * MIB)
    iqn = "iqn.2026-01.test.storaged:ground"
    lio.add(iqn, images)
    source = f"<host name='127.0.0.1' port='{lio.port}'/><device path='{iqn}'/>"
    yield Ground(_pool("iscsi", source, "/dev/disk/by-path"), given=len(images))


@contextmanager
def _ceph_pool(place: Path, cluster: Cluster, pools: CephPools) -> Iterator[Ground]:
    pool = pools(cluster)

    def read(path: str, offset: int, length: int) -> bytes:
        return pool.image(path.partition("/")[2]).read(offset, length)

    xml = pool_xml(cluster, pool.name, name="ground")
    yield Ground(xml, entries=lambda: pool.images() + pool.trash(), peek=read)


#: One line a pool type; some types have several kinds of storage.
SUBJECTS = (
    Subject("dir", "dir", _directory),
    Subject(
        *("fs-ext4", "fs", _ext4, ("loop_device",), ("loop", "ext4")),
        builder=("mkfs.ext4",),
    ),
    Subject(
        *("fs-xfs", "fs", _xfs, ("loop_device",), ("loop", "xfs")),
        builder=("mkfs.xfs",),
    ),
    Subject("netfs-nfs", "netfs", _nfs, ("nfs_server",), ("nfsd", "nfs")),
    Subject(
        *("logical", "logical", _volume_group, ("loop_device",), ("lvm", "dm", "udev")),
        formats=(None,),
        builder=("lvm", "vgcreate"),
    ),
    Subject(
        *("iscsi", "iscsi", _target_of_lio, ("lio", "initiator"), ("iscsi", "lio", "udev")),
        formats=(None,),
    ),
    Subject("rbd", "rbd", _ceph_pool, ("ceph_open", "ceph_pools"), formats=("raw",), shows=False),
)


def parameters(*, storage: bool = True) -> list[Any]:
    """Return the subjects as pytest takes them.

    :param storage: mark them with the features that their storage needs.
    """
    return [
        pytest.param(
            subject,
            id=subject.name,
            marks=[pytest.mark.kernel(*subject.features)] if storage and subject.features else [],
        )
        for subject in SUBJECTS
    ]


def types_without_subject() -> set[str]:
    """Return the pool types that have a backend and no line here."""
    return set(BUILTIN) - {subject.kind for subject in SUBJECTS}
