"""Secrets: libvirt-python and ours, with libvirt's daemon, ours, an engine in this process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.running import storaged_daemon
from tests.libvirt.conftest import printed
from tests.storaged.libvirtd import libvirtd

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).with_name("secretscript.py")


def lines(python: str, module: str, uri: str, readonly: str, directory: Path) -> list[list[object]]:
    """Return what the program prints."""
    return printed(python, PROGRAM, module, uri, readonly, str(directory))


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    with libvirtd(tmp_path_factory.mktemp("libvirtd"), secrets=True) as daemon:
        uri = f"secret:///system?socket={daemon.socket}"
        yield uri, f"{uri}-ro"


@pytest.fixture(scope="module")
def reference(
    binding: str, peer: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> list[list[object]]:
    found = lines(binding, "libvirt", *peer, tmp_path_factory.mktemp("reference"))
    assert len(found) > 120
    return found


def secret_uri(uri: str) -> str:
    return uri.replace("storage:", "secret:")


def test_ours_with_libvirts_daemon(
    reference: list[list[object]], peer: tuple[str, str], tmp_path: Path
) -> None:
    assert lines(sys.executable, "storaged.libvirt", *peer, tmp_path) == reference


@pytest.mark.parametrize("module", ["libvirt", "storaged.libvirt"])
def test_our_daemon(
    reference: list[list[object]], binding: str, module: str, tmp_path: Path, short_path: Path
) -> None:
    python = binding if module == "libvirt" else sys.executable
    with storaged_daemon(short_path) as daemon:
        uris = secret_uri(daemon.uri()), secret_uri(daemon.uri(readonly=True))
        assert lines(python, module, *uris, tmp_path) == reference


def test_ours_with_an_engine(reference: list[list[object]], tmp_path: Path) -> None:
    uri = f"storage:///embed?root={tmp_path}/engine"
    found = lines(sys.executable, "storaged.libvirt", uri, uri, tmp_path)
    kinds = ["empty getType"]
    assert [line for line in found if line[0] not in kinds] == [
        line for line in reference if line[0] not in kinds
    ]
