"""Whole files: replaced in one step or not at all."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from storaged import atomic
from storaged.errors import SystemFailure

ROOT = os.geteuid() == 0


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    if not ROOT:
        pytest.skip("mounting a tmpfs needs root")
    target = tmp_path / "tiny"
    target.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this machine cannot mount a tmpfs: {done.stderr.strip()}")
    yield target
    subprocess.run(["umount", target], check=True)


@pytest.mark.parametrize("durable", [True, False])
def test_write(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "file"
    atomic.write_file(path, b"one", durable=durable)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    atomic.write_file(path, b"two", mode=0o644, durable=durable)
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert names(tmp_path) == ["file"]


def test_the_umask_does_not_change_the_mode(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        atomic.write_file(tmp_path / "file", b"", mode=0o644, durable=False)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


def test_durable_means_synced_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First the data, then the name, then the directory; without it nothing is synced."""
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(fd: int) -> None:
        events.append("sync directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "sync file")
        fsync(fd)

    def watched_replace(old: Path, new: Path) -> None:
        events.append("rename")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    atomic.write_file(tmp_path / "file", b"x", durable=True)
    assert events == ["sync file", "rename", "sync directory"]
    events.clear()
    atomic.write_file(tmp_path / "file", b"y", durable=False)
    assert events == ["rename"]
    atomic.remove_file(tmp_path / "file", durable=True)
    assert events == ["rename", "sync directory"]


def test_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("kept")
    (tmp_path / "link").symlink_to("target")
    atomic.write_file(tmp_path / "link", b"new", durable=False)
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "kept"


def test_a_full_disk_leaves_the_old_file(tiny: Path) -> None:
    path = tiny / "file"
    atomic.write_file(path, b"old", durable=True)
    with pytest.raises(SystemFailure) as caught:
        atomic.write_file(path, bytes(1 << 20), durable=True)
    assert caught.value.errno == errno.ENOSPC
    assert str(path) in str(caught.value)
    assert path.read_bytes() == b"old"
    assert names(tiny) == ["file"]
    atomic.write_file(path, bytes(20_000), durable=True)


def test_no_directory_to_write_to(tmp_path: Path) -> None:
    with pytest.raises(SystemFailure, match="No such file or directory") as caught:
        atomic.write_file(tmp_path / "gone" / "file", b"", durable=True)
    assert str(tmp_path / "gone" / "file") in str(caught.value)


def test_a_directory_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(SystemFailure, match="Is a directory"):
        atomic.write_file(tmp_path / "file", b"", durable=True)
    with pytest.raises(SystemFailure, match="cannot unlink"):
        atomic.remove_file(tmp_path / "file", durable=True)
    assert names(tmp_path) == ["file"]


def test_a_read_only_file_system(tiny: Path) -> None:
    (tiny / "file").write_text("old")
    subprocess.run(["mount", "-o", "remount,ro", tiny], check=True)
    for call in (
        lambda: atomic.write_file(tiny / "file", b"", durable=True),
        lambda: atomic.remove_file(tiny / "file", durable=True),
        lambda: atomic.make_directory(tiny / "a" / "b"),
    ):
        with pytest.raises(SystemFailure) as caught:
            call()
        assert caught.value.errno == errno.EROFS
        assert str(tiny) in str(caught.value)
    assert (tiny / "file").read_text() == "old"


def test_a_read_only_directory(ordinary_directory: Path) -> None:
    (ordinary_directory / "file").write_text("old")
    ordinary_directory.chmod(0o500)
    for call in (
        lambda: atomic.write_file(ordinary_directory / "file", b"", durable=True),
        lambda: atomic.remove_file(ordinary_directory / "file", durable=True),
        lambda: atomic.make_directory(ordinary_directory / "a"),
    ):
        with pytest.raises(SystemFailure, match="Permission denied"):
            call()
    assert (ordinary_directory / "file").read_text() == "old"


def test_failure_while_renaming_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(old: Path, new: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        atomic.write_file(tmp_path / "file", b"", durable=False)
    assert names(tmp_path) == []


def test_readers_see_whole_files_only(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic.write_file(path, b"0" * 5000, durable=False)
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            atomic.write_file(path, str(number % 10).encode() * 5000, durable=False)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = {atomic.read_file(path, 5000) for _ in range(300)}
    finally:
        stop.set()
        writer.join()
    assert None not in seen
    assert all(data and len(data) == 5000 and len(set(data)) == 1 for data in seen)


def test_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert atomic.read_file(path, 10) is None
    path.write_bytes(b"0123456789")
    assert atomic.read_file(path, 10) == b"0123456789"
    with pytest.raises(SystemFailure, match="beyond 9 bytes") as caught:
        atomic.read_file(path, 9)
    assert caught.value.errno == errno.EFBIG


def test_read_takes_regular_files_only(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "link").symlink_to("/etc/hostname")
    for name in ("fifo", "directory"):
        with pytest.raises(SystemFailure, match=f"{name}' is not a regular file"):
            atomic.read_file(tmp_path / name, 10)
    for name in ("loop", "link"):
        with pytest.raises(SystemFailure, match=f"{name}' is a symbolic link"):
            atomic.read_file(tmp_path / name, 10)
    with pytest.raises(SystemFailure, match="'/dev/zero' is not a regular file"):
        atomic.read_file(Path("/dev/zero"), 10)
    with pytest.raises(SystemFailure, match="Not a directory"):
        atomic.read_file(Path("/dev/null/x"), 10)


def test_read_is_not_fooled_by_a_late_swap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A FIFO that takes a file's place after the first look is neither waited for nor read."""
    path = tmp_path / "file"
    path.write_text("x")
    regular = path.lstat()
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr(Path, "lstat", lambda self: regular)
    with pytest.raises(SystemFailure, match="is not a regular file"):
        atomic.read_file(path, 10)


def test_remove(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("nowhere")
    assert atomic.remove_file(tmp_path / "file", durable=True)
    assert atomic.remove_file(tmp_path / "link", durable=False)
    assert not atomic.remove_file(tmp_path / "file", durable=True)
    assert not atomic.remove_file(tmp_path / "gone" / "file", durable=True)


def test_make_directory(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        atomic.make_directory(tmp_path / "a/b/c", mode=0o711, durable=True)
    finally:
        os.umask(before)
    for part in ("a", "a/b", "a/b/c"):
        assert stat.S_IMODE((tmp_path / part).stat().st_mode) == 0o711
    atomic.make_directory(tmp_path / "a/b/c", mode=0o700)
    assert stat.S_IMODE((tmp_path / "a/b/c").stat().st_mode) == 0o711


def test_make_directory_through_what_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("file", "file/below", "dangling"):
        with pytest.raises(SystemFailure, match=f"cannot create directory '{tmp_path / name}'"):
            atomic.make_directory(tmp_path / name)


def test_two_make_the_same_directory(tmp_path: Path) -> None:
    barrier = threading.Barrier(8)
    failures: list[BaseException] = []

    def make() -> None:
        barrier.wait()
        try:
            atomic.make_directory(tmp_path / "a/b/c/d")
        except SystemFailure as err:
            failures.append(err)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert (tmp_path / "a/b/c/d").is_dir()


def test_sweep_takes_only_our_beginnings(tmp_path: Path) -> None:
    kept = ["a.xml", ".storaged-x.xml", ".hidden.tmp", "driver.pid", ".storaged-1-d.tmp"]
    for name in [*kept[:-1], ".storaged-1-ab.tmp"]:
        (tmp_path / name).touch()
    (tmp_path / kept[-1]).mkdir()
    atomic.sweep(tmp_path)
    assert names(tmp_path) == sorted(kept)
    atomic.sweep(tmp_path / "gone")


def test_beginnings_are_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an engine leaves that is killed between write and rename is what `sweep` removes."""

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    monkeypatch.setattr(os, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        atomic.write_file(tmp_path / "p.xml", b"x", durable=False)
    monkeypatch.undo()
    (left,) = names(tmp_path)
    assert not left.endswith(".xml")
    atomic.sweep(tmp_path)
    assert names(tmp_path) == []
