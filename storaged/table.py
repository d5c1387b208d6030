"""The pools of an engine by name and uuid: what must be unique among them.

Look-ups take no lock: each is one dict operation. Changes to the set of pools are serialised by the
caller's definition lock, which is never held while storage is touched.
"""

from __future__ import annotations

from heapq import nsmallest
from uuid import UUID

from storaged.errors import NoSuchPool, OperationInvalid, PoolExists
from storaged.model import (
    FcHostAdapter,
    PoolDef,
    PoolRef,
    PoolSource,
    PoolType,
    ScsiHostAdapter,
)
from storaged.pool import PoolObject
from storaged.poolstate import Phase
from storaged.volumes import Volumes

#: Types that conflict when they share a device path, each with each other.
_DEVICE_TYPES = frozenset({PoolType.FS, PoolType.LOGICAL, PoolType.DISK, PoolType.ZFS})


class PoolTable:
    """All pools, each with its volumes' operations."""

    def __init__(self) -> None:
        self._by_name: dict[str, Volumes] = {}
        self._by_uuid: dict[UUID, Volumes] = {}

    def __len__(self) -> int:
        return len(self._by_uuid)

    def all(self) -> list[PoolObject]:
        """Return all pools, in no order."""
        return [volumes.pool for volumes in list(self._by_name.values())]

    def volumes(self) -> list[Volumes]:
        """Return the volume operations of all pools, in no order."""
        return list(self._by_name.values())

    def by_name(self, name: str) -> Volumes:
        """Return a pool by its name.

        :raise NoSuchPool: there is none; the advice names those there are.
        """
        found = self._by_name.get(name)
        if found is None:
            raise NoSuchPool(f"no storage pool with matching name '{name}'", advice=self._known())
        return found

    def by_uuid(self, uuid: UUID, name: str | None = None) -> Volumes:
        """Return a pool by its uuid.

        :param name: what the caller calls it, for the message.
        :raise NoSuchPool: there is none.
        """
        found = self._by_uuid.get(uuid)
        if found is None:
            called = f" ({name})" if name else ""
            raise NoSuchPool(
                f"no storage pool with matching uuid '{uuid}'{called}", advice=self._known()
            )
        return found

    def get(self, uuid: UUID) -> Volumes | None:
        """Return a pool by its uuid, None if there is none."""
        return self._by_uuid.get(uuid)

    def by_ref(self, ref: PoolRef) -> Volumes:
        """Return the pool that *ref* names.

        :raise NoSuchPool: it is not there any more.
        """
        return self.by_uuid(ref.uuid, ref.name)

    def find(self, name: str) -> PoolObject | None:
        """Return a pool by its name, None if there is none."""
        found = self._by_name.get(name)
        return found.pool if found else None

    def add(self, pool: PoolObject) -> Volumes:
        """Add a pool that `require_unique` let pass."""
        volumes = self._by_name[pool.name] = self._by_uuid[pool.ref.uuid] = Volumes(pool)
        pool.forget = lambda: self.remove(pool)
        return volumes

    def remove(self, pool: PoolObject) -> None:
        """Take a pool off; one that is off already is no error."""
        pool.removed = True
        found = self._by_uuid.get(pool.ref.uuid)
        if found is not None and found.pool is pool:
            del self._by_uuid[pool.ref.uuid]
        found = self._by_name.get(pool.name)
        if found is not None and found.pool is pool:
            del self._by_name[pool.name]

    def require_unique(self, definition: PoolDef, *, starting: bool) -> PoolObject | None:
        """Return the pool that *definition* redefines, None if it is a new one.

        :param starting: the definition is to be run now, not only kept.
        :raise PoolExists: another pool has the source, the name or the uuid.
        :raise OperationInvalid: the same pool is active or starting, and it is to be run.
        """
        for other in self.all():
            if other.name != definition.name and conflict(other.snapshot.definition, definition):
                raise self._conflict(other)
        same = self._by_uuid.get(definition.uuid)
        if same is not None:
            pool = same.pool
            if pool.name != definition.name:
                raise PoolExists(
                    f"pool '{pool.name}' is already defined with uuid {definition.uuid}"
                )
            if starting and pool.phase is not Phase.INACTIVE:
                if pool.phase is Phase.STARTING:
                    raise OperationInvalid(f"storage pool '{pool.name}' is starting up")
                raise OperationInvalid(f"pool is already active as '{pool.name}'")
            return pool
        named = self._by_name.get(definition.name)
        if named is not None:
            uuid = named.pool.ref.uuid
            raise PoolExists(
                f"pool '{definition.name}' already exists with uuid {uuid}",
                advice=(
                    f"To change it, give its uuid: <uuid>{uuid}</uuid>. To have it as you wrote "
                    f"it or leave it: storagectl pool ensure"
                ),
            )
        return None

    def _conflict(self, other: PoolObject) -> PoolExists:
        found = other.snapshot
        state = "active" if found.info.active else "inactive"
        at = f" on {found.definition.target}" if found.definition.target else ""
        return PoolExists(
            f"Storage source conflict with pool: '{other.name}'",
            advice=(
                f"Use '{other.name}' ({state}{at}), or remove its definition, not its data: "
                f"storagectl pool undefine {other.name}"
            ),
        )

    def _known(self) -> str:
        found = nsmallest(9, list(self._by_name.items()))
        if not found:
            return (
                "There are no pools here. To make one: "
                "storagectl pool ensure default --type dir --target DIRECTORY"
            )
        shown = ", ".join(
            name + ("" if volumes.pool.active else " (inactive)") for name, volumes in found[:8]
        )
        return f"The pools here are: {shown}{' ...' if len(found) > 8 else ''}."


def conflict(one: PoolDef, other: PoolDef) -> bool:
    """Tell whether two pools would lie on the same storage, by libvirt's rules.

    Plain comparison of strings: links and mounts are not followed.
    """
    if one.type in _DEVICE_TYPES and other.type in _DEVICE_TYPES:
        paths = {device.path for device in one.source.devices}
        return any(device.path in paths for device in other.source.devices)
    if one.type != other.type:
        return False
    a, b = one.source, other.source
    match one.type:
        case PoolType.DIR:
            return one.target == other.target
        case PoolType.NETFS:
            return a.dir == b.dir and _same_host(a, b)
        case PoolType.GLUSTER:
            return a.name == b.name and a.dir == b.dir and _same_host(a, b)
        case PoolType.SCSI:
            return _same_adapter(a, b)
        case PoolType.ISCSI:
            return a.initiator == b.initiator and bool(
                {d.path for d in a.devices} & {d.path for d in b.devices}
            )
        case PoolType.SHEEPDOG:
            return _same_host(a, b)
        case PoolType.MPATH:
            return True
        case PoolType.VSTORAGE:
            return a.name == b.name
    return False


def _same_host(one: PoolSource, other: PoolSource) -> bool:
    if len(one.hosts) != 1 or len(other.hosts) != 1:
        return False
    a, b = one.hosts[0], other.hosts[0]
    return a.name == b.name and (not a.port or not b.port or a.port == b.port)


def _same_adapter(one: PoolSource, other: PoolSource) -> bool:
    a, b = one.adapter, other.adapter
    if isinstance(a, FcHostAdapter) and isinstance(b, FcHostAdapter):
        return (a.wwnn, a.wwpn) == (b.wwnn, b.wwpn)
    if isinstance(a, ScsiHostAdapter) and isinstance(b, ScsiHostAdapter):
        if a.parent or b.parent:
            return (a.parent, a.unique_id) == (b.parent, b.unique_id)
        return _host_number(a.name) == _host_number(b.name)
    return False


def _host_number(name: str | None) -> str:
    """Return the number in ``host5`` or the older ``scsi_host5``."""
    return (name or "").removeprefix("scsi_").removeprefix("host")
