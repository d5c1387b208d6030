"""virt-manager's library, as Debian ships it, on both daemons."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.daemons import Daemons
from tests.clients.peers import Peers, open_peers, scenarios
from tests.clients.scenarios import disks


@pytest.fixture(scope="module")
def peers(daemons: Daemons) -> Iterator[Peers]:
    if not Path("/usr/share/virt-manager/virtinst").is_dir():
        pytest.skip("virt-manager's library is not installed (Debian: virtinst)")
    with open_peers(disks, daemons) as running:
        yield running


@pytest.mark.parametrize("scenario", scenarios(disks))
def test_scenario(peers: Peers, scenario: str) -> None:
    peers.same(scenario)
