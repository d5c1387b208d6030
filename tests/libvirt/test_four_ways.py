"""Two programs, five times: libvirt-python and ours, with libvirt's daemon, ours, an engine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.running import storaged_daemon
from tests.libvirt.conftest import printed
from tests.storaged.libvirtd import libvirtd

pytestmark = pytest.mark.slow

PROGRAMS = tuple(Path(__file__).with_name(f"{name}.py") for name in ("script", "edges"))

#: A hole in an upload always reads as zeros; libvirt leaves what was there if the hole ends within
#: the file.
HOLES = ("recv 6", "recv 600", "data")
#: A network that a storage daemon does not serve: libvirt's modular one answers as ours does, the
#: monolithic one that is the reference has the call refused in the driver.
ELSEWHERE = ("listAllNetworks",)
#: An engine in this process says at once that the announced length is exceeded, as the storage
#: driver; over a socket it is told when the stream ends, and by another part.
AT_ONCE = ("send", "finish full", "finish again")
#: Nor does it ever make a stream wait.
NO_WAIT = ("nonblocking recvAll", "nonblocking sparseRecvAll")

WANTED = {
    "libvirt-python with our daemon": (*HOLES, *ELSEWHERE),
    "ours with our daemon": HOLES,
    "ours with an engine": (*HOLES, *AT_ONCE, *NO_WAIT),
    "ours with libvirt's daemon": (),
}


def lines(python: str, module: str, uri: str, readonly: str, directory: Path) -> list[list[object]]:
    """Return what both programs print, each with a directory of its own."""
    found = []
    for program in PROGRAMS:
        here = directory / program.stem
        here.mkdir(parents=True)
        found += printed(python, program, module, uri, readonly, str(here))
    return found


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    with libvirtd(tmp_path_factory.mktemp("libvirtd")) as daemon:
        uri = f"storage:///system?socket={daemon.root}/run/libvirt/libvirt-sock"
        yield uri, f"{uri}-ro"


@pytest.fixture(scope="module")
def reference(
    binding: str, peer: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> list[list[object]]:
    found = lines(binding, "libvirt", *peer, tmp_path_factory.mktemp("reference") / "here")
    assert len(found) > 400
    return found


def compare(way: str, reference: list[list[object]], found: list[list[object]]) -> None:
    def rest(all_lines: list[list[object]]) -> list[list[object]]:
        return [line for line in all_lines if line[0] not in WANTED[way]]

    assert rest(found) == rest(reference)


def test_ours_with_libvirts_daemon(
    reference: list[list[object]], peer: tuple[str, str], tmp_path: Path
) -> None:
    found = lines(sys.executable, "storaged.libvirt", *peer, tmp_path / "here")
    compare("ours with libvirt's daemon", reference, found)


def test_ours_with_an_engine(reference: list[list[object]], tmp_path: Path) -> None:
    uri = f"storage:///embed?root={tmp_path}/engine"
    found = lines(sys.executable, "storaged.libvirt", uri, uri, tmp_path / "here")
    compare("ours with an engine", reference, found)


def test_ours_with_our_daemon(
    reference: list[list[object]], tmp_path: Path, short_path: Path
) -> None:
    with storaged_daemon(short_path) as daemon:
        uris = daemon.uri(), daemon.uri(readonly=True)
        found = lines(sys.executable, "storaged.libvirt", *uris, tmp_path / "here")
    compare("ours with our daemon", reference, found)


def test_libvirt_python_with_our_daemon(
    reference: list[list[object]], binding: str, tmp_path: Path, short_path: Path
) -> None:
    with storaged_daemon(short_path) as daemon:
        uris = daemon.uri(), daemon.uri(readonly=True)
        found = lines(binding, "libvirt", *uris, tmp_path / "here")
    compare("libvirt-python with our daemon", reference, found)
