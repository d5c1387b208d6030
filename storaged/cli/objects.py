"""The JSON objects for pools, volumes and secrets: a promise to programs.

Keys may be added, never renamed or removed, and keep their types. Sizes are bytes. Every command
that shows pools, volumes or secrets gives these objects; every command that changes one gives
``{"action": WORD, ...}`` with the object as it is afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from storaged.errors import StorageError

if TYPE_CHECKING:
    from storaged import Ensured, Pool, SecretDef, Volume
    from storaged.model import PoolInfo, VolumeInfo


class PoolObject(TypedDict):
    """One pool."""

    name: str
    uuid: str
    #: dir, fs, netfs ...
    type: str
    #: inactive, building, running, degraded or inaccessible
    state: str
    active: bool
    persistent: bool
    autostart: bool
    #: 0 for the three sizes while the pool is not active
    capacity: int
    allocation: int
    available: int
    #: path of the target; null for the network types
    target: str | None
    #: what is wrong with the pool, in words
    problems: list[str]
    #: since when the storage has not answered, in seconds since 1970; null if it does
    inaccessible_since: float | None


class VolumeObject(TypedDict):
    """One volume."""

    name: str
    pool: str
    key: str
    path: str
    #: file, block, dir, network, netdir or ploop
    type: str
    #: raw, qcow2 ...; null where the pool's type has no formats
    format: str | None
    capacity: int
    allocation: int
    physical: int
    #: it is being created or cloned just now
    building: bool
    #: what is wrong with the volume, in words
    problem: str | None
    #: how full a thin pool, a thin volume or a snapshot is, in percent; null where there is nothing
    #: to fill up
    data_percent: float | None
    metadata_percent: float | None


class SecretObject(TypedDict):
    """One secret. Its value is nowhere."""

    uuid: str
    #: what it is for: none, volume, ceph, iscsi, tls or vtpm
    usage: str
    #: which one of these; null for none
    usage_id: str | None
    #: it is never written to a disk
    ephemeral: bool
    #: its value is told to nobody
    private: bool
    description: str | None


class DifferenceObject(TypedDict):
    """What ``ensure`` found different and left alone."""

    field: str
    wanted: str | int | bool | None
    found: str | int | bool | None


def pool_object(info: PoolInfo) -> PoolObject:
    """Return a pool."""
    return {
        "name": info.ref.name,
        "uuid": str(info.ref.uuid),
        "type": str(info.type),
        "state": info.state.name.lower(),
        "active": info.active,
        "persistent": info.persistent,
        "autostart": info.autostart,
        "capacity": info.space.capacity,
        "allocation": info.space.allocation,
        "available": info.space.available,
        "target": info.target,
        "problems": list(info.problems),
        "inaccessible_since": None if info.outage is None else info.outage.since,
    }


def pool_changed(action: str, pool: Pool) -> dict[str, object]:
    """Return what a command did to *pool*, and the pool as it is now.

    A transient pool is gone once it is stopped, and an undefined one too: only its name and uuid
    are left.
    """
    after: object
    try:
        after = pool_object(pool.info())
    except StorageError:
        after = {"name": pool.name, "uuid": str(pool.uuid)}
    return {"action": action, "pool": after}


def volume_object(info: VolumeInfo) -> VolumeObject:
    """Return a volume."""
    return {
        "name": info.ref.name,
        "pool": info.ref.pool.name,
        "key": info.ref.key,
        "path": info.path,
        "type": str(info.type),
        "format": info.format,
        "capacity": info.capacity,
        "allocation": info.allocation,
        "physical": info.physical,
        "building": info.building,
        "problem": info.problem,
        "data_percent": info.data_percent,
        "metadata_percent": info.metadata_percent,
    }


def volume_changed(action: str, volume: Volume) -> dict[str, object]:
    """Return what a command did to *volume*, and the volume as it is now."""
    return {"action": action, "volume": volume_object(volume.info())}


def secret_object(secret: SecretDef) -> SecretObject:
    """Return a secret."""
    return {
        "uuid": str(secret.uuid),
        "usage": str(secret.usage),
        "usage_id": secret.usage_id,
        "ephemeral": secret.ephemeral,
        "private": secret.private,
        "description": secret.description,
    }


def ensured(outcome: Ensured[Pool] | Ensured[Volume]) -> dict[str, object]:
    """Return what ``ensure`` did and what it found different."""
    return {
        "changed": outcome.changed,
        "actions": list(outcome.actions),
        "differences": [
            {"field": each.field, "wanted": _plain(each.wanted), "found": _plain(each.found)}
            for each in outcome.differences
        ],
    }


def _plain(value: object) -> str | int | bool | None:
    return value if value is None or isinstance(value, int | bool) else str(value)
