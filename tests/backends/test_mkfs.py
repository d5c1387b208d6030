"""Making file systems by the real programs, on images: no kernel has to know them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from storaged.backends._mkfs import make_file_system
from storaged.errors import Cancelled, OperationFailed, OperationInvalid, PoolBuilt
from storaged.job import Job
from tests.kernel.programs import eventually, run


def new_job() -> Job[Any]:
    return Job("build", "vms")


@pytest.fixture
def image(tmp_path: Path) -> str:
    """An image file of 320 MiB that holds nothing."""
    path = tmp_path / "fs.img"
    with path.open("wb") as file:
        file.truncate(320 << 20)
    return str(path)


def told(image: str, name: str) -> str:
    """Return what blkid knows of an image; "" for nothing."""
    return run("blkid", "-p", "-s", name, "-o", "value", image, check=False).strip()


@pytest.mark.parametrize(
    ("format", "source", "label"),
    [
        ("ext4", "UUID=11111111-2222-4333-8444-555555555555", ""),
        ("ext2", "LABEL=sixteen letters!", "sixteen letters!"),
        ("xfs", "UUID=11111111-2222-4333-8444-555555555555", ""),
        ("xfs", "LABEL=my images", "my images"),
        ("vfat", "UUID=ABCD-1234", ""),
        ("vfat", "LABEL=IMAGES", "IMAGES"),
        ("xfs", "PARTUUID=01234567-01", ""),
    ],
)
def test_file_system_that_is_made_keeps_the_name_of_its_pool(
    image: str, format: str, source: str, label: str
) -> None:
    make_file_system(image, format, new_job(), overwrite=True, source=source)
    assert told(image, "TYPE") == format
    assert told(image, "LABEL") == label
    tag, _, value = source.partition("=")
    assert (told(image, "UUID") == value) is (tag == "UUID")


@pytest.mark.parametrize(
    ("format", "source"),
    [
        ("ext4", "LABEL=seventeen letters"),
        ("xfs", "LABEL=thirteen char"),
        ("vfat", "UUID=11111111-2222-4333-8444-555555555555"),
        ("ocfs2", "UUID=11111111-2222-4333-8444-555555555555"),
        ("ext4", "LABEL=-n"),
    ],
)
def test_name_that_a_file_system_cannot_have_is_refused(
    image: str, format: str, source: str
) -> None:
    """The pool would not find it any more."""
    with pytest.raises(OperationFailed, match="Failed to make filesystem"):
        make_file_system(image, format, new_job(), overwrite=True, source=source)
    assert told(image, "TYPE") == ""


def test_mkfs_that_cannot_be(image: str) -> None:
    text = "Failed to make filesystem of type '{}' on device"
    with pytest.raises(OperationFailed, match=text.format("auto")):
        make_file_system(image, "auto", new_job(), overwrite=True)
    with pytest.raises(OperationFailed, match=text.format("vmfs")) as failed:
        make_file_system(image, "vmfs", new_job(), overwrite=True)
    assert "mkfs.vmfs is not installed" in (failed.value.advice or "")
    with Path(image).open("wb") as file:
        file.truncate(1 << 16)
    with pytest.raises(OperationFailed, match=text.format("xfs")) as failed:
        make_file_system(image, "xfs", new_job(), overwrite=True)
    assert failed.value.advice


@dataclass(frozen=True)
class SlowMkfs:
    """A mkfs.ext4 that says when it has *begun*, and waits until it may *go* on."""

    directory: Path
    begun: Path
    go: Path

    @property
    def path(self) -> str:
        return f"{self.directory}:{os.environ['PATH']}"


@pytest.fixture
def slow_mkfs(tmp_path: Path) -> SlowMkfs:
    slow = SlowMkfs(tmp_path / "bin", tmp_path / "begun", tmp_path / "go")
    slow.directory.mkdir()
    program = slow.directory / "mkfs.ext4"
    program.write_text(
        f"#!/bin/sh\ntouch {slow.begun}\nwhile [ ! -e {slow.go} ]; do sleep 0.1; done\n"
        'PATH=/usr/sbin:/sbin:/usr/bin:/bin exec mkfs.ext4 "$@"\n'
    )
    program.chmod(0o755)
    return slow


def comes_to_its_end_alone(image: str, slow: SlowMkfs) -> None:
    """Look on while a mkfs that nobody waits for ends; until then it is the only one."""
    for overwrite in (False, True):
        with pytest.raises(OperationInvalid, match="is in use"):
            make_file_system(image, "ext4", new_job(), overwrite=overwrite)
    slow.go.touch()

    def whole() -> bool:
        with pytest.raises((PoolBuilt, OperationInvalid)) as refused:
            make_file_system(image, "ext4", new_job(), overwrite=False)
        return refused.type is PoolBuilt

    eventually(whole, what="mkfs to end")
    assert told(image, "TYPE") == "ext4"


def test_mkfs_that_hangs_can_be_cancelled(
    image: str, slow_mkfs: SlowMkfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storaged.tool._GRACE", 0.2)
    job = new_job()

    def cancel() -> None:
        eventually(slow_mkfs.begun.exists, what="mkfs")
        job.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    with monkeypatch.context() as patch:
        patch.setenv("PATH", slow_mkfs.path)
        with pytest.raises(Cancelled):
            make_file_system(image, "ext4", job, overwrite=True)
    thread.join()
    comes_to_its_end_alone(image, slow_mkfs)


def test_killed_in_the_middle_of_mkfs(image: str, slow_mkfs: SlowMkfs) -> None:
    """mkfs comes to its end without us; meanwhile nobody else formats; then it tells the truth."""
    program = (
        "from storaged.backends._mkfs import make_file_system\n"
        "from storaged.job import Job\n"
        f"make_file_system({image!r}, 'ext4', Job('build', 'vms'), overwrite=False)\n"
    )
    environ = {**os.environ, "PATH": slow_mkfs.path}
    child = subprocess.Popen([sys.executable, "-c", program], env=environ)
    eventually(slow_mkfs.begun.exists, what="mkfs")
    child.send_signal(signal.SIGKILL)
    child.wait()
    comes_to_its_end_alone(image, slow_mkfs)
