"""What the tests of secrets share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from storaged.driver import Driver, open_driver
from storaged.paths import Paths
from storaged.secrets import KeptSecrets
from tests.storaged.libvirtd import Libvirtd, libvirtd


def numbered(number: int) -> UUID:
    """Return an uuid that is the same in every run."""
    return UUID(f"00000000-0000-4000-8000-{number:012}")


def document(
    number: int, usage: str = "", *, ephemeral: bool = False, private: bool = False
) -> str:
    """Return the XML of a secret, for the volume *usage* if one is given."""
    words = [
        f"ephemeral='{'yes' if ephemeral else 'no'}'",
        f"private='{'yes' if private else 'no'}'",
    ]
    use = f"<usage type='volume'><volume>{usage}</volume></usage>" if usage else ""
    return f"<secret {' '.join(words)}><uuid>{numbered(number)}</uuid>{use}</secret>"


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths.below(tmp_path / "root")


@pytest.fixture
def kept(paths: Paths) -> Iterator[KeptSecrets]:
    found = KeptSecrets(paths)
    yield found
    found.close()


@pytest.fixture
def driver(paths: Paths) -> Iterator[Driver]:
    with open_driver(paths) as found:
        yield found


@pytest.fixture
def secretd(paths: Paths) -> Iterator[Libvirtd]:
    """libvirt's daemon of secrets, over the same files; its storage driver is not there."""
    with libvirtd(paths.config.parents[2], secrets=True, storage=False) as found:
        yield found
