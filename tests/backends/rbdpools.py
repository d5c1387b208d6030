"""Pools of a real Ceph cluster in an engine of the test's own: their XML, their secret, their end.

::

    with opened(tmp_path / "root", ceph_cluster, ceph_pool) as (storage, pool):
        pool.create("volume", "1 GiB")
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any
from uuid import UUID
from xml.sax.saxutils import quoteattr

from storaged.backend import Durability, Host, SecretUsage
from storaged.backends.rbd import Rbd
from storaged.errors import StorageError
from storaged.model import SecretRef
from storaged.poolhandle import Pool as StoragedPool
from storaged.poolxml import parse_pool
from storaged.secrethandle import Secret
from storaged.storage import Storage, open_storage
from tests.ceph.cluster import Cluster
from tests.ceph.images import Pool

#: The name of a pool of storaged's, if a test gives it none.
NAME = "ceph"
#: The secret with the key of ``client.libvirt``, and what it is for.
SECRET_UUID = "7d3c1f52-0b86-4f41-9c55-3c1b3a0f6e01"
SECRET_USAGE = "client.libvirt secret"
#: Options that let nothing take longer than some seconds, for tests in which something is down.
IMPATIENT: Mapping[str, str] = {
    "client_mount_timeout": "2",
    "rados_mon_op_timeout": "2",
    "rados_osd_op_timeout": "2",
}

_NAMESPACE = "xmlns:rbd='http://libvirt.org/schemas/storagepool/rbd/1.0'"


def secret_xml(uuid: str = SECRET_UUID, usage: str = SECRET_USAGE) -> str:
    """Return the definition of a secret for a Ceph cluster's key."""
    return (
        f"<secret ephemeral='no' private='no'><uuid>{uuid}</uuid>"
        f"<usage type='ceph'><name>{usage}</name></usage></secret>"
    )


def pool_xml(
    cluster: Cluster,
    source: str,
    *,
    name: str = NAME,
    hosts: Iterable[tuple[str, int | None]] | None = None,
    user: str = "libvirt",
    auth: bool | None = None,
    secret: str = f"uuid='{SECRET_UUID}'",
    options: Mapping[str, str] | None = None,
    allocation: str | None = None,
) -> str:
    """Return the definition of an rbd pool.

    :param source: the Ceph pool, with a namespace ``POOL/NAMESPACE``.
    :param hosts: names and ports of monitors; None: the cluster's one.
    :param user: without ``client.``.
    :param auth: whether to authenticate; None: as the cluster does.
    :param secret: the attribute that names it.
    :param options: ``rbd:config_opts``.
    :param allocation: of ``<refresh>``: "default" or "capacity".
    """
    if hosts is None:
        hosts = [(cluster.host, cluster.port)]
    parts = []
    for host, port in hosts:
        ported = "" if port is None else f" port='{port}'"
        parts.append(f"<host name={quoteattr(host)}{ported}/>")
    parts.append(f"<name>{source}</name>")
    if cluster.auth == "cephx" if auth is None else auth:
        parts.append(f"<auth type='ceph' username='{user}'><secret {secret}/></auth>")
    refresh = ""
    if allocation is not None:
        refresh = f"<refresh><volume allocation='{allocation}'/></refresh>"
    given = "".join(
        f"<rbd:option name={quoteattr(key)} value={quoteattr(value)}/>"
        for key, value in (options or {}).items()
    )
    further = f"<rbd:config_opts>{given}</rbd:config_opts>" if options else ""
    return (
        f"<pool type='rbd' {_NAMESPACE}><name>{name}</name>"
        f"<source>{''.join(parts)}</source>{refresh}{further}</pool>"
    )


def source_of(pool: Pool) -> str:
    """Return what a Ceph pool, or a namespace of one, is called in a definition."""
    return f"{pool.name}/{pool.namespace}" if pool.namespace else pool.name


def set_key(storage: Storage, cluster: Cluster, user: str = "client.libvirt") -> Secret:
    """Have an engine know a user's key."""
    secret = storage.secrets.define(secret_xml())
    secret.set_value(base64.b64decode(cluster.key(user)))
    return secret


@contextmanager
def engine(
    root: str | PathLike[str], cluster: Cluster, *, user: str = "libvirt", **how: Any
) -> Iterator[Storage]:
    """Give an engine that knows a user's key; its pools are stopped in the end, and it is closed.

    :param how: what `open_storage` takes.
    """
    how.setdefault("durability", "none")
    storage = open_storage(Path(fspath(root)), **how)
    try:
        if cluster.auth == "cephx":
            set_key(storage, cluster, f"client.{user}")
        yield storage
    finally:
        with suppress(StorageError):
            for pool in storage.pools(active=True):
                pool.stop(force=True)
        storage.close()


def start(storage: Storage, cluster: Cluster, source: Pool | str, **how: Any) -> StoragedPool:
    """Define a pool and start it.

    :param how: what `pool_xml` takes.
    """
    name = source if isinstance(source, str) else source_of(source)
    pool = storage.define_pool(pool_xml(cluster, name, **how), validate=True)
    pool.start()
    return pool


@contextmanager
def opened(
    root: str | PathLike[str],
    cluster: Cluster,
    source: Pool | str,
    *,
    engine_options: Mapping[str, Any] | None = None,
    **how: Any,
) -> Iterator[tuple[Storage, StoragedPool]]:
    """Give an engine and a started pool of a Ceph pool in it; both end with the context.

    :param engine_options: what `open_storage` takes.
    :param how: what `pool_xml` takes.
    """
    user = how.get("user", "libvirt")
    with engine(root, cluster, user=user, **(engine_options or {})) as storage:
        yield storage, start(storage, cluster, source, **how)


def backend_of(pool: StoragedPool) -> Rbd:
    """Return the backend of a pool, as its engine has it."""
    backend = pool._engine._table.by_ref(pool.ref).pool.backend  # type: ignore[attr-defined]
    assert isinstance(backend, Rbd)
    return backend


@dataclass(frozen=True)
class _Keys:
    """Secrets that are the key of one user."""

    key: bytes

    def value(self, usage: SecretUsage, ref: SecretRef) -> bytes:
        """See `SecretSource.value`."""
        assert usage is SecretUsage.CEPH
        return self.key

    def find(self, usage: SecretUsage, name: str) -> UUID | None:
        """See `SecretSource.find`."""
        return None


def made(cluster: Cluster, source: Pool | str, *, host: str = "testhost", **how: Any) -> Rbd:
    """Return a backend without an engine, not started; `Rbd.stop` ends its process.

    :param host: names the host and the state root that it serves.
    :param how: what `pool_xml` takes.
    """
    name = source if isinstance(source, str) else source_of(source)
    user = how.get("user", "libvirt")
    secrets = _Keys(base64.b64decode(cluster.key(f"client.{user}")))
    definition = parse_pool(pool_xml(cluster, name, **how))
    return Rbd(definition, Host(id=host, durability=Durability.NONE, secrets=secrets))
