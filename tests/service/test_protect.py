"""Deleting, wiping, shrinking what others need: libvirt's rule on its wire, else the library's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from storaged.rpc import extension
from storaged.rpc import storage as rpc
from storaged.rpc.extension import CallFlag
from storaged.rpc.program import Procedure
from storaged.rpc.storage import StoragePool, StorageVol
from storaged.service import Service
from tests.doubles import refused
from tests.service.conftest import Peer


@pytest.fixture
def pool(peer: Peer, target: Path) -> StoragePool:
    return peer.started("p", target)


@pytest.fixture
def base(peer: Peer, pool: StoragePool) -> StorageVol:
    """A volume that another one has as its backing file."""
    made = peer.made(pool, "base", 1 << 20)
    xml = """<volume><name>top</name><capacity>1048576</capacity>
        <target><format type='qcow2'/></target>
        <backingStore><path>base</path><format type='raw'/></backingStore></volume>"""
    peer.call(rpc.VOL_CREATE_XML, pool, xml, 0)
    return made


def own_delete(peer: Peer, volume: StorageVol, flags: int = 0) -> None:
    packed = rpc.VolFlagsArgs(volume).pack()
    peer.call(extension.CALL, rpc.VOL_DELETE.number, packed, flags)


def test_libvirt_deletes_it(peer: Peer, base: StorageVol, target: Path) -> None:
    peer.call(rpc.VOL_DELETE, base, 0)
    assert [path.name for path in target.iterdir()] == ["top"]


def test_where_the_configuration_says_so(
    service: Service, peer: Peer, pool: StoragePool, base: StorageVol
) -> None:
    service.set_protect_backing(True)
    with refused(55, "Requested operation is not valid: volume 'base' is needed by other volumes"):
        peer.call(rpc.VOL_DELETE, base, 0)
    peer.call(rpc.VOL_DELETE, StorageVol("p", "top", ""), 0)
    peer.call(rpc.VOL_DELETE, base, 0)
    assert peer.call(rpc.POOL_NUM_OF_VOLUMES, pool).num == 0
    service.set_protect_backing(False)


def test_our_program_asks_for_force(peer: Peer, base: StorageVol, target: Path) -> None:
    with refused(55) as caught:
        own_delete(peer, base)
    assert "p/top" in (caught.value.advice or "")
    assert (target / "base").exists()
    own_delete(peer, base, CallFlag.FORCE)
    assert not (target / "base").exists()


SHRINK = 4
#: What takes its content away, and what libvirt's call takes beside the volume.
LOSSES: tuple[tuple[Procedure[Any, Any], tuple[int, ...]], ...] = (
    (rpc.VOL_WIPE, (0,)),
    (rpc.VOL_WIPE_PATTERN, (0, 0)),
    (rpc.VOL_RESIZE, (1 << 19, SHRINK)),
)


@pytest.mark.parametrize(
    ("procedure", "rest"), LOSSES, ids=lambda value: getattr(value, "name", "")
)
def test_its_content_is_kept_likewise(
    service: Service, peer: Peer, base: StorageVol, procedure: Any, rest: tuple[int, ...]
) -> None:
    needed = "Requested operation is not valid: volume 'base' is needed by other volumes"
    packed = procedure.args(base, *rest).pack()
    service.set_protect_backing(True)
    with refused(55, needed):
        peer.call(procedure, base, *rest)
    service.set_protect_backing(False)
    with refused(55, needed):
        peer.call(extension.CALL, procedure.number, packed, 0)
    peer.call(extension.CALL, procedure.number, packed, CallFlag.FORCE)
    peer.call(procedure, base, *rest)  # as libvirt


def test_users(peer: Peer, pool: StoragePool, base: StorageVol) -> None:
    assert peer.call(extension.VOL_USERS, base).vols == (
        StorageVol("p", "top", base.key.replace("base", "top")),
    )
    peer.call(rpc.POOL_REFRESH, pool, 0)
    assert peer.ready(extension.VOL_USERS, base)
    top = StorageVol("p", "top", "")
    assert peer.call(extension.VOL_USERS, top).vols == ()
