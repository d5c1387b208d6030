"""Deleting a volume with its snapshots: libvirt's flags, where there can be any and where not."""

from __future__ import annotations

from pathlib import Path

import pytest

from storaged.driver import Driver
from storaged.rpc import extension
from storaged.rpc import storage as rpc
from storaged.rpc.record import Void
from storaged.rpc.remoteerror import RemoteError
from storaged.rpc.storage import StoragePool, StorageVol
from tests.doubles import Layered
from tests.service.conftest import Peer

ZEROED = 1
WITH_SNAPSHOTS = 2


@pytest.fixture
def pool(peer: Peer, target: Path) -> StoragePool:
    return peer.started("p", target, "layered")


@pytest.fixture
def snapshots(driver: Driver) -> dict[str, list[str]]:
    """The snapshots of volumes."""
    kind = driver._services.registry.find("layered")
    assert issubclass(kind, Layered)
    return kind.snapshots


def own_delete(peer: Peer, volume: StorageVol, flags: int) -> None:
    packed = rpc.VolFlagsArgs(volume, flags).pack()
    peer.call(extension.CALL, rpc.VOL_DELETE.number, packed, 0)


def own_error(peer: Peer, volume: StorageVol, flags: int) -> RemoteError:
    packed = rpc.VolFlagsArgs(volume, flags).pack()
    return peer.error(extension.CALL, rpc.VOL_DELETE.number, packed, 0)


def text(error: RemoteError) -> tuple[int, str | None]:
    return error.code, error.message


@pytest.mark.parametrize("flags", [0, ZEROED])
def test_what_has_snapshots_stays(
    peer: Peer, vol: StorageVol, snapshots: dict[str, list[str]], target: Path, flags: int
) -> None:
    snapshots["v"] = ["one", "two"]
    kept = "Requested operation is not valid: volume 'v' has snapshots: one, two"
    assert text(peer.error(rpc.VOL_DELETE, vol, flags)) == (55, kept)
    assert text(own_error(peer, vol, flags)) == (55, kept)
    assert (target / "v").exists()


@pytest.mark.parametrize("flags", [WITH_SNAPSHOTS, WITH_SNAPSHOTS | ZEROED])
@pytest.mark.parametrize("own", [False, True])
def test_with_them(
    peer: Peer,
    pool: StoragePool,
    vol: StorageVol,
    snapshots: dict[str, list[str]],
    flags: int,
    own: bool,
) -> None:
    snapshots["v"] = ["one", "two"]
    if own:
        own_delete(peer, vol, flags)
    else:
        assert peer.call(rpc.VOL_DELETE, vol, flags) == Void()
    assert peer.call(rpc.POOL_NUM_OF_VOLUMES, pool).num == 0
    assert snapshots == {}


def test_zeroing_does_nothing(peer: Peer, vol: StorageVol, target: Path) -> None:
    peer.call(rpc.VOL_DELETE, vol, ZEROED)
    assert not (target / "v").exists()


def test_other_flags(peer: Peer, vol: StorageVol) -> None:
    refused = "unsupported flags (0x4) in function virStorageBackendRBDDeleteVol"
    assert text(peer.error(rpc.VOL_DELETE, vol, 6))[1] == refused
    gone = StorageVol("p", "none", "")  # that comes first
    assert peer.error(rpc.VOL_DELETE, gone, 6).code == 50


@pytest.mark.parametrize("flags", [ZEROED, WITH_SNAPSHOTS, ZEROED | WITH_SNAPSHOTS])
def test_where_there_are_none(peer: Peer, tmp_path: Path, flags: int) -> None:
    vol = peer.made(peer.started("files", tmp_path / "files"), "v")
    local = "in function virStorageBackendVolDeleteLocal"
    refused = f"unsupported flags (0x{flags:x}) {local}"
    assert text(peer.error(rpc.VOL_DELETE, vol, flags)) == (8, refused)
    if flags & ZEROED:
        assert text(own_error(peer, vol, flags)) == (8, f"unsupported flags (0x1) {local}")
    else:
        refused = "this function is not supported by the connection driver: {}"
        missing = "storage pool does not support snapshots of volumes"
        assert text(own_error(peer, vol, flags)) == (3, refused.format(missing))
    assert (tmp_path / "files" / "v").exists()
