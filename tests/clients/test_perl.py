"""Sys::Virt: a Perl program through every method for storage, on both daemons."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.clients.daemons import Daemons, Served
from tests.clients.differences import compare

SCRIPT = Path(__file__).with_name("storage.pl")


def answers(served: Served) -> dict[str, str]:
    """Return what each of the script's calls answered."""
    command = ["perl", str(SCRIPT), served.uri, str(served.directory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"on {served.name}: {done.stderr}"
    paragraphs = done.stdout.removesuffix("\n\n").split("\n\n")
    return {
        name: served.outward(text.replace("\\n", "\n"))
        for name, _, text in (each.partition("\n") for each in paragraphs)
    }


def test_every_method(daemons: Daemons) -> None:
    if subprocess.run(["perl", "-MSys::Virt", "-e", "1"], capture_output=True).returncode:
        pytest.skip("Perl's binding is not installed (Debian: libsys-virt-perl)")
    theirs, ours = (answers(served) for served in daemons)
    compare("perl", theirs, ours)
    assert len(ours) > 80
    assert ours["volumes"] == '["clone","qcow2","raw"]'
