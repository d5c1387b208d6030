"""What goes between a pool and its backend.

These are values, so that the two may be two processes; but for what is asked for secrets, and the
open image that a clone is made of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol
from uuid import UUID

from storaged.errors import NoSuchSecret, Unsupported
from storaged.formats.handle import Handle
from storaged.imaging import CloneOptions, Durability
from storaged.model import Permissions, SecretRef, Space, VolumeRecord

#: A clone as libvirt makes it.
PLAIN_CLONE = CloneOptions()


class SecretUsage(StrEnum):
    """What a secret is for: the values of ``usage@type`` that pools and volumes need."""

    VOLUME = "volume"
    CEPH = "ceph"
    ISCSI = "iscsi"


class SecretSource(Protocol):
    """Where the values of secrets come from."""

    def value(self, usage: SecretUsage, ref: SecretRef) -> bytes:
        """Return the value of a secret.

        :raise NoSuchSecret: there is none, or it has no value.
        :raise InvalidArgument: it is for something else.
        :raise StorageError: whoever keeps the secrets does not answer.
        """
        ...

    def find(self, usage: SecretUsage, name: str) -> UUID | None:
        """Return the secret for the thing *name* (a path, a target), None if there is none.

        :raise StorageError: whoever keeps the secrets does not answer.
        """
        ...


class NoSecrets:
    """Nobody keeps secrets."""

    def value(self, usage: SecretUsage, ref: SecretRef) -> bytes:
        """See `SecretSource.value`."""
        which = f"uuid '{ref.uuid}'" if ref.uuid is not None else f"usage '{ref.usage}'"
        raise NoSuchSecret(f"no secret with matching {which}")

    def find(self, usage: SecretUsage, name: str) -> UUID | None:
        """See `SecretSource.find`."""
        return None


#: What an engine without any secrets gives to its backends.
NO_SECRETS = NoSecrets()


@dataclass(frozen=True, slots=True)
class Host:
    """What a backend may know of the engine it serves.

    :param id: names this host and this state root in the files of work under way.
    :param session: an ordinary user's engine: it never changes an owner.
    """

    id: str
    durability: Durability = Durability.FULL
    session: bool = False
    #: version of libvirt whose defaults hold, such as 9000000
    compat_level: int = 9_000_000
    #: where passwords and passphrases come from
    secrets: SecretSource = NO_SECRETS
    #: path of the Python interpreter that has the bindings of Ceph; None: one that is looked for
    rbd_python: str | None = None


@dataclass(frozen=True, slots=True)
class DeviceEvent:
    """What udev tells of a block device, after its rules have run.

    :param action: ``add``, ``remove``, ``change``, ``move``, ``online`` or ``offline``.
    :param name: of the device node, such as ``/dev/sdb``.
    :param path: of the device below ``/sys``.
    :param links: the stable names that lead to it, such as ``/dev/disk/by-path/...``.
    :param properties: the others that udev knows.
    """

    action: str
    name: str
    path: str
    links: tuple[str, ...] = ()
    properties: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a pool type is, for capabilities and checks.

    :param type: the value of ``pool@type``.
    :param source_formats: values of ``source/format``, the default first; empty: it has none.
    :param volume_formats: values of ``target/format`` of its volumes, the default first.
    :param counts: what volumes have allocated is taken from the pool's space; else only `measure`
        and a scan tell what is left.
    """

    type: str
    source_formats: tuple[str, ...] = ()
    volume_formats: tuple[str, ...] = ()
    counts: bool = True


@dataclass(frozen=True, slots=True)
class Figures:
    """What can be told of a pool without a scan.

    :param permissions: of its target.
    :param problem: what is wrong with the target; the other figures say nothing then.
    """

    space: Space
    permissions: Permissions | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Refresh:
    """What one scan found.

    :param volumes: by name. The scan may hand back the very records it was given.
    :param permissions: of the target; None if the type has none.
    """

    volumes: dict[str, VolumeRecord]
    space: Space
    permissions: Permissions | None = None
    problems: tuple[str, ...] = ()


def _no_disk() -> Handle:
    raise Unsupported("storage pool doesn't support reading of volumes as disks")


@dataclass(frozen=True, slots=True)
class ImageSource:
    """The source of a clone, opened by its own backend.

    *handle* is read only and belongs to the caller, who closes it; *path* is for messages.

    :param open_disk: opens it as a guest sees it, see `Transfers.open_disk`; who calls it closes
        what it returns.
    """

    record: VolumeRecord
    handle: Handle
    path: str = ""
    open_disk: Callable[[], Handle] = _no_disk
