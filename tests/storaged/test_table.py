"""What must be unique among the pools: names, uuids, sources."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from storaged.errors import NoSuchPool
from storaged.model import (
    FcHostAdapter,
    PoolDef,
    PoolSource,
    ScsiHostAdapter,
    SourceDevice,
    SourceHost,
)
from storaged.storage import Storage
from storaged.table import PoolTable, conflict
from tests.doubles import refused
from tests.storaged.conftest import Engine, driver_of


def pool(kind: str, target: str = "/t", **source: Any) -> PoolDef:
    return PoolDef(kind, "p", target=target, source=PoolSource(**source))


def dev(*paths: str) -> tuple[SourceDevice, ...]:
    return tuple(SourceDevice(path) for path in paths)


def on(name: str, port: int = 0) -> tuple[SourceHost, ...]:
    return (SourceHost(name, port),) if port else (SourceHost(name),)


SCSI = ScsiHostAdapter
FC = FcHostAdapter("20000000c9831b4b", "10000000c9831b4b")
FC_OTHER = FcHostAdapter("20000000c9831b4b", "10000000c9831b4c")

#: Pairs on the same storage, by libvirt's rules.
CONFLICTS = {
    "one directory": (pool("dir"), pool("dir")),
    "fs on one device": (pool("fs", devices=dev("/dev/a")), pool("fs", devices=dev("/dev/a"))),
    "fs and disk": (pool("fs", devices=dev("/dev/a")), pool("disk", devices=dev("/dev/a"))),
    "logical and zfs": (
        pool("logical", devices=dev("/dev/a", "/dev/b")), pool("zfs", devices=dev("/dev/b")),
    ),
    "one export": (
        pool("netfs", hosts=on("h"), dir="/e"), pool("netfs", hosts=on("h"), dir="/e"),
    ),
    "one gluster volume": (
        pool("gluster", hosts=on("h"), name="g", dir="/d"),
        pool("gluster", hosts=on("h"), name="g", dir="/d"),
    ),
    "one port known": (
        pool("gluster", hosts=on("h", 24007), name="g", dir="/d"),
        pool("gluster", hosts=on("h"), name="g", dir="/d"),
    ),
    "one LUN": (
        pool("iscsi", hosts=on("h"), devices=dev("iqn.t")),
        pool("iscsi", hosts=on("other"), devices=dev("iqn.t")),
    ),
    "multipath": (pool("mpath"), pool("mpath", target="/elsewhere")),
    "one adapter": (
        pool("scsi", adapter=SCSI("host5")), pool("scsi", adapter=SCSI("scsi_host5")),
    ),
    "one fibre channel port": (pool("scsi", adapter=FC), pool("scsi", adapter=FC)),
    "one vstorage": (pool("vstorage", name="s"), pool("vstorage", "/u", name="s")),
    "sheepdog": (
        pool("sheepdog", hosts=on("h"), name="x"), pool("sheepdog", hosts=on("h"), name="y"),
    ),
}  # fmt: skip

#: Pairs that only look alike.
PEACE = {
    "two directories": (pool("dir"), pool("dir", target="/u")),
    "a link is not followed": (pool("dir", target="/t/../t"), pool("dir")),
    "dir and fs on one target": (pool("dir"), pool("fs", devices=dev("/dev/a"))),
    "two devices": (pool("fs", devices=dev("/dev/a")), pool("disk", devices=dev("/dev/b"))),
    "two exports": (
        pool("netfs", hosts=on("h"), dir="/e"), pool("netfs", hosts=on("h"), dir="/f"),
    ),
    "two servers": (
        pool("netfs", hosts=on("h"), dir="/e"), pool("netfs", hosts=on("i"), dir="/e"),
    ),
    "two ports": (
        pool("gluster", hosts=on("h", 1), name="g", dir="/d"),
        pool("gluster", hosts=on("h", 2), name="g", dir="/d"),
    ),
    "iscsi and fs": (
        pool("iscsi", hosts=on("h"), devices=dev("/dev/a")), pool("fs", devices=dev("/dev/a")),
    ),
    "rbd never": (
        pool("rbd", hosts=on("h"), name="r"), pool("rbd", hosts=on("h"), name="r"),
    ),
    "two adapters": (pool("scsi", adapter=SCSI("host5")), pool("scsi", adapter=SCSI("host6"))),
    "two fibre channel ports": (pool("scsi", adapter=FC), pool("scsi", adapter=FC_OTHER)),
    "two kinds of adapter": (pool("scsi", adapter=FC), pool("scsi", adapter=SCSI("host5"))),
    "plug-ins": (pool("double"), pool("double")),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFLICTS)
def test_conflicts(case: str) -> None:
    one, other = CONFLICTS[case]
    assert conflict(one, other)
    assert conflict(other, one)


@pytest.mark.parametrize("case", PEACE)
def test_no_conflicts(case: str) -> None:
    one, other = PEACE[case]
    assert not conflict(one, other)
    assert not conflict(other, one)


def test_a_source_conflict_names_the_pool_and_comes_first(engine: Engine, storage: Storage) -> None:
    first = storage.define_pool(engine.definition("a", "dir"))
    rival = engine.definition("b", "dir", target=f"{engine.directory}/a", uuid=first.uuid)
    for start in (storage.define_pool, storage.create_pool):
        with refused(9, "operation failed: Storage source conflict with pool: 'a'") as caught:
            start(rival)
        assert caught.value.advice == (
            f"Use 'a' (inactive on {engine.directory}/a), or remove its definition, not its data: "
            "storagectl pool undefine a"
        )
    assert [pool.name for pool in storage.pools()] == ["a"]


def test_a_pending_definition_conflicts_with_nobody(engine: Engine, storage: Storage) -> None:
    pool = engine.pool("a", "dir")
    (engine.directory / "later").mkdir()
    target = f"{engine.directory}/later"
    storage.define_pool(engine.definition("a", "dir", uuid=pool.uuid, target=target))
    storage.define_pool(engine.definition("b", "dir", target=target))


def test_a_uuid_belongs_to_one_name(engine: Engine, storage: Storage) -> None:
    uuid = storage.define_pool(engine.definition("a")).uuid
    message = f"operation failed: pool 'a' is already defined with uuid {uuid}"
    for take in (storage.define_pool, storage.create_pool):
        with refused(9, message):
            take(engine.definition("b", uuid=uuid))


def test_a_name_belongs_to_one_uuid(engine: Engine, storage: Storage) -> None:
    uuid = storage.define_pool(engine.definition("a")).uuid
    message = f"operation failed: pool 'a' already exists with uuid {uuid}"
    for take in (storage.define_pool, storage.create_pool):
        with refused(9, message) as caught:
            take(engine.definition("a"))
        assert f"<uuid>{uuid}</uuid>" in str(caught.value.advice)


def test_without_a_uuid_it_is_always_another_pool(engine: Engine, storage: Storage) -> None:
    text = f"<pool type='dir'><name>x</name><target><path>{engine.directory}</path></target></pool>"
    storage.define_pool(text)
    with refused(9):
        storage.define_pool(text)


def test_unknown_pools_name_those_that_are_there(engine: Engine, storage: Storage) -> None:
    with refused(49, "Storage pool not found: no storage pool with matching name 'x'") as caught:
        storage.pool("x")
    assert "storagectl pool ensure default" in str(caught.value.advice)
    engine.pool("on")
    storage.define_pool(engine.definition("off"))
    with refused(49) as caught:
        storage.pool("x")
    assert caught.value.advice == "The pools here are: off (inactive), on."
    uuid = uuid4()
    with refused(49, f"Storage pool not found: no storage pool with matching uuid '{uuid}'"):
        storage.pool_by_uuid(uuid)
    with refused(8):
        storage.pool_by_uuid("no uuid")


def test_a_removed_pool_leaves_its_successor_alone(engine: Engine, storage: Storage) -> None:
    table = PoolTable()
    services = driver_of(storage)._services
    from storaged.pool import PoolObject

    definition = engine.definition("a")
    old, new = PoolObject(definition, services), PoolObject(definition, services)
    table.add(old)
    table.add(new)
    table.remove(old)
    assert table.find("a") is new
    assert table.by_uuid(definition.uuid).pool is new
    table.remove(new)
    table.remove(new)
    with pytest.raises(NoSuchPool):
        table.by_ref(new.ref)
