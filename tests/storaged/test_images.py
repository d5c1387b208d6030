"""Images looked into and changed through the library: leases, jobs, words, clones, secrets."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import storaged
from storaged import imagelock
from storaged.formats import qcow2_create
from storaged.formats.file import FileHandle
from storaged.imaging import CloneBacking, CloneOptions, Compression, ConvertOptions, Durability
from storaged.model import Encryption, VolumeDef
from storaged.poolhandle import Pool
from tests.doubles import Shelf, eventually, refused
from tests.storaged.conftest import Engine, driver_of, idle

SECRET = b"correct horse battery staple"


@pytest.fixture
def base(pool: Pool) -> storaged.Volume:
    return pool.create("base", "1 MiB", format="qcow2")


def test_a_check(pool: Pool, base: storaged.Volume) -> None:
    assert base.check().clean
    job = base.check(wait=False)
    assert (job.kind, job.volume) == ("check", "base")
    assert job.result().format == "qcow2"
    with refused(84, "Operation not supported: volumes of format raw have no tables"):
        pool.create("r", 4096).check()
    assert idle(pool)


def test_an_inspection(pool: Pool, base: storaged.Volume) -> None:
    overlay = pool.create("top", format="qcow2", backing=base)
    found = overlay.inspect()
    assert [layer.name for layer in found.chain] == ["top", base.path]
    assert found.used_by == ()
    assert base.inspect().used_by == ("p/top",)
    assert base.inspect(wait=False).kind == "inspect"


def test_readers_beside_a_check(engine: Engine, pool: Pool, base: storaged.Volume) -> None:
    engine.control.hold("check_image", lively=True)
    first, second = base.check(wait=False), base.check(wait=False)
    engine.control.wait_for("check_image", 2)
    assert base.inspect().name == "base"
    with refused(55, "Requested operation is not valid: volume 'base' is still in use."):
        base.amend(lazy_refcounts=True)
    first.cancel()
    with pytest.raises(storaged.Cancelled):
        first.result()
    engine.control.release_all()
    assert second.result().clean
    assert idle(pool)


def test_nobody_beside_a_conversion(engine: Engine, pool: Pool, base: storaged.Volume) -> None:
    engine.control.hold("rewrite", lively=True)
    job = base.convert(format="raw", wait=False)
    engine.control.wait_for("rewrite")
    for attempt in (base.check, base.inspect, base.delete):
        with refused(55, "Requested operation is not valid: volume 'base' is still in use."):
            attempt()
    job.cancel()
    with pytest.raises(storaged.Cancelled):
        job.result()
    assert base.info().format == "qcow2"
    engine.control.release_all()
    base.convert(format="raw")
    assert base.info().format == "raw"
    assert idle(pool)


def test_the_space_of_a_pool_follows(pool: Pool) -> None:
    volume = pool.create("v", "1 MiB")
    Path(volume.path).write_bytes(os.urandom(1 << 20))
    pool.refresh()
    before = pool.info().space.allocation
    taken = volume.info().allocation
    volume.convert(format="qcow2")
    assert volume.info().allocation > taken
    assert pool.info().space.allocation == before - taken + volume.info().allocation


def test_rebase_and_amend(pool: Pool, base: storaged.Volume) -> None:
    other = pool.create("other", "1 MiB", format="qcow2")
    top = pool.create("top", format="qcow2", backing=base)
    top.rebase(other)
    definition = top.definition()
    assert definition.backing is not None
    assert (definition.backing.path, definition.backing.format) == (other.path, "qcow2")
    assert (base.inspect().used_by, other.inspect().used_by) == ((), ("p/top",))
    top.rebase(Path("base"), "qcow2")
    assert base.inspect().used_by == ("p/top",)
    top.rebase(None)
    assert top.definition().backing is None
    top.amend(lazy_refcounts=True)
    assert top.definition().features == frozenset({"lazy_refcounts"})
    with refused(8, "invalid argument: nothing is to be amended"):
        top.amend()


def test_an_overlay_has_the_format_on_record(pool: Pool, base: storaged.Volume) -> None:
    top = pool.create("top", format="qcow2", backing=base)
    with refused(55) as caught:
        base.convert(format="raw")
    assert "is the backing file of 1 others" in str(caught.value)
    assert "p/top" in (caught.value.advice or "")
    base.convert(cluster_size="4 KiB")  # which nobody has on record
    base.convert(format="raw", force=True)
    top.rebase(base)
    definition = top.definition()
    assert definition.backing is not None
    assert definition.backing.format == "raw"


def test_words_that_mean_nothing(pool: Pool, base: storaged.Volume) -> None:
    with refused(8, "invalid argument: unknown compression 'lzma'"):
        base.convert(compress="lzma")  # type: ignore[call-overload]
    with refused(8, "invalid argument: unknown durability 'some'"):
        base.convert(durability="some")  # type: ignore[call-overload]
    with refused(8, "invalid argument: unknown way with the backing file 'lose'"):
        pool.clone(base, "c", backing="lose")  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="unknown wishes: speed"):
        base.convert(speed=9)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="unknown wishes: speed"):
        pool.clone(base, "c", speed=9)  # type: ignore[call-overload]


def test_an_engine_that_only_reads(engine: Engine, pool: Pool, base: storaged.Volume) -> None:
    reader = engine.open(readonly=True)
    volume = reader.pool("p").volume("base")
    assert volume.check().clean
    assert volume.inspect().name == "base"
    attempts: list[Callable[[], object]] = [
        lambda: volume.rebase(None),
        lambda: volume.set_backing_format("raw"),
        lambda: volume.amend(lazy_refcounts=True),
        lambda: volume.convert(format="raw"),
    ]
    for attempt in attempts:
        with pytest.raises(storaged.StorageError, match=r"read.only"):
            attempt()


def test_a_pool_type_without_images(engine: Engine) -> None:
    storage = engine.open(backends={"shelf": Shelf})
    pool = storage.define_pool("<pool type='shelf'><name>s</name></pool>")
    pool.start()
    volume = pool.volume("one")
    attempts: list[tuple[Callable[[], object], str]] = [
        (volume.check, "checking of volumes"),
        (volume.inspect, "inspection of volumes"),
        (lambda: volume.rebase(None), "changing of image headers"),
        (lambda: volume.convert(format="raw"), "conversion of volumes"),
    ]
    for attempt, what in attempts:
        with refused(3) as caught:
            attempt()
        assert what in str(caught.value)
    pool.stop()


# Clones


def test_a_clone_is_flat_and_has_no_tie(pool: Pool) -> None:
    volume = pool.create("v", "1 MiB", format="qcow2")
    copy = pool.clone(volume, "copy")
    assert copy.inspect().image is not None
    assert len(copy.inspect().chain) == 1
    assert volume.inspect().used_by == ()
    larger = pool.clone(volume, "larger", capacity="2 MiB", mode=0o640)
    assert larger.info().capacity == 2 << 20
    assert larger.definition().permissions.mode == 0o640
    assert pool.clone(volume, "job", wait=False).kind == "clone"


def test_a_full_clone(pool: Pool) -> None:
    volume = pool.create("v", "1 MiB")
    assert pool.clone(volume, "sparse").info().allocation == 0
    assert pool.clone(volume, "full", full=True).info().allocation >= 1 << 20


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_a_linked_clone(pool: Pool, format: str) -> None:
    volume = pool.create("v", "1 MiB", format=format)
    clone = pool.clone(volume, "c", backing="linked")
    found = clone.inspect()
    assert (found.format, found.capacity) == ("qcow2", 1 << 20)
    assert found.image is not None
    assert found.image.backing is not None
    assert (os.fsdecode(found.image.backing.name), found.image.backing.format) == (
        volume.path,
        format,
    )
    assert volume.inspect().used_by == ("p/c",)
    larger = pool.clone(volume, "d", backing=CloneBacking.LINKED, capacity="2 MiB")
    assert larger.info().capacity == 2 << 20


def test_the_durability_of_a_linked_clone(
    engine: Engine, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = pool.create("v", "1 MiB", format="qcow2")
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    pool.clone(volume, "weak", backing="linked")
    assert not synced
    pool.clone(volume, "strong", backing="linked", durability="full")
    assert len(synced) == 2


def test_a_linked_clone_in_another_pool(engine: Engine, pool: Pool) -> None:
    volume = pool.create("v", "1 MiB", format="qcow2")
    clone = engine.pool("q").clone(volume, "c", backing="linked")
    assert [layer.path for layer in clone.inspect().chain] == [clone.path, volume.path]


def test_what_contradicts_a_link(pool: Pool) -> None:
    volume = pool.create("v", "1 MiB", format="qcow2")
    shared = "a linked clone has no shared data: its data stay in the source"
    with refused(8, f"invalid argument: {shared}"):
        pool.clone(volume, "c", backing="linked", reflink=True)
    with refused(8):
        pool.clone(volume, "c", backing="linked", compress="zstd")
    with refused(67):
        pool.clone(volume, "c", backing="linked", capacity=4096)
    with refused(3):
        pool.clone(volume, "c", backing="linked", format="raw")
    assert pool.names() == ["v"]


def test_no_link_to_what_is_a_danger(pool: Pool) -> None:
    path = Path(pool.create("v", "1 MiB").path)
    path.unlink()
    subprocess.run(
        ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", "nbd://h/x", "-F", "raw", path,
         "1M"], check=True,
    )  # fmt: skip
    with refused(55) as caught:
        pool.clone(pool.volume("v"), "c", backing="linked")
    assert "cannot be a backing file" in str(caught.value)
    assert pool.names() == ["v"]
    assert idle(pool)


def test_no_link_to_what_a_machine_writes_to(pool: Pool) -> None:
    volume = pool.create("v", "1 MiB", format="qcow2")
    with (
        Path(volume.path).open("rb") as file,
        imagelock.hold(file.fileno(), "v"),
        refused(55, "Requested operation is not valid: volume 'v' is still in use."),
    ):
        pool.clone(volume, "c", backing="linked")
    assert pool.names() == ["v"]
    assert idle(pool)
    with (
        Path(volume.path).open("rb") as file,
        imagelock.hold(file.fileno(), "v", writing=False),
    ):
        pool.clone(volume, "c", backing="linked")


# Secrets


def test_a_secret_for_a_plain_volume(pool: Pool) -> None:
    driver = driver_of(pool)
    plain = "a secret was given for volume 'v', which is not to be encrypted"
    with refused(8, f"invalid argument: {plain}"):
        driver.volume_create(pool.ref, VolumeDef("v", 4096), secret=SECRET)
    assert pool.names() == []


def test_a_secret_asks_for_luks(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reaches the backend, with a request for an encrypted volume, and nothing else."""
    seen: list[Any] = []

    def plan(self: object, volume: VolumeDef, **how: Any) -> VolumeDef:
        seen.append((volume.encryption, how))
        return volume

    def create(self: object, volume: VolumeDef, job: object, **how: Any) -> Any:
        seen.append(how)
        raise storaged.SystemFailure("enough", 5)

    backend = type(driver_of(pool)._table.by_ref(pool.ref).pool.backend)
    monkeypatch.setattr(backend, "plan", plan)
    monkeypatch.setattr(backend, "create", create)
    with refused(38):
        pool.create("v", 4096, secret=SECRET)
    assert seen[0][0] == Encryption("luks")
    assert SECRET not in seen[0][1].values()
    assert seen[1]["secret"] == SECRET


def test_a_secret_is_nowhere_to_be_seen(
    pool: Pool, caplog: pytest.LogCaptureFixture, base: storaged.Volume
) -> None:
    caplog.set_level(logging.DEBUG)
    texts = []
    for attempt in (
        lambda: pool.create("v", 4096, format="vmdk", secret=SECRET),
        lambda: pool.clone(base, "c", format="vmdk", secret=SECRET),
        lambda: pool.clone(base, "c", format="vmdk", source_secret=SECRET),
        lambda: base.convert(secret=SECRET, format="vmdk"),
    ):
        with pytest.raises(storaged.StorageError) as caught:
            attempt()
        texts.append(f"{caught.value!r} {caught.value.advice}")
    texts += [repr(CloneOptions(secret=SECRET, source_secret=SECRET))]
    texts += [repr(ConvertOptions(secret=SECRET)), caplog.text]
    assert not [text for text in texts if SECRET.decode() in text]


def test_options_are_values() -> None:
    assert CloneOptions() == CloneOptions(CloneBacking.FLATTEN, None, None, None, None)
    assert [*CloneBacking, *Compression, *Durability] == [
        "flatten", "keep", "linked", "zlib", "zstd", "full", "none",
    ]  # fmt: skip


def test_a_conversion_that_is_interrupted_leaves_no_part(engine: Engine, pool: Pool) -> None:
    volume = pool.create("v", "64 MiB")
    Path(volume.path).write_bytes(os.urandom(1 << 20))
    engine.control.hold("rewrite", lively=True)
    job = volume.convert(format="qcow2", wait=False)
    engine.control.wait_for("rewrite")
    job.cancel()
    eventually(lambda: job.ended)
    assert [entry.name for entry in (engine.directory / "p").iterdir()] == ["v"]


CONVERTING = """
import itertools, sys, storaged
with storaged.open(root=sys.argv[1], durability="none") as storage:
    volume = storage.pool("k").volume("v")
    for number, format in enumerate(itertools.cycle(("qcow2", "raw"))):
        volume.convert(format=format)
        if number == 1:
            print("ready", flush=True)
"""


@pytest.mark.slow
def test_a_killed_conversion_leaves_one_image_whole(engine: Engine) -> None:
    """At every moment the name leads to the old image or to the new one."""
    storage = engine.open(backends=None)
    path = Path(engine.pool("k", "dir").create("v", 8 << 20).path)
    content = os.urandom(8 << 20)
    path.write_bytes(content)
    storage.close()
    for attempt in range(5):
        child = subprocess.Popen(
            [sys.executable, "-c", CONVERTING, engine.root], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(0.02 + 0.0137 * attempt)
        child.kill()
        child.wait()
        child.stdout.close()
        storage = engine.open(backends=None)
        pool = storage.pool("k")
        pool.stop()
        pool.start()
        assert [entry.name for entry in path.parent.iterdir()] == ["v"]
        kind = pool.volume("v").info().format or ""
        subprocess.run(
            ["qemu-img", "convert", "-f", kind, "-O", "raw", path, engine.root / "seen"],
            check=True,
        )
        assert (engine.root / "seen").read_bytes() == content
        storage.close()


# What is refused beforehand


@pytest.mark.parametrize("loss", ["missing", "unrecorded"])
def test_no_link_to_an_incomplete_chain(pool: Pool, base: storaged.Volume, loss: str) -> None:
    middle = pool.create("middle", format="qcow2", backing=base)
    if loss == "missing":
        Path(base.path).unlink()
    else:
        with FileHandle(os.open(middle.path, os.O_RDWR | os.O_TRUNC)) as handle:
            options = qcow2_create.CreateOptions(1 << 20, backing=os.fsencode(base.path))
            qcow2_create.create(handle, options)
    with refused(55) as caught:
        pool.clone(middle, "c", backing="linked")
    text = str(caught.value)
    assert "volume 'middle' cannot be a backing file: its backing chain is not complete" in text
    assert ("is not there" if loss == "missing" else "is not recorded") in text
    assert "c" not in pool.names()
    assert idle(pool)


def test_no_clone_is_smaller_than_its_source(pool: Pool) -> None:
    volume = pool.create("v", "1 MiB")
    sizes = "a clone of 4096 bytes is smaller than its source, which has 1048576"
    with refused(8, f"invalid argument: {sizes}"):
        pool.clone(volume, "c", capacity=4096)
    with refused(8):
        volume.clone_to("c", capacity=4096)
    assert pool.names() == ["v"]
    text = "<volume><name>c</name><capacity>4096</capacity></volume>"
    assert pool.clone_volume(text, volume).info().capacity == 1 << 20  # as libvirt has it


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_all_of_a_full_clone_is_there(pool: Pool, format: str) -> None:
    volume = pool.create("v", "1 MiB", format=format)
    clone = pool.clone(volume, "full", full=True).info()
    assert clone.format == format
    assert clone.allocation >= 1 << 20


def test_full_clones_that_there_are_not(pool: Pool) -> None:
    volume = pool.create("v", "1 MiB")
    rest = "cannot take all of its capacity beforehand"
    with refused(67, f"unsupported configuration: a clone of format vmdk {rest}"):
        pool.clone(volume, "c", full=True, format="vmdk")
    with refused(67, f"unsupported configuration: an encrypted qcow2 {rest}"):
        pool.clone(volume, "c", full=True, format="qcow2", secret=SECRET)
    with refused(
        8, "invalid argument: a linked clone takes no space for data: they stay in the source"
    ):
        pool.clone(volume, "c", full=True, backing="linked")
    assert pool.names() == ["v"]


def test_a_version_that_there_is_not(pool: Pool) -> None:
    with refused(8, "invalid argument: unknown qcow2 compatibility level '2'"):
        pool.create("v", "1 MiB", format="qcow2", compat="2")
