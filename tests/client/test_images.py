"""Images through a connection: the same as in process; a clear error where that cannot be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

import storaged
from storaged import Pool, Storage, Volume
from storaged.client.engine import RemoteEngine
from storaged.imaging import CloneBacking

SECRET = b"correct horse battery staple"


@pytest.fixture(params=["storaged", "embedded"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URI of each kind of engine of ours."""
    if request.param == "storaged":
        return str(request.getfixturevalue("daemon_uri"))
    return f"storage:///embed?root={tmp_path / 'root'}"


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


@pytest.fixture
def base(images: Pool) -> Volume:
    return images.create("base", "1 MiB", format="qcow2")


def engine_of(remote: Storage) -> RemoteEngine:
    assert isinstance(remote.engine, RemoteEngine)
    return remote.engine


def only_storaged(pool: Pool, base: Volume) -> list[tuple[str, Callable[[], Any]]]:
    """Return what libvirt's daemon cannot be asked for, with the words for it."""
    return [
        ("check a volume", base.check),
        ("inspect a volume", base.inspect),
        ("rebase a volume", lambda: base.rebase(None)),
        ("rebase a volume", lambda: base.set_backing_format("raw")),
        ("amend a volume", lambda: base.amend(lazy_refcounts=True)),
        ("convert a volume", lambda: base.convert(format="raw")),
        ("clone in this way", lambda: pool.clone(base, "c", backing="linked")),
        ("encrypt a volume", lambda: pool.create("e", 4096, secret=SECRET)),
        ("take a secret", lambda: base.resize("2 MiB", secret=SECRET)),
    ]


def test_what_libvirt_cannot(libvirt_uri: str, tmp_path: Path) -> None:
    with storaged.connect(libvirt_uri) as remote:
        pool = remote.ensure_dir_pool(f"p{uuid4().hex[:8]}", tmp_path / "images")
        base = pool.create("base", "1 MiB", format="qcow2")
        for what, attempt in only_storaged(pool, base):
            with pytest.raises(storaged.Unsupported, match=f"libvirt cannot {what}") as caught:
                attempt()
            assert "Run storaged there" in (caught.value.advice or "")
        assert pool.names() == ["base"]
        pool.stop()
        pool.undefine()


def test_an_old_daemon(
    remote: Storage, images: Pool, base: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = engine_of(remote)._peer
    monkeypatch.setattr(peer.link, "extension_level", lambda: 1)
    for what, attempt in only_storaged(images, base):
        with pytest.raises(storaged.Unsupported, match=f"daemon there is too old to {what}"):
            attempt()
    assert images.names() == ["base"]


def test_check_and_inspect(remote: Storage, images: Pool, base: Volume) -> None:
    top = images.create("top", format="qcow2", backing=base)
    report = base.check()
    assert (report.format, report.clean, report.total) == ("qcow2", True, 16)
    found = top.inspect()
    assert [layer.path for layer in found.chain] == [top.path, base.path]
    assert found.image is not None
    assert found.image.compat == "1.1"
    assert base.inspect().used_by == (f"{top.pool.name}/{top.name}",)
    job = base.check(wait=False)
    assert (job.kind, job.volume, job.result().clean) == ("check", "base", True)
    with pytest.raises(storaged.OperationUnsupported, match="format raw have no tables"):
        images.create("r", 4096).check()


def test_rebase_amend_and_convert(remote: Storage, images: Pool, base: Volume) -> None:
    top = images.create("top", format="qcow2", backing=base)
    top.rebase(None)
    assert len(top.inspect().chain) == 1
    with pytest.raises(storaged.SystemFailure, match="inaccessible backing store volume none"):
        top.rebase("none", "qcow2")
    top.rebase("none", "qcow2", force=True)
    top.rebase(base)
    top.set_backing_format("qcow2")
    top.amend(lazy_refcounts=True)
    top.convert(compat="0.10", flatten=True)
    image = top.inspect().image
    assert image is not None
    assert (image.compat, image.backing) == (None, None)
    top.convert(format="raw", durability="none")
    assert top.info().format == "raw"
    for volume in (top, base):
        volume.delete()


def test_clones(remote: Storage, images: Pool, base: Volume) -> None:
    clone = images.clone(base, "linked", backing=CloneBacking.LINKED)
    assert [layer.path for layer in clone.inspect().chain] == [clone.path, base.path]
    flat = images.clone(base, "flat")
    assert len(flat.inspect().chain) == 1
    assert images.clone(base, "job", wait=False).result().name == "job"


def test_a_secret_that_reaches_the_engine(remote: Storage, images: Pool, base: Volume) -> None:
    attempts: tuple[Callable[[], None], ...] = (
        lambda: base.convert(secret=SECRET),
        lambda: base.resize("2 MiB", secret=SECRET),
    )
    for attempt in attempts:
        with pytest.raises(storaged.InvalidArgument, match="which is not encrypted") as caught:
            attempt()
        assert SECRET.decode() not in repr(caught.value)
    assert base.info().capacity == 1 << 20
    locked = images.create("locked", "1 MiB", secret=SECRET)
    with pytest.raises(storaged.InvalidSecret, match="volume 'locked': no key slot"):
        images.clone(locked, "copy", source_secret=b"wrong")


def test_a_secret_that_is_no_bytes_is_not_sent(images: Pool, base: Volume) -> None:
    text: Any = "text"
    for attempt in (
        lambda: images.create("e", 4096, secret=text),
        lambda: images.clone(base, "c", source_secret=text),
        lambda: base.resize("2 MiB", secret=text),
        lambda: base.convert(secret=text),
    ):
        with pytest.raises(storaged.InvalidArgument, match="a secret must be bytes, not str"):
            attempt()


def test_what_others_need_is_not_wiped(images: Pool, base: Volume) -> None:
    images.clone(base, "top", backing=CloneBacking.LINKED)
    attempts: tuple[Callable[[], None], ...] = (
        lambda: base.wipe(),
        lambda: base.resize(4096, shrink=True),
    )
    for attempt in attempts:
        with pytest.raises(storaged.OperationInvalid, match="needed by other volumes") as caught:
            attempt()
        assert f"{images.name}/top" in (caught.value.advice or "")
    base.wipe(force=True)


def test_no_secret_leaves_the_host(
    remote: Storage, images: Pool, base: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(remote)
    monkeypatch.setattr(engine, "is_local", False)
    monkeypatch.setattr(engine._peer, "begin", lambda *_a, **_h: pytest.fail("it was sent"))
    for attempt in (
        lambda: images.create("e", 4096, secret=SECRET),
        lambda: images.clone(base, "c", secret=SECRET),
        lambda: images.clone(base, "c", source_secret=SECRET),
        lambda: base.resize("2 MiB", secret=SECRET),
        lambda: base.convert(secret=SECRET),
    ):
        with pytest.raises(storaged.Unsupported, match="on local sockets only"):
            attempt()


def test_a_connection_that_only_reads(daemon_uri: str, tmp_path: Path) -> None:
    with storaged.connect(daemon_uri) as remote:
        pool = remote.ensure_dir_pool(f"p{uuid4().hex[:8]}", tmp_path / "images")
        pool.create("base", "1 MiB", format="qcow2")
        with storaged.connect(daemon_uri, readonly=True) as reader:
            volume = reader.pool(pool.name).volume("base")
            assert volume.check().clean
            assert volume.inspect().format == "qcow2"
            with pytest.raises(storaged.StorageError, match="read only access prevents"):
                volume.amend(lazy_refcounts=True)
        pool.stop()
        pool.undefine()
