"""The library over a connection: to libvirt's daemon, to storaged's, to an engine in process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

import storaged
from storaged import Pool, Storage
from storaged.client.engine import RemoteEngine, _has_no_host
from storaged.client.engineplain import PlainPeer
from tests.doubles import eventually


@pytest.fixture
def remote(uri: str) -> Iterator[Storage]:
    with storaged.connect(uri) as opened:
        yield opened


@pytest.fixture
def images(remote: Storage, tmp_path: Path) -> Iterator[Pool]:
    """A running pool of its own, which is gone after the test."""
    pool = remote.ensure_dir_pool(f"p{uuid4().hex[:8]}", tmp_path / "images")
    yield pool
    pool.stop()
    pool.undefine()


def is_plain(remote: Storage) -> bool:
    assert isinstance(remote.engine, RemoteEngine)
    return isinstance(remote.engine._peer, PlainPeer)


def test_what_it_is(remote: Storage, uri: str):
    assert remote.uri == uri
    assert remote.readonly is False
    assert remote.engine.is_local is True
    assert remote.engine.closed is False
    assert remote.problems() == []
    assert "<pool type='dir' supported='yes'>" in remote.capabilities()
    remote.close()
    assert remote.engine.closed is True


def test_a_pool(remote: Storage, images: Pool, tmp_path: Path):
    assert remote.pool(images.name) == images
    assert remote.pool_by_uuid(images.uuid) == images
    assert remote.pool_by_target(tmp_path / "images") == images
    info = images.info()
    assert (info.ref, info.type, info.target) == (images.ref, "dir", str(tmp_path / "images"))
    assert info.active
    assert info.persistent
    assert info.autostart
    assert info.space.capacity > info.space.available > 0
    [listed] = [each for each in remote.pool_infos(types=["dir"]) if each.ref == images.ref]
    assert (listed.state, listed.target) == (info.state, info.target)
    assert listed.space.capacity == info.space.capacity
    assert images in remote.pools(active=True, persistent=True, autostart=True, types=["dir"])
    assert images not in remote.pools(active=False)
    assert remote.pools(types=["netfs"]) == remote.pools(types=["nonsense"]) == []
    found = images.definition()
    assert (found.name, found.uuid, found.target) == (images.name, images.uuid, info.target)
    assert f"<name>{images.name}</name>" in images.xml(inactive=True)


def test_the_life_of_a_pool(remote: Storage, tmp_path: Path):
    target = tmp_path / "life"
    name = f"p{uuid4().hex[:8]}"
    wanted = storaged.PoolDef("dir", name, target=str(target))
    pool = remote.define_pool(wanted)
    assert (pool.uuid, pool.active, pool.persistent) == (wanted.uuid, False, True)
    pool.start(build=True)
    assert target.is_dir()
    pool.refresh()
    with pytest.raises(storaged.OperationInvalid, match="already active"):
        pool.start()
    pool.set_autostart(True)
    assert pool.autostart
    pool.stop()
    pool.delete()
    assert not target.exists()
    pool.undefine()
    with pytest.raises(storaged.NoSuchPool):
        pool.info()


@pytest.mark.parametrize("as_document", [True, False], ids=["document", "value"])
def test_a_transient_pool(remote: Storage, tmp_path: Path, as_document: bool):
    name = f"p{uuid4().hex[:8]}"
    target = tmp_path / "transient"
    document = f"<pool type='dir'><name>{name}</name><target><path>{target}</path></target></pool>"
    definition = storaged.PoolDef("dir", name, target=str(target))
    pool = remote.create_pool(document if as_document else definition, build=True)
    assert (pool.name, pool.active, pool.persistent) == (name, True, False)
    pool.stop()
    assert pool not in remote.pools()


def test_ensuring_twice_changes_nothing(remote: Storage, images: Pool, tmp_path: Path):
    definition = storaged.PoolDef("dir", images.name, target=str(tmp_path / "images"))
    done = remote.ensure_pool(definition)
    assert (done.changed, done.differences) == (False, ())
    assert images.ensure_volume("v", "1 MiB").actions == ("created",)
    assert images.ensure_volume("v", "1 MiB").changed is False
    assert images.ensure_volume("v", "2 MiB").actions == ("grown from 1048576 to 2097152 bytes",)


def test_volumes(remote: Storage, images: Pool, tmp_path: Path):
    base = images.create("base.qcow2", "8 MiB", format="qcow2")
    info = base.info()
    path = str(tmp_path / "images/base.qcow2")
    assert (info.path, info.ref.key, info.capacity, info.format) == (path, path, 8 << 20, "qcow2")
    assert info.physical >= 196616
    assert (info.type, info.building, info.problem) == ("file", False, None)
    found = base.definition()
    assert (found.compat, found.path, found.physical) == ("1.1", path, info.physical)
    assert found.timestamps is not None
    assert found.timestamps.mtime > 10**18
    top = images.create("top", format="qcow2", backing=base)
    assert top.info().capacity == 8 << 20
    backing = top.definition().backing
    assert backing is not None
    assert (backing.path, backing.format) == (path, "qcow2")
    assert base.clone_to("copy", pool=images).info().format == "qcow2"
    assert images.names() == ["base.qcow2", "copy", "top"]
    assert [volume.name for volume in images.volumes()] == images.names()
    assert remote.volume_by_path(path) == remote.volume_by_key(path) == base
    assert base.pool == images
    base.resize("16 MiB")
    assert base.info().capacity == 16 << 20
    images.volume("top").delete()
    assert images.names() == ["base.qcow2", "copy"]


def test_documents_are_sent_as_they_are(images: Pool):
    document = "<volume><name>a</name><capacity unit='KiB'>64</capacity><target/></volume>"
    made = images.create_volume(document, validate=True)
    assert made.info().allocation == 65536
    copy = images.clone_volume("<volume><name>b</name></volume>", made)
    assert copy.info().capacity == 65536
    with pytest.raises(storaged.XMLError):
        images.create_volume("<volume/>")


def test_bytes_in_and_out(images: Pool, tmp_path: Path):
    payload = bytes(range(256)) * 4096
    (tmp_path / "payload").write_bytes(payload)
    volume = images.create("data", "4 MiB")
    assert volume.upload(tmp_path / "payload", offset=4096) == len(payload)
    assert volume.download(tmp_path / "back", offset=4096, length=len(payload)) == len(payload)
    assert (tmp_path / "back").read_bytes() == payload
    with (tmp_path / "open").open("wb") as file:
        assert volume.download(file, offset=4096, length=10) == 10
    assert (tmp_path / "open").read_bytes() == payload[:10]


def test_holes_stay_holes(remote: Storage, images: Pool, tmp_path: Path):
    with (tmp_path / "sparse").open("wb") as file:
        file.write(b"head".ljust(65536, b"h"))
        file.seek(8 << 20)
        file.write(b"tail".ljust(65536, b"t"))
        file.truncate(16 << 20)
    volume = images.create("sparse", "16 MiB")
    assert volume.upload(tmp_path / "sparse", sparse=True) == 16 << 20
    there = Path(volume.path)
    assert there.read_bytes() == (tmp_path / "sparse").read_bytes()
    # libvirt would cut off what lies behind a hole, so it gets zeros
    assert is_plain(remote) or there.stat().st_blocks * 512 < 1 << 20
    assert volume.download(tmp_path / "back", sparse=True) == 16 << 20
    assert (tmp_path / "back").read_bytes() == there.read_bytes()
    assert is_plain(remote) or (tmp_path / "back").stat().st_blocks * 512 < 1 << 20


def test_piece_by_piece(images: Pool):
    volume = images.create("pieces", "1 MiB")
    sink = volume.open_upload(offset=10)
    sink.write(b"abc")
    sink.hole(4096)
    sink.write(b"def")
    sink.finish()
    sink.abort()
    source = volume.open_download(offset=10, length=4102)
    read = b""
    while piece := source.read(1000):
        assert isinstance(piece, bytes)
        read += piece
    assert source.read(1000) == b""
    source.close()
    source.close()
    assert read == b"abc" + bytes(4096) + b"def"
    half = volume.open_download()
    assert half.read(10) == bytes(10)
    half.close()
    assert volume.info().capacity == 1 << 20
    with pytest.raises(storaged.InvalidArgument, match="out of range"):
        volume.open_upload(offset=-1)


def test_a_download_that_fails_leaves_no_file(images: Pool, tmp_path: Path):
    volume = images.create("gone", "1 MiB")
    Path(volume.path).unlink()
    with pytest.raises(storaged.StorageError):
        volume.download(tmp_path / "back")
    assert list(tmp_path.glob("*back*")) == []


def test_events(remote: Storage, images: Pool):
    heard: list[object] = []
    stop = remote.subscribe(lambda event: heard.append((event.pool.name, event.lifecycle)))
    twice = remote.subscribe(lambda event: None)
    images.refresh()
    images.stop()
    images.start()
    wanted = {
        (images.name, None),
        (images.name, storaged.Lifecycle.STOPPED),
        (images.name, storaged.Lifecycle.STARTED),
    }
    eventually(lambda: wanted <= set(heard))
    stop()
    stop()
    count = len(heard)
    images.refresh()
    twice()
    images.refresh()
    assert len(heard) == count
    again = remote.subscribe(lambda event: heard.append(event))
    images.refresh()
    eventually(lambda: len(heard) > count)
    again()


def test_a_subscriber_may_ask(remote: Storage, images: Pool):
    known: list[bool] = []
    stop = remote.subscribe(lambda event: known.append(images.active))
    images.refresh()
    eventually(lambda: bool(known))
    stop()
    assert known[0] is True


def test_errors_are_what_they_were(remote: Storage, images: Pool):
    with pytest.raises(storaged.NoSuchPool) as no_pool:
        remote.pool("none")
    assert str(no_pool.value) == (
        "Storage pool not found: no storage pool with matching name 'none'"
    )
    with pytest.raises(storaged.NoSuchVolume):
        images.volume("none")
    images.create("v", 0)
    with pytest.raises(storaged.VolumeExists, match="storage volume 'v' exists already"):
        images.create("v", 0)
    with pytest.raises(storaged.PoolExists):
        remote.define_pool(storaged.PoolDef("dir", images.name, target="/other"))
    with pytest.raises(storaged.InvalidArgument):
        remote.job(10**6)
    with pytest.raises(storaged.InvalidArgument, match="cannot be sent"):
        images.create("a\x01b", 0)
    advised = no_pool.value.advice or ""
    assert is_plain(remote) or images.name in advised


def test_what_only_storaged_has(remote: Storage, images: Pool):
    volume = images.create("v", "1 MiB")
    policy = storaged.PoolPolicy(mode=0o640)
    if is_plain(remote):
        for call in (
            images.policy,
            lambda: images.set_policy(policy),
            lambda: volume.delete(force=True),
        ):
            with pytest.raises(storaged.Unsupported) as refused:
                call()
            assert "not storaged" in (refused.value.advice or "")
        assert remote.jobs() == []
        return
    images.set_policy(policy)
    assert images.policy() == policy
    assert images.create("w", 0).definition().permissions.mode == 0o640
    volume.delete(force=True)


def test_snapshots_where_there_are_none(remote: Storage, images: Pool):
    volume = images.create("v", 4096)
    said = "unsupported flags" if is_plain(remote) else "does not support snapshots of volumes"
    with pytest.raises(storaged.StorageError, match=said):
        volume.delete(snapshots=True)
    assert images.names() == ["v"]
    volume.delete()


def test_reading_only(uri: str, images: Pool):
    if "libvirt-sock" in uri:
        uri = uri.replace("libvirt-sock", "libvirt-sock-ro")
    with storaged.connect(uri, readonly=True) as reader:
        assert reader.readonly
        assert images.name in [pool.name for pool in reader.pools()]
        with pytest.raises(storaged.StorageError, match="read only access prevents"):
            reader.pool(images.name).stop()


@pytest.mark.parametrize(
    ("uri", "here"),
    [
        ("storage:///system", True),
        ("storage+unix:///system?socket=/x", True),
        ("qemu+ssh://root@host/system", False),
    ],
)
def test_whose_paths(uri: str, here: bool):
    assert _has_no_host(uri) is here


def test_access_is_looked_at_on_the_host(remote: Storage, images: Pool):
    volume = images.create("v", 0)
    assert volume.access("root").path == volume.path
    assert isinstance(remote.engine, RemoteEngine)
    remote.engine.is_local = False
    with pytest.raises(storaged.Unsupported) as refused:
        volume.access("root")
    assert f"storagectl vol access {volume.path}" in (refused.value.advice or "")


def test_nobody_there(tmp_path: Path):
    with pytest.raises(storaged.SystemFailure) as nobody:
        storaged.connect(f"storage:///system?socket={tmp_path}/none")
    assert nobody.value.errno == 2


def test_who_needs_a_volume(remote: Storage, images: Pool):
    base = images.create("base", "1 MiB", allocation=0)
    images.create("top", "1 MiB", format="qcow2", backing=base.path, backing_format="raw")
    if is_plain(remote):
        assert base.users() == []  # libvirt does not tell, and deletes it
        base.delete()
        return
    assert [user.name for user in base.users()] == ["top"]
    with pytest.raises(storaged.OperationInvalid) as caught:
        base.delete()
    assert f"{images.name}/top" in (caught.value.advice or "")
    base.delete(force=True)
    assert images.names() == ["top"]


def test_a_forced_stop(
    remote: Storage, images: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if is_plain(remote):
        with pytest.raises(storaged.Unsupported, match="cannot stop a pool by force"):
            images.stop(force=True)
        assert images.active
        return
    peer = remote.engine._peer  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr(peer.link, "extension_level", lambda: 2)
        with pytest.raises(storaged.Unsupported, match="too old to stop a pool by force"):
            images.stop(force=True)
    assert images.active
    images.stop(force=True)
    assert not images.active
    images.start()
