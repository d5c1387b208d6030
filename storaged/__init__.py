"""libvirt's storage driver in pure Python: pools and volumes of disk images on this host.

::

    import storaged

    with storaged.open() as storage:
        pool = storage.ensure_dir_pool("images", "/var/lib/libvirt/images")
        volume = pool.create("web1.qcow2", "20 GiB", format="qcow2")
        print(volume.path, volume.info().allocation)

Names are loaded at their first use, so that importing the package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from storaged.version import VERSION

if TYPE_CHECKING:
    from storaged.access import AccessReport
    from storaged.backend import Backend, Sink, Source, WipeAlgorithm
    from storaged.ensure import Difference, Ensured
    from storaged.errors import (
        AccessDenied,
        ArgumentUnsupported,
        BadArgument,
        Cancelled,
        CommandFailed,
        ConfigUnsupported,
        InternalError,
        InvalidArgument,
        InvalidSecret,
        MissingBackend,
        NameTaken,
        NoSpace,
        NoSuchPool,
        NoSuchSecret,
        NoSuchVolume,
        OperationFailed,
        OperationInvalid,
        OperationUnsupported,
        Overflow,
        PoolBuilt,
        PoolBusy,
        PoolExists,
        ProbeFailed,
        ResourceBusy,
        StorageError,
        SystemFailure,
        TargetChanged,
        Timeout,
        Unsupported,
        VolumeBusy,
        VolumeExists,
        XMLError,
        XMLSchemaError,
        XMLSyntaxError,
    )
    from storaged.events import Event, Lifecycle
    from storaged.formats.checkreport import CheckReport
    from storaged.imagehandle import ConvertWishes
    from storaged.imaging import CloneBacking, Compression, Durability, Inspection
    from storaged.job import Job, JobState, Progress
    from storaged.model import (
        PoolDef,
        PoolInfo,
        PoolRef,
        PoolSource,
        PoolState,
        PoolType,
        Space,
        VolumeDef,
        VolumeInfo,
        VolumeRef,
        VolumeType,
    )
    from storaged.poolhandle import Pool
    from storaged.request import CloneWishes, VolumeOptions
    from storaged.secrethandle import Secret, Secrets
    from storaged.secrets.values import SecretChange, SecretDef, SecretEvent, SecretKind
    from storaged.settings import PoolPolicy
    from storaged.storage import Storage, connect
    from storaged.storage import open_storage as open
    from storaged.volumehandle import Volume
    from storaged.worker import Limits

__version__ = VERSION

#: Where each public name is defined, from the most to the least important.
_HOMES = {
    "open": "storage:open_storage",
    "connect": "storage",
    "Storage": "storage",
    "Pool": "poolhandle",
    "Volume": "volumehandle",
    "Secret": "secrethandle",
    "Secrets": "secrethandle",
    "Job": "job",
    "Progress": "job",
    "JobState": "job",
    "Event": "events",
    "Lifecycle": "events",
    "PoolDef": "model",
    "VolumeDef": "model",
    "VolumeOptions": "request",
    "CloneWishes": "request",
    "ConvertWishes": "imagehandle",
    "PoolSource": "model",
    "PoolInfo": "model",
    "VolumeInfo": "model",
    "PoolRef": "model",
    "VolumeRef": "model",
    "Space": "model",
    "PoolType": "model",
    "PoolState": "model",
    "VolumeType": "model",
    "PoolPolicy": "settings",
    "SecretDef": "secrets.values",
    "SecretKind": "secrets.values",
    "SecretEvent": "secrets.values",
    "SecretChange": "secrets.values",
    "Ensured": "ensure",
    "Difference": "ensure",
    "AccessReport": "access",
    "CheckReport": "formats.checkreport",
    "Inspection": "imaging",
    "WipeAlgorithm": "backend",
    "CloneBacking": "imaging",
    "Compression": "imaging",
    "Durability": "imaging",
    "Sink": "backend",
    "Source": "backend",
    "Backend": "backend",
    "Limits": "worker",
    "StorageError": "errors",
    "InternalError": "errors",
    "CommandFailed": "errors",
    "PoolBusy": "errors",
    "MissingBackend": "errors",
    "Unsupported": "errors",
    "InvalidArgument": "errors",
    "BadArgument": "errors",
    "InvalidSecret": "errors",
    "OperationFailed": "errors",
    "PoolExists": "errors",
    "NoSpace": "errors",
    "TargetChanged": "errors",
    "XMLError": "errors",
    "XMLSyntaxError": "errors",
    "XMLSchemaError": "errors",
    "SystemFailure": "errors",
    "NoSuchPool": "errors",
    "NoSuchVolume": "errors",
    "OperationInvalid": "errors",
    "NameTaken": "errors",
    "VolumeBusy": "errors",
    "NoSuchSecret": "errors",
    "ConfigUnsupported": "errors",
    "Timeout": "errors",
    "ArgumentUnsupported": "errors",
    "ProbeFailed": "errors",
    "PoolBuilt": "errors",
    "Cancelled": "errors",
    "Overflow": "errors",
    "OperationUnsupported": "errors",
    "ResourceBusy": "errors",
    "AccessDenied": "errors",
    "VolumeExists": "errors",
}

__all__ = [  # noqa: RUF022 -- the order is that of the table
    "open",
    "connect",
    "Storage",
    "Pool",
    "Volume",
    "Secret",
    "Secrets",
    "Job",
    "Progress",
    "JobState",
    "Event",
    "Lifecycle",
    "PoolDef",
    "VolumeDef",
    "VolumeOptions",
    "CloneWishes",
    "ConvertWishes",
    "PoolSource",
    "PoolInfo",
    "VolumeInfo",
    "PoolRef",
    "VolumeRef",
    "Space",
    "PoolType",
    "PoolState",
    "VolumeType",
    "PoolPolicy",
    "SecretDef",
    "SecretKind",
    "SecretEvent",
    "SecretChange",
    "Ensured",
    "Difference",
    "AccessReport",
    "CheckReport",
    "Inspection",
    "WipeAlgorithm",
    "CloneBacking",
    "Compression",
    "Durability",
    "Sink",
    "Source",
    "Backend",
    "Limits",
    "StorageError",
    "InternalError",
    "CommandFailed",
    "PoolBusy",
    "MissingBackend",
    "Unsupported",
    "InvalidArgument",
    "BadArgument",
    "InvalidSecret",
    "OperationFailed",
    "PoolExists",
    "NoSpace",
    "TargetChanged",
    "XMLError",
    "XMLSyntaxError",
    "XMLSchemaError",
    "SystemFailure",
    "NoSuchPool",
    "NoSuchVolume",
    "OperationInvalid",
    "NameTaken",
    "VolumeBusy",
    "NoSuchSecret",
    "ConfigUnsupported",
    "Timeout",
    "ArgumentUnsupported",
    "ProbeFailed",
    "PoolBuilt",
    "Cancelled",
    "Overflow",
    "OperationUnsupported",
    "ResourceBusy",
    "AccessDenied",
    "VolumeExists",
    "__version__",
]


if not TYPE_CHECKING:  # a type checker would take any name for one of ours

    def __getattr__(name: str) -> object:
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module 'storaged' has no attribute {name!r}")
        module, _, original = home.partition(":")
        found = getattr(importlib.import_module(f"storaged.{module}"), original or name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted(__all__)
