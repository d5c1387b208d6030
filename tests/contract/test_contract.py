"""What every backend promises, in one body over all of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
from lxml import etree

from storaged.backend import (
    Ability,
    Builds,
    ClonesVolumes,
    CreatesVolumes,
    DeletesVolumes,
    FindsSources,
    Host,
    Resizes,
    StopsByForce,
    Transfers,
    Wipes,
    require,
)
from storaged.errors import (
    Cancelled,
    ConfigUnsupported,
    NoSuchVolume,
    OperationInvalid,
    Unsupported,
    VolumeExists,
)
from storaged.job import Job
from storaged.model import PoolState
from storaged.poolxml import parse_pool
from storaged.storage import open_storage
from storaged.traits import traits_of
from storaged.volumehandle import Volume
from tests.contract.conftest import Case
from tests.contract.subjects import MIB, Subject, parameters, types_without_subject

on_storage = pytest.mark.parametrize("subject", parameters())
by_class = pytest.mark.parametrize("subject", parameters(storage=False))

#: What is asked of a type that lacks an ability; all of them raise libvirt's "not supported".
_REQUESTS: Mapping[type[Ability], Callable[[Case, Volume], object]] = MappingProxyType(
    {
        CreatesVolumes: lambda case, _: case.pool.create("more", 4 * MIB),
        ClonesVolumes: lambda _, volume: volume.clone_to("more"),
        DeletesVolumes: lambda _, volume: volume.delete(),
        # what is wrong with the capacity itself comes first
        Resizes: lambda _, volume: volume.resize(volume.info().capacity),
        Wipes: lambda _, volume: volume.wipe(),
        Transfers: lambda _, volume: volume.open_download(),
        FindsSources: lambda case, _: case.storage.find_sources(case.subject.kind),
    }
)


@on_storage
def test_the_life_of_a_pool(case: Case) -> None:
    pool = case.define()
    assert not pool.active
    pool.build(overwrite=case.ground.overwrite)
    with pytest.raises(OperationInvalid, match="is not active"):
        pool.refresh()
    pool.start()
    check_pool(case)
    volumes = case.fill()
    known = {volume.name: (volume.key, volume.path) for volume in volumes}
    assert len(set(known.values())) == len(known) >= 2
    names = pool.names()
    pool.refresh()
    assert pool.names() == names

    case.reopen()
    pool = case.pool
    assert pool.active
    assert pool.names() == names
    check_known(case, known)

    check_forced_stop(case)
    with pytest.raises(NoSuchVolume):
        case.storage.volume_by_path(volumes[0].path)
    pool.start()  # what was there is there again
    check_known(case, known)
    if case.subject.can(DeletesVolumes):
        for volume in pool.volumes():
            volume.delete()
        assert pool.names() == []
    pool.stop()
    check_delete(case)
    pool.undefine()
    assert case.storage.pools() == []


def check_known(case: Case, known: Mapping[str, tuple[str, str]]) -> None:
    """Check that volumes have the keys and paths that they had."""
    found = {volume.name: (volume.key, volume.path) for volume in case.pool.volumes()}
    assert {name: found.get(name) for name in known} == known


def check_forced_stop(case: Case) -> None:
    """Check that the pool can be stopped by force, as all can; doing it twice does no harm."""
    case.pool.stop(force=True)
    assert case.pool.info().state is PoolState.INACTIVE
    with pytest.raises(OperationInvalid, match="is not active"):
        case.pool.stop(force=True)
    if case.subject.can(StopsByForce):
        again = case.subject.backend(case.pool.definition(), Host(id="contract"))
        require(again, StopsByForce).stop_by_force(Job("stop", "ground"))


def check_pool(case: Case) -> None:
    """Check figures, documents and look-ups of the running pool."""
    pool = case.pool
    space = pool.info().space
    assert pool.info().state is PoolState.RUNNING
    assert space.capacity > 0
    assert space.available <= space.capacity
    definition = parse_pool(pool.xml(), validate=True)
    assert definition.uuid == pool.uuid
    if definition.target is not None:
        assert case.storage.pool_by_target(definition.target).uuid == pool.uuid


def check_delete(case: Case) -> None:
    """Check that the storage of the stopped pool goes, if the type says that it can."""
    if case.subject.can(Builds):
        case.pool.delete()
        return
    with pytest.raises(Unsupported, match=Builds.missing):
        case.pool.delete()


@on_storage
def test_volumes(case: Case, tmp_path: Path) -> None:
    case.start()
    volumes = case.fill()
    for volume in volumes:
        case.check(volume)
    if case.subject.can(Resizes):
        for volume in volumes[: len(case.subject.formats)]:
            check_resize(volume)
    if case.subject.can(Transfers):
        check_transfers(case, raw_volume(volumes), tmp_path)
    if case.subject.can(Wipes):
        check_wipe(raw_volume(volumes), tmp_path)
    if case.subject.can(ClonesVolumes):
        check_clones(case, volumes, tmp_path)
    if case.subject.can(CreatesVolumes):
        check_create(case, volumes[0])
        check_formats(case)
    check_what_it_lacks(case, volumes[0])
    before = case.pool.names()
    case.pool.refresh()
    assert case.pool.names() == before


def raw_volume(volumes: list[Volume]) -> Volume:
    """Return one whose bytes are the guest's."""
    return next(volume for volume in volumes if volume.info().format in (None, "raw"))


def check_transfers(case: Case, volume: Volume, place: Path) -> None:
    """Check that bytes come back as they were, holes as holes, in all and in part."""
    size = volume.info().capacity
    data = os.urandom(MIB)
    sent, back = place / "sent", place / "back"
    with sent.open("wb") as file:
        file.write(data)
        file.truncate(3 * MIB)
    assert volume.upload(sent, sparse=True) == 3 * MIB
    volume.download(back, sparse=True)
    assert back.stat().st_size == size
    with back.open("rb") as file:
        assert file.read(MIB) == data
        assert file.read(2 * MIB) == bytes(2 * MIB)
    volume.upload(sent, offset=MIB + 512, length=MIB)
    assert volume.download(back, offset=MIB + 512, length=4096) == 4096
    assert back.read_bytes() == data[:4096]
    case.check(volume)


def check_wipe(volume: Volume, place: Path) -> None:
    """Check that nothing is left of what the upload wrote, and that the size is the same."""
    size = volume.info().capacity
    volume.wipe()
    assert volume.info().capacity == size
    volume.download(place / "wiped")
    assert not any((place / "wiped").read_bytes())


def check_resize(volume: Volume) -> None:
    """Check a larger capacity and, while nothing is allocated, the smaller one."""
    volume.resize(12 * MIB)
    assert volume.info().capacity == 12 * MIB
    volume.resize(8 * MIB, shrink=True)
    assert volume.info().capacity == 8 * MIB


def check_clones(case: Case, volumes: list[Volume], place: Path) -> None:
    """Check that clones hold what their sources hold, and that a cancelled one leaves nothing."""
    source = raw_volume(volumes)
    data = os.urandom(MIB)
    (place / "sent").write_bytes(data)
    source.upload(place / "sent")
    clone = source.clone_to("clone")
    case.check(clone)
    clone.download(place / "back", length=MIB)
    assert (place / "back").read_bytes() == data
    clone.delete()
    check_cancel(case, "cancelled-clone", source.clone_to("cancelled-clone", wait=False))


def check_create(case: Case, volume: Volume) -> None:
    """Check that a name is taken only once, and that a cancelled create leaves nothing."""
    with pytest.raises(VolumeExists):
        case.pool.create(volume.name, 4 * MIB)
    job = case.pool.create("cancelled", 64 * MIB, allocation=64 * MIB, wait=False)
    check_cancel(case, "cancelled", job)


def check_cancel(case: Case, name: str, job: Job[Volume]) -> None:
    """Cancel a job that makes a volume: it is there whole (the cancel came late) or not at all."""
    job.cancel()
    job.wait(120)
    if job.error is None:
        made = case.pool.volume(name)
        case.check(made)
        made.delete()
    else:
        assert isinstance(job.error, Cancelled)
    assert name not in case.pool.names()
    case.pool.refresh()
    assert name not in case.pool.names()
    assert not [entry for entry in case.ground.names() if name in entry or ".part" in entry]


def check_what_it_lacks(case: Case, volume: Volume) -> None:
    """Check that what the type's class does not promise is refused as "not supported"."""
    for ability, ask in _REQUESTS.items():
        if case.subject.can(ability):
            continue
        with pytest.raises(Unsupported) as caught:
            ask(case, volume)
        assert caught.value.code == 3, ability


def check_formats(case: Case) -> None:
    """Check that each format is made, or refused with a word on which ones are."""
    before = case.pool.names()
    made: set[str] = set()
    refused: dict[str, ConfigUnsupported] = {}
    for format in case.subject.backend.descriptor.volume_formats:
        try:
            volume = case.pool.create(f"made-{format}", 8 * MIB, format=format)
        except ConfigUnsupported as err:
            refused[format] = err
        else:
            assert volume.info().format in (format, "raw")  # there is nothing in an iso yet
            case.check(volume)
            volume.delete()
            made.add(format)
        assert case.pool.names() == before
    assert set(case.subject.formats) - {None} <= made
    for format, error in refused.items():
        assert f"'{format}'" in error.detail
        told = (error.advice or "").removeprefix("What can be is ").removesuffix(".")
        assert set(told.split(", ")) == made


@by_class
def test_its_descriptor(subject: Subject, tmp_path: Path) -> None:
    """Its class describes what libvirt knows of the type, and the capabilities say so."""
    descriptor, traits = subject.backend.descriptor, traits_of(subject.kind)
    assert descriptor.type == subject.kind
    assert descriptor.source_formats in ((), traits.source_formats)
    assert set(descriptor.volume_formats) <= set(traits.volume_formats)
    with open_storage(tmp_path / "root") as storage:
        document = etree.fromstring(storage.capabilities())
    listed = document.find(f"pool[@type='{subject.kind}']")
    assert listed is not None
    assert listed.get("supported") == "yes"
    if traits.source_formats:
        shown = listed.findall("poolOptions/enum[@name='sourceFormatType']/value")
        assert {value.text for value in shown} == set(traits.source_formats)


def test_every_pool_type_is_a_subject() -> None:
    assert not types_without_subject()
