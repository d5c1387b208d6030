"""Volumes of every kind, from the record of a group: for machines without device-mapper.

With it they would have to be activated, and a record holds no data. `test_logical_faults` makes
volumes of these kinds anew.
"""

from __future__ import annotations

import pytest

from storaged.backends.logical import Logical
from storaged.errors import InvalidArgument, OperationInvalid, OperationUnsupported
from storaged.model import BackingStore, SourceExtent
from tests.backends.volumegroups import DATA, Lab, lab, new_job, volumes
from tests.kernel.features import missing

__all__ = ["lab"]

MIB = 1 << 20
EXTENT = 4 * MIB


@pytest.fixture
def zoo(request: pytest.FixtureRequest) -> Logical:
    """A group with volumes of every kind, as a machine with device-mapper recorded it."""
    for feature in ("lvm", "loop"):
        if (why := missing(feature)) is not None:
            pytest.skip(f"kernel feature '{feature}': {why}")
    lab: Lab = request.getfixturevalue("lab")
    if lab.maps:
        pytest.skip("there is device-mapper: make test-vm makes volumes of all these kinds")
    devices = lab.restore(DATA / "zoo.vg", "zoo", 256)
    return lab.pool("zoo", *devices)


def test_all_kinds_of_volumes_are_listed(zoo: Logical) -> None:
    found = volumes(zoo)
    sizes = {name: (one.capacity // MIB, one.allocation // MIB) for name, one in found.items()}
    assert sizes == {
        "linear": (32, 32),
        "snap-1": (32, 8),
        "a.b-c": (24, 24),
        "striped": (16, 16),
        "mirror": (16, 16),
        "raid1": (16, 16),
        "sparse": (1024, 12),
        "pool": (64, 64),
        "thin": (1024, 0),
        "thin-snap": (1024, 0),
    }
    assert {one.format for one in found.values()} == {"raw", "thin-pool"}
    backing = {name: (one.extra or {}).get("backing") for name, one in found.items()}
    assert {name: below for name, below in backing.items() if below} == {
        "snap-1": BackingStore("/dev/zoo/linear"),
        "thin-snap": BackingStore("/dev/zoo/thin"),
    }


def test_where_volumes_lie(zoo: Logical) -> None:
    one, two, _ = (device.path for device in zoo.definition.source.devices)
    where = {name: (record.extra or {})["extents"] for name, record in volumes(zoo).items()}
    assert where["a.b-c"] == (
        SourceExtent(one, 10 * EXTENT, 12 * EXTENT),
        SourceExtent(two, 0, 4 * EXTENT),
    )
    assert where["striped"] == (
        SourceExtent(one, 12 * EXTENT, 16 * EXTENT),
        SourceExtent(two, 4 * EXTENT, 8 * EXTENT),
    )
    assert where["mirror"] == (
        SourceExtent("mirror_mimage_0", 0, 16 * MIB),
        SourceExtent("mirror_mimage_1", 0, 16 * MIB),
    )
    assert where["thin"] == ()


def test_what_hangs_on_a_volume_is_named_before_it_goes(zoo: Logical, lab: Lab) -> None:
    found = volumes(zoo)
    with pytest.raises(OperationInvalid, match="it has snapshots: snap-1"):
        zoo.delete(found["linear"], new_job())
    with pytest.raises(OperationInvalid, match="it has thin volumes: thin, thin-snap"):
        zoo.delete(found["pool"], new_job())
    zoo.delete(found["linear"], new_job(), force=True)
    assert {"linear", "snap-1"} & lab.names("zoo") == set()
    zoo.delete(found["pool"], new_job(), force=True)
    assert lab.names("zoo") == {"a.b-c", "striped", "mirror", "raid1", "sparse"}


def test_what_cannot_be_resized(zoo: Logical) -> None:
    found = volumes(zoo)
    with pytest.raises(OperationUnsupported, match="as large as its origin"):
        zoo.resize(found["snap-1"], 64 * MIB, new_job())
    with pytest.raises(OperationUnsupported, match="allocated when it is written"):
        zoo.resize(found["thin"], 2048 * MIB, new_job(), allocate=True)
    with pytest.raises(OperationUnsupported, match="cannot be made smaller"):
        zoo.resize(found["pool"], 32 * MIB, new_job(), shrink=True)
    with pytest.raises(InvalidArgument, match="shrink flag"):
        zoo.resize(found["linear"], EXTENT, new_job())


def test_a_thin_pool_has_no_bytes_of_its_own(zoo: Logical) -> None:
    with pytest.raises(OperationUnsupported, match="is a thin pool"):
        zoo.open_image(volumes(zoo)["pool"])
