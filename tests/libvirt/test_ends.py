"""Connections whose daemon dies or falls silent, for libvirt-python and for ours."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.daemon.running import storaged_daemon
from tests.libvirt.conftest import printed
from tests.storaged.libvirtd import libvirtd

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).with_name("ends.py")

FATES = (
    "killed",
    "killed without a loop",
    "killed in a call",
    "killed in a transfer",
    "stopped",
    "stopped in a call",
    "stopped while nobody listens",
)


@contextmanager
def theirs(root: Path) -> Iterator[tuple[str, int]]:
    with libvirtd(root) as daemon:
        try:
            yield daemon.uri, daemon.pid
        finally:
            os.kill(daemon.pid, signal.SIGKILL)


@contextmanager
def ours(root: Path) -> Iterator[tuple[str, int]]:
    with storaged_daemon(root) as daemon:
        try:
            yield daemon.uri(), daemon.pid
        finally:
            daemon.kill()


def lines(python: str, module: str, daemon: str, fate: str, directory: Path) -> list[list[object]]:
    """Return what the program prints that is connected to a daemon of its own."""
    here = directory / "here"
    here.mkdir(parents=True)
    with {"theirs": theirs, "ours": ours}[daemon](directory / "d") as (uri, pid):
        words = (module, uri, uri, str(here), str(pid), fate)
        found = printed(python, PROGRAM, *words, seconds=60)
    # Without a loop libvirt-python never lets go of a connection whose callback it called.
    return found[:-1] if fate == "killed without a loop" else found


@pytest.mark.parametrize("fate", FATES)
def test_all_ways(binding: str, fate: str, tmp_path: Path) -> None:
    reference = lines(binding, "libvirt", "theirs", fate, tmp_path / "0")
    found = {str(line[0]): line[1] for line in reference}
    told = {"killed": 1, "stopped": 2}[fate.split()[0]]
    wanted = [] if fate.endswith("listens") else [["list", True, told, "o"]]
    assert found["told"] == ["list", *wanted]
    assert found.get("in time", True) is True
    for number, (python, module, daemon) in enumerate(
        (
            (sys.executable, "storaged.libvirt", "theirs"),
            (sys.executable, "storaged.libvirt", "ours"),
            (binding, "libvirt", "ours"),
        )
    ):
        assert lines(python, module, daemon, fate, tmp_path / f"{number + 1}") == reference
