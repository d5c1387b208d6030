"""Pools through their lives: redefined, transient, restored, listed, found, autostarted."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from storaged.errors import SystemFailure
from storaged.filters import PoolFilter
from storaged.model import PoolDef, PoolSource
from storaged.poolhandle import Pool
from storaged.storage import Storage
from tests.doubles import Control, refused
from tests.storaged.conftest import Engine, driver_of


def other(definition: PoolDef) -> PoolDef:
    """Return another definition of the same pool."""
    return replace(definition, source=PoolSource(name="changed"))


def source_name(definition: PoolDef) -> str | None:
    return definition.source.name


# Redefinitions


def test_an_active_pool_takes_a_new_definition_after_its_stop(
    engine: Engine, storage: Storage
) -> None:
    definition = engine.definition()
    pool = storage.define_pool(definition)
    pool.start()
    storage.define_pool(other(definition))
    assert source_name(pool.definition()) is None
    assert source_name(pool.definition(inactive=True)) == "changed"
    assert "<name>changed</name>" not in pool.xml()
    pending = pool.xml(inactive=True)
    assert "<name>changed</name>" in pending
    assert "<capacity unit='bytes'>0</capacity>" in pending
    assert "<name>changed</name>" in config(engine).read_text()
    pool.stop()
    assert pool.definition() == pool.definition(inactive=True) == other(definition)
    pool.start()
    assert source_name(pool.definition()) == "changed"


def test_without_a_pending_definition_the_live_one_is_shown(pool: Pool) -> None:
    assert pool.xml(inactive=True) == pool.xml()
    assert "<capacity unit='bytes'>0</capacity>" not in pool.xml(inactive=True)


def test_a_pending_definition_survives_the_engine(engine: Engine, storage: Storage) -> None:
    definition = engine.definition()
    pool = storage.define_pool(definition)
    pool.start()
    storage.define_pool(other(definition))
    storage.close()
    again = engine.open().pool("p")
    assert again.active
    assert source_name(again.definition()) is None
    assert source_name(again.definition(inactive=True)) == "changed"


def config(engine: Engine, name: str = "p") -> Path:
    return engine.root / "etc/libvirt/storage" / f"{name}.xml"


def live(engine: Engine, name: str = "p") -> Path:
    return engine.root / "run/libvirt/storage" / f"{name}.xml"


def test_a_transient_pool_is_forgotten_when_it_stops(engine: Engine, storage: Storage) -> None:
    pool = storage.create_pool(engine.definition())
    assert (pool.active, pool.persistent) == (True, False)
    assert live(engine).exists()
    assert not config(engine).exists()
    pool.stop()
    assert storage.pools() == []
    assert not live(engine).exists()
    text = f"Storage pool not found: no storage pool with matching uuid '{pool.uuid}' (p)"
    with refused(49, text):
        pool.info()


def test_a_transient_pool_that_is_defined_stays(engine: Engine, storage: Storage) -> None:
    definition = engine.definition()
    pool = storage.create_pool(definition)
    assert storage.define_pool(definition) == pool
    assert pool.persistent
    pool.set_autostart(True)
    pool.stop()
    assert [(found.name, found.active) for found in storage.pools()] == [("p", False)]


def test_a_failed_start_of_a_transient_pool_leaves_nothing(
    engine: Engine, storage: Storage, control: Control, events: list[str]
) -> None:
    control.fail("refresh", SystemFailure("cannot read", 5))
    with refused(38, "cannot read: Input/output error"):
        storage.create_pool(engine.definition())
    assert storage.pools() == []
    assert not live(engine).exists()
    assert control.calls["stop"] == 1
    assert events == []
    assert list((engine.root / "run/storaged/anchors").iterdir()) == []


@pytest.mark.parametrize("step", ["start", "refresh"])
def test_a_failed_start_of_a_persistent_pool(
    pool: Pool, engine: Engine, control: Control, events: list[str], step: str
) -> None:
    pool.stop()
    events.clear()
    control.fail(step, SystemFailure("no", 5))
    with refused(38):
        pool.start()
    assert not pool.active
    assert not live(engine).exists()
    assert events == []
    control.mend(step)
    pool.start()
    assert events == ["STARTED"]


def test_a_failed_start_says_what_could_not_be_undone(pool: Pool, control: Control) -> None:
    pool.stop()
    control.fail("refresh", SystemFailure("cannot read", 5))
    control.fail("stop", SystemFailure("cannot unmount", 16))
    with refused(38, "cannot read: Input/output error"):
        pool.start()
    assert "could not be stopped cleanly: cannot unmount" in pool.info().problems[0]
    with refused(55) as caught:
        pool.names()
    assert "cannot unmount" in str(caught.value.advice)


def test_a_kept_pool_runs_another_definition_once(engine: Engine, storage: Storage) -> None:
    definition = engine.definition()
    pool = storage.define_pool(definition)
    once = storage.create_pool(other(definition))
    assert once == pool
    assert pool.persistent
    assert source_name(pool.definition()) == "changed"
    assert source_name(pool.definition(inactive=True)) is None
    assert "<name>changed</name>" not in config(engine).read_text()
    pool.stop()
    assert pool.definition() == definition


def test_a_kept_pool_is_restored_when_another_definition_fails(
    engine: Engine, storage: Storage, control: Control
) -> None:
    definition = engine.definition()
    pool = storage.define_pool(definition)
    control.fail("start", SystemFailure("no", 5))
    with refused(38):
        storage.create_pool(other(definition))
    assert (pool.active, pool.persistent) == (False, True)
    assert pool.definition() == pool.definition(inactive=True) == definition


def test_a_refresh_that_fails_stops_the_pool(
    pool: Pool, control: Control, engine: Engine, events: list[str]
) -> None:
    events.clear()
    control.fail("refresh", SystemFailure("cannot read", 5))
    with refused(38):
        pool.refresh()
    assert not pool.active
    assert pool.info().problems == (
        "stopped, because a refresh failed: cannot read: Input/output error",
    )
    assert events == ["STOPPED"]
    assert not live(engine).exists()


def test_a_refresh_that_fails_removes_a_transient_pool(
    engine: Engine, storage: Storage, control: Control, events: list[str]
) -> None:
    pool = storage.create_pool(engine.definition())
    control.fail("refresh", SystemFailure("cannot read", 5))
    with refused(38):
        pool.refresh()
    assert storage.pools() == []
    assert events == ["STARTED", "STOPPED"]
    control.mend("refresh")
    storage.create_pool(engine.definition())


def test_a_refresh_that_fails_beside_jobs_leaves_the_pool(pool: Pool, control: Control) -> None:
    control.hold("create", lively=True)
    job = pool.create("v", 4096, wait=False)
    control.wait_for("create")
    control.fail("refresh", SystemFailure("cannot read", 5))
    with refused(38):
        pool.refresh()
    assert pool.active
    assert pool.info().problems == ("the last refresh failed: cannot read: Input/output error",)
    control.release("create")
    assert job.result().name == "v"
    control.mend("refresh")
    pool.refresh()
    assert pool.info().problems == ()


def test_a_definition_that_cannot_be_written_changes_nothing(
    engine: Engine, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_definition: PoolDef) -> None:
        raise SystemFailure("cannot write", 28)

    store = driver_of(storage)._services.store
    monkeypatch.setattr(type(store), "write_config", lambda _self, definition: refuse(definition))
    definition = engine.definition()
    with refused(38):
        storage.define_pool(definition)
    assert storage.pools() == []
    pool = storage.create_pool(definition)
    with refused(38):
        storage.define_pool(definition)
    assert (pool.active, pool.persistent) == (True, False)


def test_undefine_forgets_all_but_the_storage(pool: Pool, engine: Engine, storage: Storage) -> None:
    volume = Path(pool.create("v", 4096).path)
    pool.set_autostart(True)
    pool.stop()
    pool.undefine()
    assert storage.pools() == []
    assert volume.exists()
    assert not config(engine).exists()
    assert not (config(engine).parent / "autostart/p.xml").is_symlink()
    with refused(49):
        pool.undefine()


# Autostart


def test_autostart_needs_a_kept_pool_and_can_be_repeated(pool: Pool) -> None:
    for on in (True, True, False, False):
        pool.set_autostart(on)
        assert pool.autostart is on


def test_autostart_happens_once_a_boot(engine: Engine, storage: Storage) -> None:
    pool = storage.define_pool(engine.definition())
    pool.set_autostart(True)
    storage.define_pool(engine.definition("q"))
    storage.close()
    again = engine.open(autostart=True)
    assert [found.name for found in again.pools(active=True)] == ["p"]
    again.pool("p").stop()
    again.close()
    assert not engine.open(autostart=True).pool("p").active


def test_an_autostart_that_fails_is_a_problem_of_its_pool(
    engine: Engine, storage: Storage, control: Control
) -> None:
    for name in ("good", "bad"):
        storage.define_pool(engine.definition(name)).set_autostart(True)
    (engine.directory / "bad").rmdir()
    storage.close()
    again = engine.open(autostart=True)
    assert [pool.active for pool in again.pools()] == [False, True]
    assert (
        again.pool("bad").info().problems[0].startswith("autostart failed: cannot open directory")
    )


# Lists and look-ups


def test_every_filter(engine: Engine, storage: Storage) -> None:
    for flags in product((True, False), repeat=3):
        is_active, persistent, autostart = flags
        if not persistent and (autostart or not is_active):
            continue
        name = "".join(row for row, flag in zip("apu", flags, strict=True) if flag) or "none"
        definition = engine.definition(name)
        pool = storage.define_pool(definition) if persistent else storage.create_pool(definition)
        if persistent and is_active:
            pool.start()
        if autostart:
            pool.set_autostart(True)
    everyone = {pool.name for pool in storage.pools()}
    assert everyone == {"a", "p", "ap", "pu", "apu"}
    for wanted in product((None, True, False), repeat=3):
        expected = {
            name
            for name in everyone
            if all(
                flag is None or (row in name) is flag
                for row, flag in zip("apu", wanted, strict=True)
            )
        }
        found = storage.pools(active=wanted[0], persistent=wanted[1], autostart=wanted[2])
        assert {pool.name for pool in found} == expected
        assert [pool.name for pool in found] == sorted(pool.name for pool in found)


def test_bits_of_one_group_are_alternatives_and_types_are_a_group(
    engine: Engine, storage: Storage
) -> None:
    engine.pool("plain", "dir")
    engine.pool("foreign")
    driver = storage.engine

    def names(flags: PoolFilter) -> list[str]:
        return sorted(ref.name for ref in driver.pools(flags))

    assert names(PoolFilter.ACTIVE | PoolFilter.INACTIVE) == ["foreign", "plain"]
    assert names(PoolFilter.DIR) == names(PoolFilter.DIR | PoolFilter.RBD) == ["plain"]
    assert names(PoolFilter.RBD) == []
    assert [pool.name for pool in storage.pools(types=["double"])] == ["foreign"]
    assert [bit.value for bit in PoolFilter] == [1 << number for number in range(20)]
    flags = "invalid argument: unsupported flags (0x100000)"
    with refused(8, f"{flags} in function storageConnectListAllStoragePools"):
        driver.pools(PoolFilter(1 << 20))


def test_look_up_by_target_path(engine: Engine, storage: Storage) -> None:
    pool = engine.pool()
    target = str(engine.directory / "p")
    assert storage.pool_by_target(f"{engine.directory}//p/") == pool
    assert storage.pool_by_target(Path(target)) == pool
    pool.stop()
    text = "Storage pool not found: no storage pool with matching target path"
    with refused(49, f"{text} '{target}'") as caught:
        storage.pool_by_target(target)
    assert caught.value.advice == (
        "Pool 'p' has this target but is inactive: storagectl pool start p"
    )
    with refused(49, f"{text} '/no//such/' (/no/such)"):
        storage.pool_by_target("/no//such/")


def test_handles_are_equal_if_they_name_the_same(engine: Engine, storage: Storage) -> None:
    pool = engine.pool()
    assert storage.pool("p") == storage.pool_by_uuid(pool.uuid) == pool
    assert storage.pool_by_uuid(str(pool.uuid).upper()) == pool
    assert len({pool, storage.pool("p")}) == 1
    assert pool != "p"


def test_sources_and_capabilities(storage: Storage) -> None:
    assert "<pool type='dir' supported='yes'>" in storage.capabilities()
    with refused(3):
        storage.find_sources("dir")
    with refused(1, "internal error: unknown storage pool type nonsense"):
        storage.find_sources("nonsense")
