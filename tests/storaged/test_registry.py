"""Pool types by name: built in, given by the caller, brought by other distributions."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storaged import registry as module
from storaged.backend import Backend, Descriptor
from storaged.backends.dir import Dir
from storaged.errors import InternalError
from storaged.registry import Registry
from tests.doubles import Shelf, refused
from tests.storaged.conftest import Engine

Install = Callable[..., None]

PLUGIN = """
from storaged.backends.dir import Dir
from storaged.backend import Descriptor

class Attic(Dir):
    descriptor = Descriptor("attic", volume_formats=("raw",))
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """A function that installs a distribution with an entry point, as pip would."""
    site = tmp_path / "site"

    def put(kind: str, target: str, code: str) -> None:
        module_name = target.partition(":")[0]
        info = site / f"storaged_{kind}-1.0.dist-info"
        info.mkdir(parents=True)
        (site / f"{module_name}.py").write_text(code)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: storaged-{kind}\nVersion: 1\n"
        )
        (info / "entry_points.txt").write_text(f"[storaged.backends]\n{kind} = {target}\n")
        monkeypatch.syspath_prepend(str(site))
        monkeypatch.delitem(sys.modules, module_name, raising=False)

    return put


def test_the_built_in_type_is_found() -> None:
    assert Registry().find("dir") is Dir


def test_libvirts_types_without_a_backend() -> None:
    with refused(1, "internal error: missing backend for pool type 10 (sheepdog)") as caught:
        Registry().find("sheepdog")
    assert caught.value.advice == "No installed package brings this pool type."


def test_a_type_that_the_caller_brings() -> None:
    registry = Registry({"shelf": Shelf})
    assert registry.find("shelf") is Shelf
    assert registry.plugin_types() == {"shelf"}
    assert registry.available()[-1] == "shelf"


def test_a_built_in_type_cannot_be_replaced() -> None:
    with refused(1):
        Registry({"dir": Dir})


class _Abstract(Backend):
    descriptor = Descriptor("x")


class _Old(Shelf):
    descriptor = Descriptor("x")
    api = 0


class _Undescribed(Backend):
    def refresh(self, known: Any, job: Any) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (int, "is no subclass"), (Dir.look, "is no subclass"), (_Abstract, "lacks refresh"),
        (_Old, "made for interface 0"), (Shelf, "does not describe"),
        (_Undescribed, "does not describe"),
    ],
)  # fmt: skip
def test_what_cannot_serve_is_refused_with_the_reason(found: Any, why: str) -> None:
    with pytest.raises(InternalError) as caught:
        Registry({"x": found})
    assert why in str(caught.value.advice)


def test_an_installed_plug_in_serves_a_pool(engine: Engine, install: Install) -> None:
    install("attic", "attic_plugin:Attic", PLUGIN)
    storage = engine.open(backends=None)
    target = engine.directory / "attic"
    pool = storage.define_pool(
        f"<pool type='attic'><name>a</name><target><path>{target}</path></target></pool>"
    )
    pool.start(build=True)
    assert pool.create("v", 4096).path == f"{target}/v"
    assert "<pool type='attic'>" in pool.xml()
    storage.close()
    again = engine.open(backends=None)
    assert again.pool("a").active
    assert again.pool("a").names() == ["v"]


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("raise RuntimeError('no luck')", "no luck"),
        ("import not_there_at_all", "not_there_at_all"),
        ("Broken = 3", "is no subclass"),
    ],
)
def test_a_broken_plug_in_is_no_more_than_a_missing_type(
    install: Install, code: str, why: str
) -> None:
    install("broken", "broken_plugin:Broken", code)
    registry = Registry()
    with pytest.raises(InternalError) as caught:
        registry.find("broken")
    assert why in str(caught.value.advice)
    assert "storaged-broken" in str(caught.value.advice)
    assert "dir" in registry.available()


def test_entry_points_are_read_only_for_foreign_types(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(**_: object) -> None:
        raise AssertionError("entry points were read")

    monkeypatch.setattr("importlib.metadata.entry_points", read)
    Registry().find("dir")


def test_a_built_in_type_whose_needs_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUILTIN", {"rbd": "rados_that_is_not_there:Rbd"})
    registry = Registry()
    with refused(1, "internal error: missing backend for pool type 9 (rbd)") as caught:
        registry.find("rbd")
    assert "rados_that_is_not_there" in str(caught.value.advice)
    assert "rbd" not in registry.available()


class _Explosive(Shelf):
    descriptor = Descriptor("explosive")

    def __init__(self, *_: Any) -> None:
        raise ValueError("cannot even be made")


def test_a_backend_that_cannot_be_made_harms_only_its_own_pool(engine: Engine) -> None:
    storage = engine.open(backends={"explosive": _Explosive, "double": engine.backend})
    bad = storage.define_pool(engine.definition("bad", "explosive"))
    assert "cannot even be made" in bad.info().problems[0]
    with refused(1) as caught:
        bad.start()
    assert "cannot even be made" in str(caught.value.advice)
    good = engine.pool("good")
    storage.close()
    again = engine.open(backends={"explosive": _Explosive, "double": engine.backend})
    assert [pool.active for pool in again.pools()] == [False, True]
    assert again.pool(good.name).names() == []
