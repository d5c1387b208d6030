"""What is mounted on a target, from made-up lists of mounts and from real ones."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from storaged import mounts
from storaged.backends._mountpoint import is_visible, mount_point, real_path
from storaged.backends._sourcedevice import encoded, find_device, is_mount_of
from storaged.mounts import Mount
from tests.conftest import LoopMount


def made(id: int, parent: int, point: str, source: str = "/dev/sdx", **more: str) -> Mount:
    return Mount(
        id, parent, more.get("device", "8:16"), more.get("root", "/"), point, ("rw",),
        more.get("type", "ext4"), source,
    )  # fmt: skip


ROOT = made(1, 1, "/")


@pytest.mark.parametrize(
    ("others", "visible"),
    [
        ((), True),
        ((made(9, 2, "/mnt/a"),), False),  # stacked upon it
        ((made(9, 1, "/mnt"),), False),  # its way is covered
        ((made(9, 1, "/mn"),), True),
        ((made(9, 2, "/mnt/a/b"),), True),  # below it
        ((made(9, 1, "/"),), False),  # another root upon the root
    ],
)
def test_what_one_sees(others: tuple[Mount, ...], visible: bool) -> None:
    ours = made(2, 1, "/mnt/a")
    assert is_visible(ours, (ROOT, ours, *others)) is visible


def test_stack_is_told_bottom_to_top(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = str(tmp_path)
    below, top = made(2, 1, path), made(3, 2, path, "other")
    monkeypatch.setattr(mounts, "mounts", lambda: (ROOT, below, top))
    found = mount_point(path)
    assert (found.path, found.top, found.below) == (path, top, (below,))
    monkeypatch.setattr(mounts, "mounts", lambda: (ROOT,))
    assert mount_point(path).top is None


def test_links_are_followed_but_mount_points_never_touched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    point = tmp_path / "point"
    point.mkdir()
    (tmp_path / "link").symlink_to("point")
    (tmp_path / "second").symlink_to(tmp_path / "link")
    (tmp_path / "dangling").symlink_to("nowhere/at/all")
    (tmp_path / "loop").symlink_to("loop")
    touched = []
    look = os.readlink

    def readlink(path: str, **options: int) -> str:
        touched.append(str(path))
        return look(path, **options)

    monkeypatch.setattr(os, "readlink", readlink)
    assert real_path(f"{tmp_path}/second", {str(point)}) == str(point)
    assert str(point) not in touched
    assert real_path(f"{tmp_path}/none/../point/", {str(point)}) == str(point)
    assert real_path(f"{tmp_path}/dangling", ()) == f"{tmp_path}/nowhere/at/all"
    assert real_path(f"{tmp_path}/loop", ()).endswith("loop")


def test_device_by_tag_without_udev_is_asked_of_blkid() -> None:
    assert find_device("/dev/sdb") == "/dev/sdb"
    assert find_device("/a=b") == "/a=b"
    assert find_device("UUID=no-such-uuid") is None


def test_labels_as_udev_writes_them() -> None:
    assert encoded("my disk/1") == "my\\x20disk\\x2f1"
    assert encoded("grün-1.2") == "grün-1.2"


@pytest.mark.kernel("loop")
def test_mount_of_an_image_under_all_its_names(loop_mount: LoopMount, tmp_path: Path) -> None:
    target = loop_mount("ext4")
    image = f"{target}.img"
    mount = mount_point(str(target)).top
    assert mount is not None
    assert is_mount_of(mount, image)
    assert is_mount_of(mount, mount.source)
    (tmp_path / "alias").symlink_to(mount.source)
    assert is_mount_of(mount, str(tmp_path / "alias"))
    assert not is_mount_of(mount, "/dev/null")
    assert not is_mount_of(mount, str(tmp_path / "none"))
    assert not is_mount_of(made(1, 1, "/x", device=mount.device, root="/sub"), mount.source)


@pytest.mark.kernel("loop", "btrfs")
def test_btrfs_is_known_though_its_device_number_is_made_up(loop_mount: LoopMount) -> None:
    mount = mount_point(str(loop_mount("btrfs"))).top
    assert mount is not None
    assert is_mount_of(mount, mount.source)
    uuid = subprocess.run(
        ["blkid", "-s", "UUID", "-o", "value", mount.source], capture_output=True, text=True
    ).stdout.strip()
    device = find_device(f"UUID={uuid}")
    assert device is not None
    assert is_mount_of(mount, device)
