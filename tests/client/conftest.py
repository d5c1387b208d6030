"""What the tests of links share: everything that a link can lead to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from storaged.client.link import Link
from storaged.client.opening import open_link
from storaged.rpc import storage
from tests.daemon.running import storaged_daemon
from tests.storaged.libvirtd import Libvirtd, libvirtd


@pytest.fixture(scope="session")
def libvirt_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Libvirtd]:
    """Libvirt's own daemon."""
    with libvirtd(tmp_path_factory.mktemp("libvirtd")) as running:
        yield running


@pytest.fixture(scope="session")
def libvirt_uri(libvirt_daemon: Libvirtd) -> str:
    """The URI of libvirt's own daemon."""
    return f"storage:///system?socket={libvirt_daemon.root}/run/libvirt/libvirt-sock"


@pytest.fixture(scope="session")
def daemon_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of a daemon of ours."""
    with storaged_daemon(tmp_path_factory.mktemp("storaged")) as running:
        yield running.uri()


@pytest.fixture(params=["libvirtd", "storaged", "embedded"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URI of each kind of engine."""
    if request.param == "libvirtd":
        return str(request.getfixturevalue("libvirt_uri"))
    if request.param == "storaged":
        return str(request.getfixturevalue("daemon_uri"))
    return f"storage:///embed?root={tmp_path / 'root'}"


@pytest.fixture
def link(uri: str) -> Iterator[Link]:
    """An open link to each kind of engine."""
    with open_link(uri) as opened:
        yield opened


@dataclass
class PoolCalls:
    """Calls about one running pool of files."""

    link: Link
    pool: storage.StoragePool
    directory: Path

    def create(self, name: str, mebibytes: int = 8) -> storage.StorageVol:
        """Make a volume of raw data that takes no space."""
        xml = (
            f"<volume><name>{name}</name><capacity unit='MiB'>{mebibytes}</capacity>"
            "<allocation>0</allocation></volume>"
        )
        return self.link.call(storage.VOL_CREATE_XML, storage.PoolXMLArgs(self.pool, xml)).vol


@pytest.fixture
def pool(link: Link, tmp_path: Path) -> Iterator[PoolCalls]:
    """A pool over a directory of the test, which ends with the test."""
    directory = tmp_path / "pool"
    directory.mkdir()
    xml = f"<pool type='dir'><name>p</name><target><path>{directory}</path></target></pool>"
    made = link.call(storage.POOL_CREATE_XML, storage.XMLArgs(xml)).pool
    yield PoolCalls(link, made, directory)
    if link.alive:
        link.call(storage.POOL_DESTROY, storage.PoolArgs(made))
