"""Make it so, or leave it: pools and volumes that a configuration tool wants to be there.

Nothing is ever formatted, shrunk or replaced; what differs and cannot be mended without harm is
told, not changed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Generic, TypeVar

from storaged.errors import (
    NoSuchPool,
    NoSuchVolume,
    OperationInvalid,
    PoolBusy,
    PoolExists,
    VolumeExists,
)
from storaged.model import Permissions, PoolDef, PoolRef, VolumeDef, VolumeRef

if TYPE_CHECKING:
    from storaged.engine import Engine

T = TypeVar("T")

#: How often a start is tried while others work on the pool, and how long each is waited for.
_ATTEMPTS, _ATTEMPT_PATIENCE = 5, 30.0


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


def ensure_pool(engine: Engine, wanted: PoolDef, *, autostart: bool) -> Ensured[PoolRef]:
    """Have a pool defined, built, started and (if asked) started at boot.

    A pool of this name that is defined differently is started, but not redefined.

    :raise TargetChanged: it is active, but its target is not what it was at the start.
    """
    actions: list[str] = []
    ref = _defined(engine, wanted, actions)
    found = engine.pool_definition(ref, inactive=True)
    differences = _pool_differences(wanted, found)
    info = engine.pool_state(ref)
    if not info.persistent:
        engine.pool_define(found)
        actions.append("defined")
    if info.active:
        engine.require_target(ref)
    elif _start(engine, ref):
        actions.append("started")
    if autostart and not info.autostart:
        engine.pool_set_autostart(ref, autostart=True)
        actions.append("autostart on")
    return Ensured(ref, bool(actions), tuple(actions), differences)


def ensure_volume(
    engine: Engine,
    pool: PoolRef,
    wanted: VolumeDef,
    *,
    preallocate_metadata: bool = False,
    secret: bytes | None = None,
) -> Ensured[VolumeRef]:
    """Have a volume there. One that is smaller than wanted grows; a larger one stays as it is.

    :param secret: the passphrase of one that is to be encrypted.
    """
    actions: list[str] = []
    wanted = replace(wanted, format=wanted.format or "raw")
    try:
        ref = engine.volume_lookup_by_name(pool, wanted.name)
    except NoSuchVolume:
        try:
            job = engine.volume_create(
                pool, wanted, preallocate_metadata=preallocate_metadata, secret=secret
            )
            ref = job.complete()
        except VolumeExists:  # somebody else was quicker
            ref = engine.volume_lookup_by_name(pool, wanted.name)
        else:
            return Ensured(ref, changed=True, actions=("created",))
    found = engine.volume_definition(ref)
    if wanted.format == found.format and found.capacity < wanted.capacity:
        known = None if found.encryption is None else secret
        engine.volume_resize(ref, wanted.capacity, secret=known).complete()
        actions.append(f"grown from {found.capacity} to {wanted.capacity} bytes")
        found = engine.volume_definition(ref)
    return Ensured(ref, bool(actions), tuple(actions), _volume_differences(wanted, found))


def _defined(engine: Engine, wanted: PoolDef, actions: list[str]) -> PoolRef:
    """Return the pool of that name; it is defined if there is none."""
    with suppress(NoSuchPool):
        return engine.pool_lookup_by_name(wanted.name)
    try:
        ref = engine.pool_define(wanted)
    except PoolExists:
        with suppress(NoSuchPool):  # somebody else was quicker
            return engine.pool_lookup_by_name(wanted.name)
        raise
    actions.append("defined")
    return ref


def _start(engine: Engine, ref: PoolRef) -> bool:
    """Build and start a pool; tell whether it was this call that did so.

    Building without flags makes a missing directory and never formats.
    """
    for attempt in range(_ATTEMPTS):
        try:
            engine.pool_build(ref).complete()
            engine.pool_start(ref).complete()
        except (OperationInvalid, PoolBusy):  # perhaps somebody else is about the same
            if attempt == _ATTEMPTS - 1:
                raise
            for job in engine.jobs():
                if job.pool == ref.name and job.volume is None:
                    job.wait(_ATTEMPT_PATIENCE)
            if engine.pool_state(ref).active:
                return False
            time.sleep(0.02)
        else:
            return True
    raise AssertionError("unreachable")


def _pool_differences(wanted: PoolDef, found: PoolDef) -> tuple[Difference, ...]:
    """Return the fields of a definition that differ; the uuid is not one of them."""
    apart = ("uuid", "permissions")
    names = [field.name for field in fields(PoolDef) if field.name not in apart]
    permissions = _permission_differences(wanted.permissions, found.permissions)
    return (*_differing(wanted, found, names), *permissions)


def _volume_differences(wanted: VolumeDef, found: VolumeDef) -> tuple[Difference, ...]:
    names = ["format"]
    if not _fits(wanted, found):
        names.insert(0, "capacity")
    if wanted.cluster_size:
        names.append("cluster_size")
    differences = list(_differing(wanted, found, names))
    differences += _permission_differences(wanted.permissions, found.permissions)
    if wanted.backing is not None:
        there = found.backing.path if found.backing else "none"
        if there != wanted.backing.path:
            differences.append(Difference("backing", wanted.backing.path, there))
    return tuple(differences)


def _permission_differences(wanted: Permissions, found: Permissions) -> Iterator[Difference]:
    """Yield what differs of the permissions that were asked for."""
    for name in ("mode", "owner", "group"):
        asked, there = getattr(wanted, name), getattr(found, name)
        if asked is not None and asked != there:
            yield Difference(name, _shown(name, asked), _shown(name, there))


def _shown(name: str, value: int | None) -> str:
    if value is None:
        return "unset"
    return f"0{value:o}" if name == "mode" else str(value)


def _fits(wanted: VolumeDef, found: VolumeDef) -> bool:
    """Tell whether a volume has the capacity that was asked for, or what that was rounded to."""
    if not wanted.capacity and wanted.backing is not None:
        return True  # that of the backing image
    unit = 1 if wanted.format == "raw" else 1024
    return 0 <= found.capacity - wanted.capacity < unit


def _differing(wanted: object, found: object, names: list[str]) -> tuple[Difference, ...]:
    pairs = ((name, getattr(wanted, name), getattr(found, name)) for name in names)
    return tuple(
        Difference(name, str(asked), str(there)) for name, asked, there in pairs if asked != there
    )
