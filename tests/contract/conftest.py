"""A pool of each subject, on its storage, in an engine of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from storaged.poolhandle import Pool
from storaged.storage import Storage, open_storage
from storaged.traits import VolumeType
from storaged.volumehandle import Volume
from storaged.volxml import parse_volume
from tests.contract.subjects import MIB, Ground, Subject


@dataclass
class Case:
    """A subject with its storage and the engine that uses it."""

    subject: Subject
    ground: Ground
    root: Path
    storage: Storage

    @property
    def pool(self) -> Pool:
        """The pool; `define` comes first."""
        return self.storage.pool("ground")

    def define(self) -> Pool:
        """Define the pool by its XML, checked against the schema."""
        return self.storage.define_pool(self.ground.xml, validate=True)

    def start(self) -> Pool:
        """Define, build and start the pool."""
        pool = self.define()
        pool.build(overwrite=self.ground.overwrite)
        pool.start()
        return pool

    def reopen(self) -> None:
        """End the engine and start another, as a restart of the daemon does."""
        self.storage.close()
        self.storage = open_storage(self.root, durability="none")

    def fill(self) -> list[Volume]:
        """Return two volumes or more of 8 MiB: new ones, of all formats, or those that are there.

        The directories of a fresh file system are volumes too, but not of them.
        """
        if self.ground.given:
            return self.pool.volumes()
        formats = self.subject.formats
        for number, chosen in enumerate(formats if len(formats) > 1 else formats * 2):
            self.pool.create(f"volume{number}", 8 * MIB, format=chosen)
        return [each for each in self.pool.volumes() if each.info().type is not VolumeType.DIR]

    def check(self, volume: Volume) -> None:
        """Check that a volume is found by all its names, and that its XML is as the schema says."""
        assert volume.problem is None
        for found in (
            self.pool.volume(volume.name),
            self.storage.volume_by_key(volume.key),
            self.storage.volume_by_path(volume.path),
        ):
            assert (found.name, found.key) == (volume.name, volume.key)
        parse_volume(volume.xml(), self.subject.kind, validate=True)


@pytest.fixture
def ground(request: pytest.FixtureRequest, subject: Subject, unmounted: Path) -> Iterator[Ground]:
    """The storage of one subject; what a test that failed has left mounted goes with it."""
    fixtures = [request.getfixturevalue(name) for name in subject.fixtures]
    with subject.prepare(unmounted, *fixtures) as prepared:
        yield prepared


@pytest.fixture
def case(subject: Subject, ground: Ground, tmp_path: Path) -> Iterator[Case]:
    """The case of one subject; its pool is stopped at the end, whatever the test left."""
    made = Case(subject, ground, tmp_path / "root", _open(tmp_path / "root"))
    try:
        yield made
    finally:
        for pool in made.storage.pools(active=True):
            pool.stop()
        made.storage.close()


def _open(root: Path) -> Storage:
    return open_storage(root, durability="none")
