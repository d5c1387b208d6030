"""The two daemons that a module's tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.clients.daemons import Daemons, open_daemons


@pytest.fixture(scope="module")
def daemons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemons]:
    with open_daemons(tmp_path_factory.mktemp("daemons")) as running:
        yield running
