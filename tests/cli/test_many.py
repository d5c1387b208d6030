"""Many at once, and beside many: what a CI runner does to storagectl."""

from __future__ import annotations

import os
import statistics
import subprocess

import pytest

from tests.cli.conftest import Ctl


@pytest.mark.slow
def test_32_creates_at_once_all_succeed(pool: Ctl):
    names = [f"job-{number}.qcow2" for number in range(32)]
    commands = [
        subprocess.Popen(
            pool.argv("vol", "create-as", "t", name, "1G", "--format", "qcow2"),
            env=pool.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for name in names
    ]
    for command in commands:
        _, said = command.communicate(timeout=120)
        assert (command.returncode, said) == (0, b"")
    assert [volume["name"] for volume in pool.json("vol", "list", "t")] == sorted(names)


def median(pool: Ctl, *words: str) -> float:
    """Return the median processor time of a whole process in seconds, after one to warm up.

    What else this machine does meanwhile counts little there.
    """
    times = []
    for _ in range(8):
        began = os.times()
        pool.out(*words)
        ended = os.times()
        user = ended.children_user - began.children_user
        times.append(user + ended.children_system - began.children_system)
    return statistics.median(times[1:])


@pytest.mark.slow
def test_one_volume_beside_100_000(pool: Ctl):
    for number in range(100_000):
        (pool.images / f"volume-{number}").touch()
    # 0.2 s is the goal on a quiet machine; a scan of all would take several seconds.
    assert median(pool, "vol", "path", "volume-500", "--pool", "t") < 0.6
    assert median(pool, "vol", "info", "t/volume-500") < 0.6


@pytest.mark.slow
def test_a_list_of_pools_is_quick(pool: Ctl):
    assert median(pool, "pool", "list") < 0.45  # 0.15 s on a quiet machine


def test_help_loads_no_engine(ctl: Ctl):
    script = (
        "import sys; from storaged.cli.main import main; code = main(['pool', 'list', '--help']);"
        "heavy = {'rich', 'lxml', 'ctypes', 'asyncio', 'pyudev', 'storaged.storage'};"
        "print(code, sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [*ctl.argv()[:1], "-c", script], env=ctl.environment(), capture_output=True, check=True
    )
    assert done.stderr == b"0 []\n"


def test_a_list_loads_no_rich(pool: Ctl):
    script = (
        "import sys; from storaged.cli.main import main;"
        f"code = main(['--root', {str(pool.root)!r}, 'pool', 'list']);"
        "heavy = {'rich', 'ctypes', 'asyncio', 'pyudev', 'qemu', 'logging.handlers'};"
        "print(code, sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [*pool.argv()[:1], "-c", script], env=pool.environment(), capture_output=True, check=True
    )
    assert done.stderr == b"0 []\n"
