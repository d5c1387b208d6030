"""Each call of libvirt's: what it gives, what it does, and the errors of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from storaged.flow import Hole
from storaged.rpc import storage as rpc
from storaged.rpc.program import AnyProcedure
from storaged.rpc.record import Void
from storaged.rpc.remoteerror import RemoteError
from storaged.rpc.storage import (
    Count,
    ListPoolsRet,
    ListVolsRet,
    Name,
    Names,
    PoolRet,
    StoragePool,
    StorageVol,
    VolInfoRet,
    VolRet,
)
from tests.doubles import Control
from tests.service.conftest import NOWHERE, Peer, pool_xml, volume_xml


def error(code: int, prefix: str, detail: str, domain: int = 18) -> RemoteError:
    return RemoteError(code, domain, prefix.replace("%s", detail), str1=prefix, str2=detail)


def no_pool(detail: str) -> RemoteError:
    return error(49, "Storage pool not found: %s", detail)


def no_volume(detail: str) -> RemoteError:
    return error(50, "Storage volume not found: %s", detail)


# Lists of pools


def test_lists_of_pools(peer: Peer, pool: StoragePool, tmp_path: Path) -> None:
    other = peer.define("q", tmp_path / "q")
    assert peer.call(rpc.NUM_OF_POOLS) == Count(1)
    assert peer.call(rpc.LIST_POOLS, 16384) == Names(("p",))
    assert peer.call(rpc.LIST_POOLS, 0) == Names(())
    assert peer.call(rpc.NUM_OF_DEFINED_POOLS) == Count(1)
    assert peer.call(rpc.LIST_DEFINED_POOLS, 1) == Names(("q",))
    listed = peer.call(rpc.LIST_ALL_POOLS, 1, 0)
    assert sorted(listed.pools, key=lambda p: p.name) == [pool, other]
    assert listed.ret == 2


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (1, "q"),
        (2, "p"),
        (3, "pq"),
        (4, "pq"),
        (8, ""),
        (1 | 4, "q"),
        (2 | 8, ""),
        (16, "p"),
        (32, "q"),
        (16 | 32, "pq"),
        (64, "pq"),
        (128, ""),
        (64 | 128 | 524288, "pq"),
        (0x52, "p"),
        (0xFFFFF, "pq"),
    ],
)
def test_filters(peer: Peer, pool: StoragePool, tmp_path: Path, flags: int, names: str) -> None:
    peer.define("q", tmp_path / "q")
    peer.call(rpc.POOL_SET_AUTOSTART, pool, 1)
    listed = peer.call(rpc.LIST_ALL_POOLS, 1, flags)
    assert sorted(found.name for found in listed.pools) == list(names)
    assert listed.ret == len(names)
    # All are counted where none is wanted.
    assert peer.call(rpc.LIST_ALL_POOLS, 0, flags) == ListPoolsRet((), 2)


@pytest.mark.parametrize(
    ("procedure", "before", "limit"),
    [
        (rpc.LIST_POOLS, (), "REMOTE_STORAGE_POOL_LIST_MAX"),
        (rpc.LIST_DEFINED_POOLS, (), "REMOTE_STORAGE_POOL_LIST_MAX"),
        (rpc.POOL_LIST_VOLUMES, (NOWHERE,), "REMOTE_STORAGE_VOL_LIST_MAX"),
    ],
    ids=lambda v: v.name if hasattr(v, "name") else None,
)
def test_room_for_names(
    peer: Peer, procedure: AnyProcedure, before: tuple[object, ...], limit: str
) -> None:
    for count in (-1, -(2**31)):
        expected = error(39, "%s", "maxnames must be non-negative", 7)
        assert peer.error(procedure, *before, count) == expected
    for count in (16385, 2**31 - 1):
        expected = error(39, "%s", f"maxnames > {limit}", 7)
        assert peer.error(procedure, *before, count) == expected


# Look-ups of pools


def test_lookups_of_pools(peer: Peer, pool: StoragePool, target: Path) -> None:
    for procedure, argument in (
        (rpc.POOL_LOOKUP_BY_NAME, "p"),
        (rpc.POOL_LOOKUP_BY_UUID, pool.uuid),
        (rpc.POOL_LOOKUP_BY_VOLUME, StorageVol("p", "no such volume", "?")),
        (rpc.POOL_LOOKUP_BY_TARGET_PATH, f"{target}//"),
    ):
        assert peer.call(procedure, argument) == PoolRet(pool)


def test_lookups_of_pools_that_miss(peer: Peer, pool: StoragePool) -> None:
    name, path, uuid = "no storage pool with matching name", "target path", "31" * 16
    uuid = f"{uuid[:8]}-{uuid[8:12]}-{uuid[12:16]}-{uuid[16:20]}-{uuid[20:]}"
    for procedure, argument, detail in (
        (rpc.POOL_LOOKUP_BY_NAME, "no", f"{name} 'no'"),
        (rpc.POOL_LOOKUP_BY_NAME, "", f"{name} ''"),
        (rpc.POOL_LOOKUP_BY_UUID, NOWHERE.uuid, f"no storage pool with matching uuid '{uuid}'"),
        (rpc.POOL_LOOKUP_BY_VOLUME, StorageVol("no", "v", ""), f"{name} 'no'"),
        (
            rpc.POOL_LOOKUP_BY_TARGET_PATH,
            "/no//",
            f"no storage pool with matching {path} '/no//' (/no)",
        ),
        (rpc.POOL_LOOKUP_BY_TARGET_PATH, "", f"no storage pool with matching {path} ''"),
        (rpc.POOL_GET_INFO, NOWHERE, f"no storage pool with matching uuid '{uuid}' (nowhere)"),
    ):
        assert peer.error(procedure, argument) == no_pool(detail)


def test_the_uuid_decides(peer: Peer, pool: StoragePool) -> None:
    for name in ("", "wrong", "x" * 5000):
        assert peer.call(rpc.POOL_IS_ACTIVE, StoragePool(name, pool.uuid)) == Count(1)
        found = peer.call(rpc.VOL_CREATE_XML, StoragePool(name, pool.uuid),
                          volume_xml(f"v{len(name)}"), 0)  # fmt: skip
        assert found.vol.pool == "p"
    assert peer.error(rpc.POOL_IS_ACTIVE, StoragePool("p", NOWHERE.uuid)).code == 49


# Definitions and life


def test_clashes(peer: Peer, pool: StoragePool, target: Path, tmp_path: Path) -> None:
    failed = "operation failed: %s"
    uuid = pool.uuid.hex()
    uuid = f"{uuid[:8]}-{uuid[8:12]}-{uuid[12:16]}-{uuid[16:20]}-{uuid[20:]}"
    other = tmp_path / "other"
    for text, detail in (
        (pool_xml("p", other), f"pool 'p' already exists with uuid {uuid}"),
        (
            pool_xml("q", other, uuid=pool.uuid),
            f"pool 'p' is already defined with uuid {uuid}",
        ),
        (pool_xml("q", target), "Storage source conflict with pool: 'p'"),
    ):
        for procedure in (rpc.POOL_DEFINE_XML, rpc.POOL_CREATE_XML):
            assert peer.error(procedure, text, 0) == error(9, failed, detail)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", 35),
        ("<pool", 35),
        ("<pool type='dir'/>", 27),
        ("<pool type='nonsense'><name>x</name></pool>", 27),
        ("<pool type='dir'><name>a/b</name><target><path>/x</path></target></pool>", 27),
        ("<pool type='dir'><name>x</name><target/></pool>", 27),
    ],
)
def test_documents_of_pools(peer: Peer, text: str, code: int) -> None:
    for procedure in (rpc.POOL_DEFINE_XML, rpc.POOL_CREATE_XML):
        assert peer.error(procedure, text, 0).code == code
    assert peer.call(rpc.LIST_ALL_POOLS, 1, 0) == ListPoolsRet((), 0)


def test_validation(peer: Peer, target: Path) -> None:
    text = pool_xml("p", target).replace("</name>", "</name><bogus/>")
    found = peer.error(rpc.POOL_DEFINE_XML, text, 1)
    assert (found.code, found.domain) == (92, 5)
    assert peer.call(rpc.POOL_DEFINE_XML, text, 0).pool.name == "p"


def test_build_and_delete(peer: Peer, target: Path) -> None:
    pool = peer.define("p", target)
    target.rmdir()
    assert peer.call(rpc.POOL_BUILD, pool, 0) == Void()
    assert target.is_dir()
    assert peer.call(rpc.POOL_BUILD, pool, 0) == Void()
    for flags in (4, 8):
        found = peer.error(rpc.POOL_BUILD, pool, flags)
        detail = "No source device specified when formatting pool 'p'"
        assert found == error(55, "Requested operation is not valid: %s", detail)
    (target / "file").touch()
    assert (found := peer.error(rpc.POOL_DELETE, pool, 0)).code == 38
    assert found.message == f"failed to remove pool '{target}': Directory not empty"
    assert (found.str1, found.int1) == ("%s", 39)
    (target / "file").unlink()
    assert peer.call(rpc.POOL_DELETE, pool, 0) == Void()
    assert not target.exists()


def test_sources_and_capabilities(peer: Peer) -> None:
    detail = "unknown storage pool type bogus"
    found = peer.error(rpc.FIND_POOL_SOURCES, "bogus", None, 0)
    assert found == error(1, "internal error: %s", detail)
    found = peer.error(rpc.FIND_POOL_SOURCES, "dir", "<source/>", 0)
    assert (found.code, found.str2) == (3, "pool type 'dir' does not support source discovery")
    text = peer.call(rpc.GET_POOL_CAPABILITIES, 0).xml
    assert text.startswith("<storagepoolCapabilities>")
    assert "<pool type='dir' supported='yes'>" in text


def test_facts_of_a_pool(peer: Peer, target: Path) -> None:
    pool = peer.define("p", target)
    assert peer.call(rpc.POOL_GET_INFO, pool) == rpc.PoolInfoRet(0, 0, 0, 0)
    peer.call(rpc.POOL_CREATE, pool, 0)
    info = peer.call(rpc.POOL_GET_INFO, pool)
    assert info.state == 2
    assert info.capacity == info.allocation + info.available > 0
    xml = peer.call(rpc.POOL_GET_XML_DESC, pool, 0).xml
    assert f"<capacity unit='bytes'>{info.capacity}</capacity>" in xml
    assert peer.call(rpc.POOL_GET_AUTOSTART, pool) == Count(0)
    assert peer.call(rpc.POOL_IS_PERSISTENT, pool) == Count(1)
    for value, told in ((1, 1), (-7, 1), (0, 0)):
        assert peer.call(rpc.POOL_SET_AUTOSTART, pool, value) == Void()
        assert peer.call(rpc.POOL_GET_AUTOSTART, pool) == Count(told)


# Lists and look-ups of volumes


def test_lists_of_volumes(peer: Peer, pool: StoragePool, target: Path) -> None:
    made = [peer.made(pool, name) for name in ("a", "b", "c")]
    assert peer.call(rpc.POOL_NUM_OF_VOLUMES, pool) == Count(3)
    assert sorted(peer.call(rpc.POOL_LIST_VOLUMES, pool, 16384).names) == ["a", "b", "c"]
    assert len(peer.call(rpc.POOL_LIST_VOLUMES, pool, 2).names) == 2
    listed = peer.call(rpc.POOL_LIST_ALL_VOLUMES, pool, 1, 0)
    assert sorted(listed.vols, key=lambda v: v.name) == made
    assert listed.ret == 3
    assert peer.call(rpc.POOL_LIST_ALL_VOLUMES, pool, 0, 0) == ListVolsRet((), 3)
    assert made[0] == StorageVol("p", "a", f"{target}/a")


def test_lookups_of_volumes(peer: Peer, pool: StoragePool, vol: StorageVol, target: Path) -> None:
    assert peer.call(rpc.VOL_LOOKUP_BY_NAME, pool, "v") == VolRet(vol)
    assert peer.call(rpc.VOL_LOOKUP_BY_KEY, vol.key) == VolRet(vol)
    assert peer.call(rpc.VOL_LOOKUP_BY_PATH, f"{target}//v/") == VolRet(vol)
    (target / "new").touch()  # nobody has refreshed
    assert peer.call(rpc.VOL_LOOKUP_BY_PATH, f"{target}/new").vol.name == "new"


def test_lookups_of_volumes_that_miss(peer: Peer, pool: StoragePool, target: Path) -> None:
    what = "no storage vol with matching"
    for name in ("no", "", "a/b", "..", f"{target}/v"):
        expected = no_volume(f"{what} name '{name}'")
        assert peer.error(rpc.VOL_LOOKUP_BY_NAME, pool, name) == expected
    for key in ("no", "", f"{target}/no"):
        assert peer.error(rpc.VOL_LOOKUP_BY_KEY, key) == no_volume(f"{what} key {key}")
    for path, detail in (
        ("no//x/", "'no//x/' (no/x)"),
        ("", "''"),
        (f"{target}/no", f"'{target}/no'"),
        (str(target), f"'{target}'"),
    ):
        assert peer.error(rpc.VOL_LOOKUP_BY_PATH, path) == no_volume(f"{what} path {detail}")


def test_the_names_decide(peer: Peer, pool: StoragePool, vol: StorageVol) -> None:
    assert peer.call(rpc.VOL_GET_PATH, StorageVol("p", "v", "another key")) == Name(vol.key)
    for procedure, rest in (
        (rpc.VOL_GET_PATH, ()),
        (rpc.VOL_GET_INFO, ()),
        (rpc.VOL_GET_XML_DESC, (0,)),
        (rpc.VOL_DELETE, (0,)),
        (rpc.VOL_RESIZE, (8192, 0)),
        (rpc.VOL_WIPE, (0,)),
        (rpc.VOL_UPLOAD, (0, 0, 0)),
        (rpc.VOL_DOWNLOAD, (0, 0, 0)),
    ):
        found = peer.error(procedure, StorageVol("p", "no", vol.key), *rest)
        assert found == no_volume("no storage vol with matching name 'no'")
        found = peer.error(procedure, StorageVol("no", "v", vol.key), *rest)
        assert found == no_pool("no storage pool with matching name 'no'")


def test_a_volume_named_like_one_of_another_pool(
    peer: Peer, pool: StoragePool, vol: StorageVol, tmp_path: Path
) -> None:
    other = peer.started("q", tmp_path / "q")
    twin = peer.made(other, "v", 8192)
    assert peer.call(rpc.VOL_GET_INFO, vol).capacity == 4096
    assert peer.call(rpc.VOL_GET_INFO, twin).capacity == 8192
    assert peer.call(rpc.POOL_LOOKUP_BY_VOLUME, twin) == PoolRet(other)


# Facts of a volume


def test_facts_of_a_volume(peer: Peer, pool: StoragePool, target: Path) -> None:
    vol = peer.made(pool, "v", 1 << 20)
    assert peer.call(rpc.VOL_GET_INFO, vol) == VolInfoRet(0, 1 << 20, 0)
    assert peer.call(rpc.VOL_GET_INFO_FLAGS, vol, 0) == VolInfoRet(0, 1 << 20, 0)
    assert peer.call(rpc.VOL_GET_INFO_FLAGS, vol, 1) == VolInfoRet(0, 1 << 20, 1 << 20)
    xml = peer.call(rpc.VOL_GET_XML_DESC, vol, 0).xml
    assert f"<key>{target}/v</key>" in xml
    assert "<timestamps>" in xml


def test_a_directory_is_a_volume(peer: Peer, pool: StoragePool, target: Path) -> None:
    (target / "d").mkdir()
    assert peer.call(rpc.VOL_GET_INFO, StorageVol("p", "d", "")).type == 2


def test_a_volume_that_vanished(
    peer: Peer, pool: StoragePool, vol: StorageVol, target: Path
) -> None:
    """As libvirt's daemon answers: clients skip what has code 50."""
    (target / "v").unlink()
    gone = no_volume(f"no storage vol with matching path '{target}/v'")
    for _ in range(2):
        assert peer.error(rpc.VOL_GET_INFO, vol) == gone
        assert peer.error(rpc.VOL_GET_INFO_FLAGS, vol, 1) == gone
        assert peer.error(rpc.VOL_GET_XML_DESC, vol, 0) == gone
        assert peer.call(rpc.VOL_GET_PATH, vol) == Name(f"{target}/v")
        assert peer.call(rpc.VOL_LOOKUP_BY_NAME, pool, "v") == VolRet(vol)
    assert peer.call(rpc.VOL_DELETE, vol, 0) == Void()
    assert peer.error(rpc.VOL_DELETE, vol, 0).code == 50


# Changes


def test_create(peer: Peer, pool: StoragePool, target: Path) -> None:
    vol = peer.call(rpc.VOL_CREATE_XML, pool, volume_xml("v"), 0).vol
    assert vol == StorageVol("p", "v", f"{target}/v")
    found = peer.error(rpc.VOL_CREATE_XML, pool, volume_xml("v"), 0)
    assert found == error(90, "storage volume %s exists already", "'v'")
    assert found.message == "storage volume 'v' exists already"
    for text, code in (
        ("", 35),
        ("<volume/>", 27),
        (volume_xml("a/b"), 55),
        (volume_xml("x").replace("<name>", "<type>bogus</type><name>"), None),
        (volume_xml("raw"), None),
    ):
        if code is None:
            peer.call(rpc.VOL_CREATE_XML, pool, text, 0)
        else:
            assert peer.error(rpc.VOL_CREATE_XML, pool, text, 0).code == code
    detail = "metadata preallocation is not supported for raw volumes"
    found = peer.error(rpc.VOL_CREATE_XML, pool, volume_xml("w"), 1)
    assert found == error(67, "unsupported configuration: %s", detail)
    assert peer.error(rpc.VOL_CREATE_XML, pool, volume_xml("w"), 4).code == 92
    qcow2 = volume_xml("w").replace("</name>", "</name><target><format type='qcow2'/></target>")
    assert peer.call(rpc.VOL_CREATE_XML, pool, qcow2, 1).vol.name == "w"


def test_clone(peer: Peer, pool: StoragePool, vol: StorageVol, target: Path) -> None:
    (target / "v").write_bytes(b"data" * 1024)
    clone = peer.call(rpc.VOL_CREATE_XML_FROM, pool, volume_xml("c", 1), vol, 0).vol
    assert clone == StorageVol("p", "c", f"{target}/c")
    assert (target / "c").read_bytes() == b"data" * 1024
    taken = error(1, "internal error: %s", "storage volume name 'c' already in use.")
    assert peer.error(rpc.VOL_CREATE_XML_FROM, pool, volume_xml("c"), vol, 0) == taken
    for source, expected in (
        (StorageVol("p", "no", ""), no_volume("no storage vol with matching name 'no'")),
        (StorageVol("no", "v", ""), no_pool("no storage pool with matching name 'no'")),
    ):
        for text in (volume_xml("d"), "<not well-formed"):
            assert peer.error(rpc.VOL_CREATE_XML_FROM, pool, text, source, 0) == expected
    assert peer.error(rpc.VOL_CREATE_XML_FROM, pool, "<volume", vol, 0).code == 35


def test_a_clone_into_another_pool(peer: Peer, vol: StorageVol, tmp_path: Path) -> None:
    other = peer.started("q", tmp_path / "q")
    found = peer.call(rpc.VOL_CREATE_XML_FROM, other, volume_xml("c"), vol, 0).vol
    assert found == StorageVol("q", "c", f"{tmp_path}/q/c")
    peer.call(rpc.POOL_DESTROY, other)
    found = peer.error(rpc.VOL_CREATE_XML_FROM, other, volume_xml("d"), vol, 0)
    assert (found.code, found.str2) == (55, "storage pool 'q' is not active")


def test_resize(peer: Peer, pool: StoragePool, vol: StorageVol, target: Path) -> None:
    def resize(capacity: int, flags: int) -> int:
        assert peer.call(rpc.VOL_RESIZE, vol, capacity, flags) == Void()
        assert (target / "v").stat().st_size == peer.call(rpc.VOL_GET_INFO, vol).capacity
        return (target / "v").stat().st_size

    assert resize(8192, 0) == 8192
    assert resize(4096, 2) == 12288
    assert resize(4096, 2 | 4) == 8192
    assert resize(4096, 4) == 4096
    assert resize(0, 2) == 4096
    assert resize(8192, 1) == 8192
    assert peer.call(rpc.VOL_GET_INFO, vol).allocation >= 8192
    zero = "capacity in virStorageVolResize cannot be zero without 'delta' or 'shrink' flags set"
    for flags in (0, 1, 8, 9):
        assert peer.error(rpc.VOL_RESIZE, vol, 0, flags) == RemoteError(
            8, 18, zero, str1="virStorageVolResize", str2="capacity", int1=0, int2=0
        )
    invalid = "invalid argument: %s"
    for capacity, flags, code, detail in (
        (1, 0, 8, "can't shrink capacity below existing allocation"),
        (2**62, 1, 9, "Not enough space left in storage pool"),
    ):
        found = peer.error(rpc.VOL_RESIZE, vol, capacity, flags)
        assert (found.code, found.str2) == (code, detail), invalid
    assert peer.error(rpc.VOL_RESIZE, vol, 2**64 - 1, 0).code == 8


def test_wipe(peer: Peer, pool: StoragePool, vol: StorageVol, target: Path) -> None:
    for procedure, rest in ((rpc.VOL_WIPE, (0,)), (rpc.VOL_WIPE_PATTERN, (0, 0))):
        (target / "v").write_bytes(b"x" * 4096)
        assert peer.call(procedure, vol, *rest) == Void()
        assert (target / "v").read_bytes() == bytes(4096)
    for algorithm, shown in ((10, 10), (2**31, -(2**31)), (2**32 - 1, -1)):
        found = peer.error(rpc.VOL_WIPE_PATTERN, vol, algorithm, 0)
        assert found == error(8, "invalid argument: %s", f"wiping algorithm {shown} not supported")
    found = peer.error(rpc.VOL_WIPE_PATTERN, vol, 9, 0)
    assert found == error(74, "argument unsupported: %s", "'trim' algorithm not supported")


def test_delete(peer: Peer, pool: StoragePool, vol: StorageVol, target: Path) -> None:
    assert peer.call(rpc.VOL_DELETE, vol, 0) == Void()
    assert not (target / "v").exists()
    found = peer.error(rpc.VOL_DELETE, vol, 0)
    assert found == no_volume("no storage vol with matching name 'v'")


# Transfers


def test_upload_and_download(peer: Peer, pool: StoragePool, vol: StorageVol, target: Path) -> None:
    opened = peer.call(rpc.VOL_UPLOAD, vol, 1, 0, 0)
    assert (opened.source, opened.sparse) == (None, False)
    opened.sink.write(b"abc")
    assert (target / "v").read_bytes()[:5] == b"\0abc\0"  # at once
    opened.sink.finish()
    opened = peer.call(rpc.VOL_DOWNLOAD, vol, 1, 3, 0)
    assert (opened.sink, opened.sparse) == (None, False)
    assert (opened.source.read(100), opened.source.read(100)) == (b"abc", b"")
    opened.source.close()


def test_sparse_transfers(peer: Peer, pool: StoragePool, target: Path) -> None:
    vol = peer.made(pool, "v", 1 << 20)
    opened = peer.call(rpc.VOL_UPLOAD, vol, 0, 0, 1)
    assert opened.sparse
    opened.sink.hole(1 << 19)
    opened.sink.write(b"x" * 4096)
    opened.sink.finish()
    opened = peer.call(rpc.VOL_DOWNLOAD, vol, 0, 0, 1)
    assert opened.sparse
    parts = []
    while part := opened.source.read(1 << 20):
        parts.append(part if isinstance(part, Hole) else len(part))
    opened.source.close()
    assert parts[:2] == [Hole(1 << 19), 4096]


def test_an_upload_of_a_bounded_length(peer: Peer, vol: StorageVol) -> None:
    sink = peer.call(rpc.VOL_UPLOAD, vol, 0, 10, 0).sink
    sink.write(b"x" * 10)
    with pytest.raises(Exception, match="No space left"):
        sink.write(b"x")
    sink.abort()


def test_parts_that_no_file_has(peer: Peer, vol: StorageVol, target: Path) -> None:
    for procedure in (rpc.VOL_UPLOAD, rpc.VOL_DOWNLOAD):
        for offset in (2**63, 2**64 - 1):
            text = f"Unable to seek {target}/v to {offset}: Invalid argument"
            found = peer.error(procedure, vol, offset, 0, 0)
            assert found == RemoteError(38, 38, text, str1="%s", str2=text, int1=22)
        opened = peer.call(procedure, vol, 1, 2**64 - 1, 0)
        (opened.sink or opened.source).abort()


def test_two_uploads_to_one_volume(peer: Peer, vol: StorageVol, target: Path) -> None:
    one = peer.call(rpc.VOL_UPLOAD, vol, 0, 0, 0).sink
    other = peer.call(rpc.VOL_UPLOAD, vol, 10, 0, 0).sink
    one.write(b"a")
    other.write(b"b")
    one.finish()
    other.finish()
    assert (target / "v").read_bytes()[:11] == b"a" + bytes(9) + b"b"


def test_a_long_call_keeps_nobody_waiting(peer: Peer, target: Path, control: Control) -> None:
    pool = peer.started("p", target, "double")
    control.hold("create", lively=True)
    peer.start(rpc.VOL_CREATE_XML, pool, volume_xml("new"), 0)
    control.wait_for("create")
    vol = peer.call(rpc.VOL_LOOKUP_BY_NAME, pool, "new").vol
    assert peer.call(rpc.VOL_GET_INFO, vol).capacity == 4096
    assert peer.call(rpc.POOL_GET_INFO, pool).state == 2
    assert peer.error(rpc.VOL_CREATE_XML, pool, volume_xml("new"), 0).code == 90
