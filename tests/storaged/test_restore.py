"""Reading the definitions again while the engine is open."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest

from storaged.driver import Driver, open_driver
from storaged.errors import InvalidArgument
from storaged.paths import Paths
from storaged.poolxml import parse_pool

ONE, TWO = UUID(int=1), UUID(int=2)


def document(name: str, uuid: UUID, target: Path) -> str:
    return (
        f"<pool type='dir'><name>{name}</name><uuid>{uuid}</uuid>"
        f"<target><path>{target}</path></target></pool>"
    )


def write(paths: Paths, name: str, uuid: UUID, target: Path, *, autostart: bool = False) -> None:
    target.mkdir(exist_ok=True)
    paths.autostart.mkdir(parents=True, exist_ok=True)
    paths.config_file(name).write_text(document(name, uuid, target))
    if autostart:
        paths.autostart_link(name).symlink_to(paths.config_file(name))


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths.below(tmp_path / "root")


def names(driver: Driver) -> set[str]:
    return {ref.name for ref in driver.pools()}


def test_new_definitions_appear(paths: Paths, tmp_path: Path) -> None:
    with open_driver(paths, autostart=True) as driver:
        write(paths, "plain", ONE, tmp_path / "a")
        write(paths, "auto", TWO, tmp_path / "b", autostart=True)
        driver.reload()
        plain, auto = driver.pool_lookup_by_uuid(ONE), driver.pool_lookup_by_uuid(TWO)
        assert not driver.pool_state(plain).active
        assert driver.pool_state(auto).active  # although autostart was done in this boot
        assert driver.pool_state(auto).autostart
        assert driver.pool_state(plain).persistent
        paths.autostart_link("auto").unlink()
        paths.config_file("plain").unlink()
        driver.reload()
        assert not driver.pool_state(auto).autostart
        assert names(driver) == {"plain", "auto"}  # what is gone is not forgotten


def test_changed_definitions_hold(paths: Paths, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    with open_driver(paths) as driver:
        running = driver.pool_define(parse_pool(document("running", ONE, old)))
        driver.pool_start(running).result()
        write(paths, "running", ONE, new)
        driver.reload()
        assert driver.pool_definition(running).target == str(old)
        assert driver.pool_definition(running, inactive=True).target == str(new)
        driver.pool_stop(running).result()
        assert driver.pool_definition(running).target == str(new)
        write(paths, "running", ONE, old)
        driver.reload()
        assert driver.pool_definition(running).target == str(old)


def test_a_transient_pool_with_a_new_definition_is_kept(paths: Paths, tmp_path: Path) -> None:
    with open_driver(paths) as driver:
        ref, job = driver.pool_create(parse_pool(document("p", ONE, tmp_path)))
        job.result()
        write(paths, "p", ONE, tmp_path)
        driver.reload()
        assert driver.pool_state(ref).persistent
        driver.pool_stop(ref).result()
        assert names(driver) == {"p"}


def test_what_cannot_be_used_is_told(paths: Paths, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with open_driver(paths) as driver:
        driver.pool_define(parse_pool(document("first", ONE, tmp_path / "x")))
        write(paths, "same-source", TWO, tmp_path / "x")
        write(paths, "same-uuid", UUID(int=3), tmp_path / "y")
        paths.config_file("broken").write_text("<pool")
        driver.reload()
        assert names(driver) == {"first", "same-uuid"}
        told = "\n".join(driver.problems())
        assert str(paths.config_file("same-source")) in told
        assert "Storage source conflict with pool: 'first'" in told
        assert str(paths.config_file("broken")) in told
        paths.config_file("broken").unlink()
        paths.config_file("same-source").unlink()
        driver.reload()
        assert driver.problems() == ()


def test_who_only_reads_does_not_reload(paths: Paths) -> None:
    with open_driver(paths, readonly=True) as driver, pytest.raises(InvalidArgument):
        driver.reload()
