"""Who uses a device or an image: nothing is made on what anybody has for himself."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from storaged.backends._inuse import claimed, loop_files, loops_of, require_unused, users
from storaged.backends._mkfs import make_file_system
from storaged.backends._openfiles import holders
from storaged.backends._signatures import zero_ends
from storaged.errors import OperationInvalid, SystemFailure
from storaged.job import Job
from tests.conftest import LoopMount
from tests.kernel import devices
from tests.kernel.fixtures import LoopDevice

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> str:
    """An image of 16 MiB that holds nothing."""
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.truncate(16 * MIB)
    return str(path)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has a device for a moment only is not waited for."""
    for module in ("_inuse", "_blockholder"):
        monkeypatch.setattr(f"storaged.backends.{module}.MOMENT", 0.001)


@contextmanager
def other_process(code: str) -> Iterator[None]:
    """Have another process do something, and keep what it has opened meanwhile."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"import fcntl, os; {code}; print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline()
        yield
        process.communicate(b"\n", timeout=30)


def test_what_is_no_storage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OperationInvalid, match="neither a block device nor a regular file"):
        require_unused(str(tmp_path))
    with pytest.raises(SystemFailure, match="cannot open device"):
        require_unused(str(tmp_path / "none"))


@pytest.mark.kernel("loop")
def test_mounted_device_and_its_image(loop_mount: LoopMount) -> None:
    target = loop_mount("ext4")
    image = str(target) + ".img"
    (device,) = loops_of(image)
    assert users(Path(device).stat().st_rdev) == (f"mounted on '{target}'",)
    for path, why in ((device, "mounted on"), (image, "attached to /dev/loop")):
        with pytest.raises(OperationInvalid, match=f"is in use: {why}"):
            require_unused(path)
        with pytest.raises(OperationInvalid, match="is in use"):
            zero_ends(path)


@pytest.mark.kernel("loop")
def test_attached_image_under_another_name(image: str, tmp_path: Path) -> None:
    with devices.attached(Path(image)) as device:
        other = tmp_path / "other"
        other.hardlink_to(image)
        assert loops_of(str(other)) == (device,)
        with pytest.raises(OperationInvalid, match=f"attached to {device}"):
            require_unused(str(other))
        Path(image).rename(tmp_path / "moved")
        (tmp_path / "image").write_bytes(bytes(4096))
        assert loops_of(image) == ()


@pytest.mark.kernel("loop")
def test_image_whose_name_is_no_text(tmp_path: Path) -> None:
    """One of them anywhere on the host: nobody is kept from his work."""
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\x1b[2J\n.img")
    with open(odd, "wb") as file:  # noqa: PTH123
        file.truncate(MIB)
    with devices.attached(Path(odd)) as device:
        assert loops_of(odd) == (device,)
        assert (Path(device).name, odd) in set(loop_files())
        require_unused(__file__)
        (told,) = [line for line in holders(str(tmp_path)) if device in line]
        assert r"\xff?[2J?.img" in told


def test_process_whose_name_is_no_text(tmp_path: Path) -> None:
    """The kernel cuts a name in the middle of a character."""
    with (
        (tmp_path / "held").open("w"),
        other_process(
            f"open('/proc/self/comm', 'wb').write(b'a\\xc3' * 8); "
            f"f = open({str(tmp_path / 'busy')!r}, 'w')"
        ),
    ):
        told = holders(str(tmp_path))
        assert any("busy" in line for line in told)
        assert any(f"process {os.getpid()} " in line for line in told)
        # what we, and our children, have there is no reason that others could do away with
        assert holders(str(tmp_path), others=True) == ()


def test_image_that_a_program_writes_to(image: str) -> None:
    with (
        other_process(f"os.open({image!r}, os.O_RDWR)"),
        pytest.raises(OperationInvalid, match="open by python"),
    ):
        require_unused(image)
    require_unused(image)


@pytest.mark.usefixtures("impatient")
@pytest.mark.kernel("loop")
def test_device_that_a_program_writes_to(loop_device: LoopDevice) -> None:
    """QEMU has no device for itself: O_EXCL alone does not see it."""
    device = loop_device(16)
    with (
        other_process(f"os.open({device!r}, os.O_RDWR)"),
        pytest.raises(OperationInvalid, match="open by python"),
    ):
        make_file_system(device, "ext4", Job("build", "p"), overwrite=True)
    with other_process(f"os.open({device!r}, os.O_RDONLY)"):
        require_unused(device)


@pytest.mark.usefixtures("impatient")
@pytest.mark.kernel("loop")
def test_device_and_image_of_a_storage_daemon(
    loop_device: LoopDevice, image: str, storage_daemon: Callable[..., int]
) -> None:
    device = loop_device(16)
    for path in (Path(device), Path(image)):
        driver = "host_device" if path.is_block_device() else "file"
        pid = storage_daemon(path, format="raw", driver=driver)
        for overwrite in (False, True):
            with pytest.raises(OperationInvalid, match=rf"open by .*pid {pid}"):
                make_file_system(str(path), "ext4", Job("build", "p"), overwrite=overwrite)
        assert not any(path.read_bytes())


def test_image_that_qemu_of_another_host_has(image: str) -> None:
    """Only its locks tell."""
    lock = "fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, {})"
    locks = "; ".join(lock.format(byte) for byte in (100, 101, 201))
    with (
        other_process(f"fd = os.open({image!r}, os.O_RDONLY); {locks}"),
        pytest.raises(OperationInvalid, match="locked by QEMU, perhaps on another host"),
    ):
        require_unused(image)


@pytest.mark.usefixtures("impatient")
def test_what_is_claimed_is_nobody_elses(image: str) -> None:
    with claimed(image) as fd:
        with pytest.raises(OperationInvalid, match="locked by a program"), claimed(image):
            pass
        child = subprocess.Popen(["sleep", "60"], pass_fds=[fd])
    try:
        with pytest.raises(OperationInvalid, match=r"locked by a program"), claimed(image):
            pass
    finally:
        child.kill()
        child.wait()
    with claimed(image):
        pass
