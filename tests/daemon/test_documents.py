"""What is said of the daemon holds: its guide, its manual page, the files that come with it."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

from storaged.daemon.config import Settings
from storaged.daemon.options import _parser
from storaged.server import polkit
from tests.daemon.running import PROJECT, environment, storaged_daemon

GUIDE = (PROJECT / "docs/daemon.md").read_text()
PAGE = PROJECT / "packaging/man/storaged.8"


def options() -> list[str]:
    return [
        name
        for action in _parser()._actions
        if action.help is not argparse.SUPPRESS
        for name in action.option_strings
    ]


def commands(title: str) -> list[str]:
    """Return the indented lines of a section of the guide."""
    section = GUIDE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    return [line.strip() for line in section.splitlines() if line.startswith("    ")]


def test_every_option_is_explained() -> None:
    page = PAGE.read_text().replace("\\-", "-")
    for name in options():
        assert f"`{name}" in GUIDE, name
        assert re.search(rf"[ .]{name}\b", page), name


def test_every_setting_is_explained() -> None:
    sample = (PROJECT / "packaging/virtstoraged.conf").read_text()
    for name in set(Settings.__slots__) - {"file", "lines"}:
        assert f"#{name} = " in sample


def test_the_files_that_are_installed_are_there() -> None:
    named = set(re.findall(r"packaging/[\w./*-]+", GUIDE))
    assert len(named) >= 6
    for name in named:
        assert list(PROJECT.glob(name)), name
    units = {path.name for path in (PROJECT / "packaging/systemd").iterdir()}
    mentioned = set(re.findall(r"(?<![\w-])storaged(?:-ro|-admin)?\.(?:service|socket)", GUIDE))
    assert mentioned == units


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a short name: libvirt's clients have room for 107 bytes of a path."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def test_the_first_steps_run(directory: Path) -> None:
    if os.geteuid() != 0 or not all(map(shutil.which, ("virsh", "virt-admin"))):
        pytest.skip("root, virsh and virt-admin are needed")
    lines = commands("Try it")
    assert lines[0].startswith("storaged ")
    assert lines[-1].startswith("kill ")
    shim = f'storaged() {{ "{sys.executable}" -m storaged.daemon "$@"; }}'
    script = "\n".join(
        [shim, lines[0], 'trap "kill $(cat try/run/virtstoraged.pid)" ERR', *lines[1:]]
    )
    done = subprocess.run(
        ["bash", "-euc", script],
        cwd=directory,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "<name>images</name>" in done.stdout


def test_commands_of_the_administration_run(directory: Path) -> None:
    if shutil.which("virt-admin") is None:
        pytest.skip("virt-admin is not installed")
    lines = [
        shlex.split(line)
        for title in ("The log", "Administration")
        for line in commands(title)
        if line.startswith("virt-admin ")
    ]
    assert len(lines) >= 11
    with storaged_daemon(directory) as daemon:
        for words in lines:
            if words[3] in ("client-info", "client-disconnect"):
                continue  # they name a client; test_admin has them
            words[2] = daemon.admin_uri
            words[-1] = words[-1].replace("/var/log/libvirt", str(directory))
            done = subprocess.run(words, capture_output=True, text=True, timeout=30)
            assert done.returncode == 0, (words, done.stderr)


def test_the_manual_page_is_sound() -> None:
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", str(PAGE)], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stderr == ""


def test_the_policy_has_the_actions_that_are_asked_for() -> None:
    tree = ET.parse(PROJECT / "packaging/polkit/org.libvirt.unix.policy")
    found = {
        action.get("id"): [one.text for one in action.iter() if one.tag.startswith("allow")]
        for action in tree.iter("action")
    }
    assert found == {
        polkit.MONITOR: ["yes"] * 3,
        polkit.MANAGE: ["auth_admin_keep"] * 3,
    }
