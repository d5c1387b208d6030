"""Make it so, or leave it: pools and volumes that a configuration tool wants to be there.

Nothing is ever formatted, shrunk or replaced; what differs and cannot be mended without harm is
told, not changed.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Generic, TypeVar

from storaged.driver import Driver
from storaged.errors import NoSuchPool, NoSuchVolume, VolumeExists
from storaged.model import PoolDef, PoolRef, Space, VolumeDef, VolumeRef
from storaged.poolxml import format_pool

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as it was wanted and was left as it is."""

    field: str
    wanted: str
    found: str


@dataclass(frozen=True, slots=True)
class Ensured(Generic[T]):
    """The outcome of an ensure.

    :param object: what is there now.
    :param changed: whether anything was done.
    :param actions: what was done, in order, such as "defined" or "started".
    :param differences: what is not as wanted.
    """

    object: T
    changed: bool
    actions: tuple[str, ...] = ()
    differences: tuple[Difference, ...] = ()


def ensure_pool(driver: Driver, wanted: PoolDef, *, autostart: bool) -> Ensured[PoolRef]:
    """Have a pool defined, built, started and (if asked) started at boot.

    A pool of this name that is defined differently is started, but not redefined.
    """
    actions: list[str] = []
    differences: tuple[Difference, ...] = ()
    try:
        ref = driver.pool_lookup_by_name(wanted.name)
    except NoSuchPool:
        ref = driver.pool_define(wanted)
        actions.append("defined")
    else:
        found = driver.pool_definition(ref, inactive=True)
        differences = _pool_differences(wanted, found)
        if not driver.pool_info(ref).persistent and not differences:
            driver.pool_define(found)
            actions.append("defined")
    info = driver.pool_info(ref)
    if not info.active:
        # Building without flags makes a missing directory and never formats.
        driver.pool_build(ref).result()
        driver.pool_start(ref).result()
        actions.append("started")
    if autostart and not info.autostart:
        driver.pool_set_autostart(ref, autostart=True)
        actions.append("autostart on")
    return Ensured(ref, bool(actions), tuple(actions), differences)


def ensure_volume(
    driver: Driver, pool: PoolRef, wanted: VolumeDef, *, preallocate_metadata: bool = False
) -> Ensured[VolumeRef]:
    """Have a volume there. One that is smaller than wanted grows; a larger one stays as it is."""
    actions: list[str] = []
    try:
        ref = driver.volume_lookup_by_name(pool, wanted.name)
    except NoSuchVolume:
        try:
            ref = driver.volume_create(
                pool, wanted, preallocate_metadata=preallocate_metadata
            ).result()
        except VolumeExists:  # somebody else was quicker
            ref = driver.volume_lookup_by_name(pool, wanted.name)
        else:
            return Ensured(ref, changed=True, actions=("created",))
    found = driver.volume_definition(ref)
    if wanted.format == found.format and found.capacity < wanted.capacity:
        driver.volume_resize(ref, wanted.capacity).result()
        actions.append(f"grown from {found.capacity} to {wanted.capacity} bytes")
        found = driver.volume_definition(ref)
    return Ensured(ref, bool(actions), tuple(actions), _volume_differences(wanted, found))


def _pool_differences(wanted: PoolDef, found: PoolDef) -> tuple[Difference, ...]:
    """Return the fields of a definition that differ; the uuid is not one of them."""
    if format_pool(wanted, Space()) == format_pool(found, Space()):
        return ()
    names = [field.name for field in fields(PoolDef) if field.name != "uuid"]
    return _differing(wanted, found, names)


def _volume_differences(wanted: VolumeDef, found: VolumeDef) -> tuple[Difference, ...]:
    names = ["capacity", "format"]
    if wanted.cluster_size:
        names.append("cluster_size")
    differences = list(_differing(wanted, found, names))
    for name in ("mode", "owner", "group"):
        asked = getattr(wanted.permissions, name)
        there = getattr(found.permissions, name)
        if asked is not None and asked != there:
            shown = (f"0{asked:o}", f"0{there:o}") if name == "mode" else (str(asked), str(there))
            differences.append(Difference(name, *shown))
    if wanted.backing is not None:
        there = found.backing.path if found.backing else "none"
        if there != wanted.backing.path:
            differences.append(Difference("backing", wanted.backing.path, there))
    return tuple(differences)


def _differing(wanted: object, found: object, names: list[str]) -> tuple[Difference, ...]:
    pairs = ((name, getattr(wanted, name), getattr(found, name)) for name in names)
    return tuple(
        Difference(name, str(asked), str(there)) for name, asked, there in pairs if asked != there
    )
