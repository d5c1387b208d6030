"""libvirt's own Python binding: every storage call, on libvirt's daemon and on storaged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

import pytest

from tests.clients.daemons import (
    Daemons,
    Served,
    file_system,
    require_binding,
    serve_libvirtd,
    serve_storaged,
)
from tests.clients.differences import compare
from tests.clients.peers import Peer, Peers, open_peers, scenarios
from tests.clients.scenarios import events, habits, pools, streams, volumes

MODULES: dict[str, ModuleType] = {
    "pools": pools,
    "volumes": volumes,
    "streams": streams,
    "events": events,
    "habits": habits,
}
#: Run by tests of their own.
APART = {"made_for_a_restart", "found_after_a_restart"}
SLOW = {"keepalive"}


@pytest.fixture(scope="module")
def peers(daemons: Daemons) -> Iterator[dict[str, Peers]]:
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(open_peers(module, daemons))
            for name, module in MODULES.items()
        }


@pytest.mark.parametrize(
    ("module", "scenario"),
    [
        pytest.param(name, scenario, marks=[pytest.mark.slow] if scenario in SLOW else [])
        for name, module in MODULES.items()
        for scenario in scenarios(module)
        if scenario not in APART and not scenario.startswith("promised")
    ],
)
def test_scenario(peers: dict[str, Peers], module: str, scenario: str) -> None:
    peers[module].same(scenario)


@pytest.mark.parametrize("scenario", [s for s in scenarios(streams) if s.startswith("promised")])
def test_promise(peers: dict[str, Peers], scenario: str) -> None:
    """What storaged promises and libvirt does not."""
    peers["streams"].ours.run(scenario)


def test_restart(tmp_path: Path) -> None:
    """Keys and paths find their volumes after the daemon was ended and started again."""
    require_binding()
    found = []
    for name, serve in (("a", serve_libvirtd), ("b", serve_storaged)):
        with file_system(tmp_path / f"pools-{name}") as directory:
            with serve(tmp_path, directory) as served:
                keys = run(served, "made_for_a_restart")
            with serve(tmp_path, directory) as served:
                found.append(run(served, "found_after_a_restart", *keys))
    compare("restart", *found)


def run(served: Served, scenario: str, *arguments: object) -> list[str]:
    peer = Peer(habits, served)
    try:
        answer: list[str] = peer.run(scenario, *arguments)
    finally:
        peer.close()
    return answer
