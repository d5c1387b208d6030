"""Where an engine keeps its files."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from uuid import UUID

import pytest

from storaged.errors import InvalidArgument
from storaged.paths import Paths, printable

DIRECTORIES = ("config", "autostart", "state", "settings", "runtime", "sockets")


def shown(paths: Paths) -> dict[str, str]:
    return {name: str(getattr(paths, name)) for name in DIRECTORIES}


def test_system() -> None:
    paths = Paths.system()
    assert shown(paths) == {
        "config": "/etc/libvirt/storage",
        "autostart": "/etc/libvirt/storage/autostart",
        "state": "/run/libvirt/storage",
        "settings": "/etc/storaged",
        "runtime": "/run/storaged",
        "sockets": "/run/libvirt",
    }
    assert paths.uri == "storage:///system"
    assert not paths.is_session
    assert paths.public_mode == 0o755


def test_below_is_the_system_moved(tmp_path: Path) -> None:
    paths = Paths.below(tmp_path)
    system = shown(Paths.system())
    assert shown(paths) == {name: f"{tmp_path}{path}" for name, path in system.items()}
    assert paths.uri == f"storage:///system?root={tmp_path}"
    assert not paths.is_session


def test_below_is_absolute_and_normal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Paths.below("x/../lab/.") == Paths.below(tmp_path / "lab")
    assert Paths.below("/").config == Paths.system().config


def test_the_uri_quotes_the_root() -> None:
    assert Paths.below("/a b/ü?#&").uri == "storage:///system?root=/a%20b/%C3%BC%3F%23%26"
    assert Paths.below(os.fsdecode(b"/\xff")).uri == "storage:///system?root=/%FF"


def test_session_below_a_root(tmp_path: Path) -> None:
    paths = Paths.below(tmp_path, session=True)
    assert shown(paths) == shown(Paths.below(tmp_path))
    assert paths.is_session
    assert paths.uri == f"storage:///session?root={tmp_path}"
    assert paths.public_mode == 0o700


def test_session_by_xdg() -> None:
    paths = Paths.session(
        {"HOME": "/h", "XDG_CONFIG_HOME": "/c", "XDG_RUNTIME_DIR": "/r", "XDG_CACHE_HOME": "/k"}
    )
    assert shown(paths) == {
        "config": "/c/libvirt/storage",
        "autostart": "/c/libvirt/storage/autostart",
        "state": "/r/libvirt/storage/run",
        "settings": "/c/storaged",
        "runtime": "/r/storaged",
        "sockets": "/r/libvirt",
    }
    assert paths.uri == "storage:///session"
    assert paths.is_session


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"XDG_CONFIG_HOME": "", "XDG_RUNTIME_DIR": "", "XDG_CACHE_HOME": ""},
        {"XDG_CONFIG_HOME": "c", "XDG_RUNTIME_DIR": "./r", "XDG_CACHE_HOME": "k"},
    ],
    ids=["unset", "empty", "relative"],
)
def test_session_without_xdg(environ: dict[str, str]) -> None:
    paths = Paths.session({"HOME": "/h", **environ})
    assert paths.config == Path("/h/.config/libvirt/storage")
    assert paths.state == Path("/h/.cache/libvirt/storage/run")
    assert paths.sockets == Path("/h/.cache/libvirt")
    assert paths.runtime == Path("/h/.cache/storaged")


def test_session_without_runtime_directory_takes_the_cache() -> None:
    paths = Paths.session({"HOME": "/h", "XDG_CACHE_HOME": "/k"})
    assert paths.state == Path("/k/libvirt/storage/run")


def test_session_without_home_asks_the_user_database() -> None:
    import pwd

    home = pwd.getpwuid(os.getuid()).pw_dir
    assert Paths.session({}).config == Path(home) / ".config/libvirt/storage"


def test_files(tmp_path: Path) -> None:
    paths = Paths.below(tmp_path)
    uuid = UUID("d79c1e8c-0b4a-4b56-b1f4-0a3b1a3b1a3b")
    assert paths.config_file("p").relative_to(tmp_path) == Path("etc/libvirt/storage/p.xml")
    assert paths.autostart_link("p") == paths.autostart / "p.xml"
    assert paths.live_file("..") == paths.state / "...xml"
    assert paths.policy_file("a b").relative_to(tmp_path) == Path("etc/storaged/pools/a b.toml")
    assert paths.anchor_file(uuid).relative_to(tmp_path) == Path(
        f"run/storaged/anchors/{uuid}.json"
    )
    assert paths.lock_file == paths.state / "driver.pid"


@pytest.mark.parametrize("name", ["", "/", "a/b", "../x", "a\0"])
def test_no_name_leads_out(name: str) -> None:
    paths = Paths.system()
    for place in (paths.config_file, paths.autostart_link, paths.live_file, paths.policy_file):
        with pytest.raises(InvalidArgument, match="cannot be the name of a pool"):
            place(name)


def test_paths_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Paths.system().uri = "x"  # type: ignore[misc]


def test_printable_is_always_text() -> None:
    assert printable("/ü") == "/ü"
    assert printable(os.fsdecode(b"/a\xff")).encode() == rb"/a\xff"
