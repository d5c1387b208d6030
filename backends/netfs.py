"""Pool type netfs: a directory of a server is mounted on the target, by NFS, Gluster or CIFS.

libvirt's behaviour. Where the server takes root's rights away (NFS with root_squash), files are
made, opened and removed as the user whom they belong to, see `storaged.backends._rights`.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any, ClassVar

from storaged.backend import Descriptor, FindsSources, Host
from storaged.backends._exports import find_exports
from storaged.backends._local import FILE_FORMATS
from storaged.backends._mount import MountedTarget
from storaged.errors import ConfigUnsupported, InvalidArgument
from storaged.job import Job
from storaged.model import PoolSource
from storaged.mounts import Mount
from storaged.traits import PoolType, traits_of

_NFS = ("nfs", "nfs4")
_CIFS = ("cifs", "smb3")


class Netfs(MountedTarget, FindsSources):
    """A directory of a server; its options are those of libvirt: an NFS mount stays a hard one."""

    descriptor: ClassVar[Descriptor] = Descriptor(
        "netfs", traits_of(PoolType.NETFS).source_formats, FILE_FORMATS
    )
    mount_timeout: ClassVar[float] = 45.0
    watch_every: ClassVar[float] = 2.0

    @classmethod
    def find_sources(
        cls, spec: PoolSource | None, host: Host, job: Job[Any]
    ) -> tuple[PoolSource, ...]:
        if spec is None:
            raise InvalidArgument("hostname must be specified for netfs sources")
        if len(spec.hosts) != 1:
            raise ConfigUnsupported("Expected exactly 1 host for the storage pool")
        if spec.hosts[0].name.startswith("-"):
            raise InvalidArgument(f"host name '{spec.hosts[0].name}' begins with a dash")
        return find_exports(spec.hosts[0], job)

    def check_source(self) -> None:
        source = self.definition.source
        if len(source.hosts) != 1:
            raise ConfigUnsupported("expected exactly 1 host for the storage pool")
        if not source.hosts[0].name:
            raise ConfigUnsupported("missing source host")
        if not source.dir:
            raise ConfigUnsupported("missing source path")

    def mount_source(self) -> str:
        source = self.definition.source
        host = source.hosts[0].name
        if ":" in host and not host.startswith("["):
            host = f"[{host}]"  # an IPv6 address
        if source.format == "cifs":
            return f"//{host}/{(source.dir or '').lstrip('/')}"
        return f"{host}:{source.dir}"

    def mount_type(self) -> str | None:
        kind = self.definition.source.format
        return None if kind == "auto" else kind

    def own_options(self) -> tuple[str, ...]:
        source = self.definition.source
        if source.protocol:
            return (f"nfsvers={source.protocol}",)
        if source.format == "glusterfs":
            return ("direct-io-mode=1",)
        return ("guest",) if source.format == "cifs" else ()

    def is_source(self, mount: Mount) -> bool:
        # a cifs mount may show where in the share it begins
        below = mount.type in _CIFS and mount.source.endswith(mount.root)
        return _same(mount.source, self.mount_source()) and (mount.root == "/" or below)

    def force_options(self, mount: Mount) -> tuple[str, ...]:
        return ("-f",) if mount.type in _NFS else ()


def _same(source: str, other: str) -> bool:
    """Compare two sources; file systems drop or add a slash where none matters."""
    return _parts(source) == _parts(other)


def _parts(source: str) -> tuple[str, str]:
    if source.startswith("//"):
        host, _, path = source[2:].partition("/")
    elif ":/" in source:
        host, _, path = source.partition(":/")
    else:
        host, _, path = source.rpartition(":")
    return _host(host), path.strip("/")


def _host(name: str) -> str:
    """Return a host's name, or its address, in the one way that it is compared in."""
    try:
        return ip_address(name.strip("[]")).compressed
    except ValueError:
        return name.lower()
