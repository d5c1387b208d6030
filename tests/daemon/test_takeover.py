"""A host's pools go from libvirt's daemon to ours and back, as the guide says."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.daemon.running import storaged_daemon
from tests.storaged.libvirtd import libvirtd


def virsh(uri: str, *words: str) -> str:
    done = subprocess.run(
        ["virsh", "-q", "-c", uri, *words], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def pools(uri: str) -> dict[str, str]:
    """Return the states of all pools, by name.

    Autostart is left out: the links lead to where each daemon sees the files, and that differs
    here (`tests.storaged.test_state_libvirt` has them).
    """
    lines = [line.split() for line in virsh(uri, "pool-list", "--all").splitlines() if line]
    return {name: state for name, state, _ in lines}


def without_sizes(xml: str) -> str:
    """Return a document without the figures of a file system that others use as well."""
    return re.sub(r"<(capacity|allocation|available) .*\n", "", xml)


@pytest.mark.slow
def test_there_and_back(tmp_path: Path) -> None:
    with libvirtd(tmp_path) as theirs:
        for name in ("kept", "stopped"):
            directory = tmp_path / name
            directory.mkdir()
            theirs.virsh("pool-define-as", name, "dir", "--target", str(directory))
        theirs.virsh("pool-start", "kept")
        theirs.virsh("vol-create-as", "kept", "made-by-libvirt", "1M", "--format", "qcow2")
        before = without_sizes(theirs.virsh("pool-dumpxml", "--inactive", "kept"))
    with storaged_daemon(tmp_path) as ours:
        uri = ours.uri()
        assert pools(uri) == {"kept": "active", "stopped": "inactive"}
        assert without_sizes(virsh(uri, "pool-dumpxml", "--inactive", "kept")) == before
        assert "made-by-libvirt" in virsh(uri, "vol-list", "kept")
        virsh(uri, "vol-create-as", "kept", "made-by-us", "1M", "--format", "qcow2")
        new = tmp_path / "new"
        new.mkdir()
        virsh(uri, "pool-define-as", "new", "dir", "--target", str(new))
        virsh(uri, "pool-start", "new")
    with libvirtd(tmp_path) as theirs:
        uri = f"storage:///system?socket={theirs.root}/run/libvirt/libvirt-sock"
        found = pools(uri)
        assert (found["kept"], found["new"]) == ("active", "active")
        assert "made-by-us" in theirs.virsh("vol-list", "kept")
        assert theirs.virsh("pool-uuid", "kept").strip() in before
