"""Who needs which volume: over all pools, and what it keeps from being deleted."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from storaged.errors import InvalidArgument, OperationInvalid
from storaged.formats.image import BackingRef, ImageInfo
from storaged.index import VolumeIndex
from storaged.model import VolumeRecord
from storaged.poolhandle import Pool
from storaged.storage import Storage
from storaged.volumehandle import Volume
from tests.storaged.conftest import Engine

MIB = 1 << 20


def users(pool: Pool, name: str) -> list[str]:
    return [f"{user.pool.name}/{user.name}" for user in pool.volume(name).users()]


def overlay(pool: Pool, name: str, backing: str, format: str = "raw") -> None:
    pool.create(name, MIB, format="qcow2", backing=backing, backing_format=format)


@pytest.fixture
def two(engine: Engine, storage: Storage) -> tuple[Pool, Pool]:
    """Two pools; the first has a raw volume "base"."""
    one, other = engine.pool("one", "dir"), engine.pool("other", "dir")
    one.create("base", MIB)
    return one, other


def test_across_pools(two: tuple[Pool, Pool]) -> None:
    one, other = two
    assert users(one, "base") == []
    overlay(one, "near", "base")
    path = one.volume("base").path
    overlay(other, "far", path)
    overlay(other, "dots", "../one/./base")
    assert users(one, "base") == ["one/near", "other/dots", "other/far"]
    other.volume("far").delete()
    assert users(one, "base") == ["one/near", "other/dots"]
    other.stop()
    assert users(one, "base") == ["one/near"]


def test_delete_is_refused_unless_forced(two: tuple[Pool, Pool]) -> None:
    one, _other = two
    for number in range(5):
        overlay(one, f"top{number}", "base")
    with pytest.raises(OperationInvalid) as caught:
        one.volume("base").delete()
    assert caught.value.code == 55
    assert "one/top0, one/top1, one/top2 and 2 more" in (caught.value.advice or "")
    assert "storagectl vol delete one/base --force" in (caught.value.advice or "")
    assert Path(one.volume("base").path).exists()
    one.volume("base").delete(force=True)
    assert "base" not in one.names()


def losses(base: Volume) -> list[tuple[str, Callable[..., None]]]:
    return [
        ("wipe one/base --force", base.wipe),
        ("resize one/base SIZE --shrink --force", partial(base.resize, "512 KiB", shrink=True)),
        (
            "resize one/base SIZE --shrink --force",
            partial(base.resize, "512 KiB", delta=True, shrink=True),
        ),
    ]


def test_what_others_need_keeps_its_content(two: tuple[Pool, Pool]) -> None:
    one, other = two
    base = one.volume("base")
    overlay(other, "far", base.path)
    with Path(base.path).open("r+b") as file:
        file.write(b"content")
    for command, lose in losses(base):
        with pytest.raises(OperationInvalid, match="'base' is needed by other volumes") as caught:
            lose()
        assert f"storagectl vol {command}" in (caught.value.advice or "")
        assert "other/far" in (caught.value.advice or "")
    assert Path(base.path).read_bytes() == b"content".ljust(MIB, b"\0")
    base.resize("2 MiB", shrink=True)  # that takes nothing from anybody
    for _command, lose in losses(base):
        lose(force=True)
    assert base.info().capacity == 0
    other.volume("far").wipe()


def test_a_smaller_size_unasked_is_what_is_said_first(two: tuple[Pool, Pool]) -> None:
    one, _other = two
    overlay(one, "top", "base")
    with pytest.raises(InvalidArgument, match="shrink"):
        one.volume("base").resize(4096)


def test_free_again_when_nobody_needs_it(two: tuple[Pool, Pool]) -> None:
    one, _other = two
    overlay(one, "top", "base")
    one.volume("top").delete()
    one.volume("base").delete()
    assert one.names() == []


def test_what_was_never_listed_counts(engine: Engine, two: tuple[Pool, Pool]) -> None:
    """A new engine has read no pool yet, and still knows before it deletes."""
    one, other = two
    overlay(other, "far", one.volume("base").path)
    engine.opened[-1].close()
    again = engine.open()
    with pytest.raises(OperationInvalid, match="needed by other volumes"):
        again.pool("one").volume("base").delete()
    assert users(again.pool("one"), "base") == ["other/far"]


def test_a_foreign_change_is_seen_by_a_refresh(two: tuple[Pool, Pool]) -> None:
    one, other = two
    overlay(other, "far", "../one/base")
    one.create("back", MIB)
    path = Path(other.volume("far").path)
    path.write_bytes(path.read_bytes().replace(b"../one/base", b"../one/back"))
    other.refresh()
    assert (users(one, "base"), users(one, "back")) == ([], ["other/far"])


def test_an_image_over_itself_can_go(two: tuple[Pool, Pool]) -> None:
    one, _other = two
    overlay(one, "top", "base")
    target = Path(one.definition().target or "")
    data = (target / "top").read_bytes().replace(b"base", b"self")
    (target / "self").write_bytes(data)
    one.refresh()
    assert users(one, "self") == []
    one.volume("self").delete()


def test_a_pool_that_does_not_answer_is_passed_over(
    engine: Engine, two: tuple[Pool, Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _other = two
    monkeypatch.setattr("storaged.dependants.PATIENCE", 0.3)
    monkeypatch.setattr("storaged.scan.PATIENCE", 0.3)
    engine.pool("slow")
    engine.control.hold("refresh")
    one.volume("base").delete()
    assert one.names() == []


# The index


def record(name: str, *backing: str) -> VolumeRecord:
    image = (
        ImageInfo("qcow2", 1, backing=BackingRef(backing[0].encode(), "raw")) if backing else None
    )
    return VolumeRecord(name, 1, 1, image=image)


def test_index_follows_single_changes() -> None:
    index = VolumeIndex(target="/t")
    index.put(record("a", "base"))
    index.put(record("b", "/t//base"))
    index.put(record("plain"))
    assert sorted(index.users("/t/base")) == ["a", "b"]
    index.put(record("a", "other"))
    assert (index.users("/t/base"), index.users("/t/other")) == (["b"], ["a"])
    index.put(record("a"))
    index.remove("b")
    assert index.users("/t/base") == index.users("/t/other") == []


def test_index_after_a_scan() -> None:
    index = VolumeIndex({"a": record("a", "base"), "b": record("b", "base")}, "/t")
    index.put(record("c", "base"))
    found = index.merged({"b": record("b", "x"), "a": record("a", "base")}, {"c"})
    assert sorted(found.users("/t/base")) == ["a", "c"]
    assert found.users("/t/x") == ["b"]
    assert VolumeIndex({"a": record("a", "base")}).users("/t/base") == []


def test_index_names_data_files_and_extents() -> None:
    image = ImageInfo("vmdk", 1, data_file=b"data", extents=(b"s1", b"s2", b"nbd://x"))
    index = VolumeIndex({"a": VolumeRecord("a", 1, 1, image=image)}, "/t")
    assert [index.users(f"/t/{name}") for name in ("data", "s1", "s2", "nbd:")] == [
        ["a"], ["a"], ["a"], [],
    ]  # fmt: skip


def test_volumes_that_name_nothing_cost_nothing() -> None:
    records = {str(number): record(str(number)) for number in range(1000)}
    assert VolumeIndex(records, "/t")._users == {}
