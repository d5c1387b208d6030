"""What all tests share: a scrubbed environment, file systems on loop devices, a check for leaks."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from storaged.backend import Host
from tests.kernel import features
from tests.kernel.programs import SYSTEM_PATH, in_guest

pytest_plugins = ["tests.kernel.fixtures", "tests.ceph.fixtures"]

#: What makes each file system, and the smallest image (in MiB) that it accepts.
_MKFS = {
    "xfs": (("mkfs.xfs", "-q", "-m", "reflink=1"), 300),
    "btrfs": (("mkfs.btrfs", "-q"), 128),
    "ext4": (("mkfs.ext4", "-q"), 32),
}

LoopMount = Callable[..., Path]

#: Seconds to wait for what the kernel does in the end.
_PATIENCE = 10


def pytest_itemcollected(item: pytest.Item) -> None:
    """Refuse misspelt features."""
    features.check_names(item)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this machine's kernel cannot do."""
    features.check(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let no kernel-bound test be skipped in the guest, whatever its reason: all is there."""
    report = yield
    skipped = report.skipped and not hasattr(report, "wasxfail")
    if skipped and in_guest() and item.get_closest_marker("kernel") is not None:
        report.outcome = "failed"
        report.longrepr = f"skipped in the guest: {report.longrepr}"
    return report


@pytest.fixture(scope="session", autouse=True)
def _scrubbed_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give the tests a home of their own and one language, whatever the machine's settings."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in tuple(os.environ):
            if name.startswith(("XDG_", "LC_", "STORAGED_", "LIBVIRT_")):
                patch.delenv(name)
        for name in ("LANG", "LANGUAGE", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TZ"):
            patch.delenv(name, raising=False)
        patch.setenv("HOME", str(home))
        patch.setenv("LC_ALL", "C.UTF-8")
        patch.setenv("PATH", SYSTEM_PATH)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_leaks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail at the end if a mount or a loop device on one of our files is left."""
    base = tmp_path_factory.getbasetemp().resolve()
    yield

    def left() -> list[str]:
        return [line for line in (*_mounts(), *_loop_files()) if _below(line, base)]

    # The kernel lets go of a loop device a moment after the last who held it open.
    deadline = time.monotonic() + _PATIENCE
    while left() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left(), f"left behind: {left()}"


@pytest.fixture
def host() -> Host:
    """An engine's identity for tests that drive a backend themselves."""
    return Host(id="testhost")


@pytest.fixture
def loop_mount(tmp_path: Path) -> Iterator[LoopMount]:
    """A function: ``loop_mount("xfs", mebibytes=512)`` mounts a fresh file system somewhere.

    Skips the test where it cannot be had: without root, loop devices, the tool or the kernel's
    driver. All is unmounted at the end.
    """
    mounted: list[Path] = []

    def mount(kind: str, *, mebibytes: int = 512) -> Path:
        command, least = _MKFS[kind]
        tool = shutil.which(command[0], path=SYSTEM_PATH)
        if os.geteuid() != 0:
            pytest.skip("mounting a file system needs root")
        if not Path("/dev/loop-control").exists():
            pytest.skip("this machine has no loop devices")
        if tool is None:
            pytest.skip(f"{command[0]} is not installed (make setup)")
        image = tmp_path / f"{kind}-{len(mounted)}.img"
        target = tmp_path / f"{kind}-{len(mounted)}"
        target.mkdir()
        with image.open("wb") as file:
            file.truncate(max(mebibytes, least) << 20)
        subprocess.run([tool, *command[1:], image], check=True, capture_output=True)
        done = subprocess.run(
            ["mount", "-t", kind, "-o", "loop", image, target], capture_output=True, text=True
        )
        if done.returncode != 0:
            pytest.skip(f"this machine cannot mount {kind}: {done.stderr.strip()}")
        mounted.append(target)
        return target

    yield mount
    for target in reversed(mounted):
        done = subprocess.run(["umount", target], capture_output=True, text=True)
        if done.returncode != 0:
            subprocess.run(["umount", "--lazy", target], check=False)
            pytest.fail(f"{target} was still in use: {done.stderr.strip()}")


def _mounts() -> list[str]:
    return [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]


def _loop_files() -> list[str]:
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            found.append(path.read_text().strip())
        except OSError:
            continue  # it went away while we looked
    return found


def _below(path: str, base: Path) -> bool:
    return Path(path).is_relative_to(base)
