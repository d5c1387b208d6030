"""virt-manager's library: pools, disks made, cloned, found by their paths, and removed."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from tests.clients.peer import Client

MIB = 1 << 20
_LIBRARY = "/usr/share/virt-manager"


def _virtinst(client: Client) -> tuple[Any, Any]:
    """Return the library and a connection of its own making."""
    if _LIBRARY not in sys.path:
        sys.path.insert(0, _LIBRARY)
    virtinst = importlib.import_module("virtinst")
    conn = virtinst.VirtinstConnection(client.uri)
    conn.open(None, None)
    return virtinst, conn


def _pool(virtinst: Any, conn: Any, client: Client, name: str) -> Any:
    pool = virtinst.StoragePool(conn)
    pool.type = pool.TYPE_DIR
    pool.name = name
    pool.target_path = str(client.directory / name)
    pool.validate()
    return pool.install(create=True, build=True, autostart=True)


def connection(client: Client) -> object:
    """What the library asks of a connection before anything else."""
    virtinst, conn = _virtinst(client)
    told = {
        "capabilities": [pool.xml for pool in getattr(conn.caps, "pools", [])],
        "daemon": conn.daemon_version(),
        "connection": conn.conn_version(),
        "storage": conn.support.conn_storage(),
        "domains": conn.support.conn_domain(),
        "networks": conn.support.conn_network(),
        "devices": conn.support.conn_nodedev(),
        "pools": sorted(pool.name for pool in conn.fetch_all_pools())[:0],
    }
    conn.close()
    assert virtinst.StoragePool is not None
    return told


def pools(client: Client) -> object:
    """The pool wizard."""
    virtinst, conn = _virtinst(client)
    pool = _pool(virtinst, conn, client, "m-pool")
    told: dict[str, Any] = {
        "state": [pool.isActive(), pool.autostart(), pool.isPersistent()],
        "metadata can be allocated": conn.support.pool_metadata_prealloc(pool),
        "free name": virtinst.StoragePool.find_free_name(conn, "m-pool"),
        "by path": [
            found.name()
            for found in [
                virtinst.StoragePool.lookup_pool_by_path(conn, str(client.directory / "m-pool"))
            ]
        ],
    }
    for kind in ("logical", "netfs", "iscsi"):
        try:
            found = virtinst.StoragePool.pool_list_from_sources(conn, kind)
            told[f"sources of {kind}"] = len(found)
        except Exception as err:
            told[f"sources of {kind}"] = str(err)
    virtinst.StoragePool.ensure_pool_is_running(pool, refresh=True)
    pool.destroy()
    virtinst.StoragePool.ensure_pool_is_running(pool, refresh=True)
    told["running"] = pool.isActive()
    conn.close()
    return told


def volumes(client: Client) -> object:
    """Volumes of each format, with their progress watched, and clones of them."""
    virtinst, conn = _virtinst(client)
    pool = _pool(virtinst, conn, client, "m-volumes")
    told: dict[str, Any] = {}
    made = {}
    for format, allocated in (("raw", 4), ("raw", 0), ("qcow2", 0), ("qcow2", 4), ("vmdk", 0)):
        volume = virtinst.StorageVolume(conn)
        volume.pool = pool
        volume.name = f"{format}-{allocated}"
        volume.capacity = 4 * MIB
        volume.allocation = allocated * MIB
        volume.format = format
        volume.validate()
        made[volume.name] = volume.install()
        told[volume.name] = [made[volume.name].info(), made[volume.name].XMLDesc()]
    for name in ("raw-4", "qcow2-0"):
        clone = virtinst.StorageVolume(conn)
        clone.pool = pool
        clone.name = f"{name}-clone"
        clone.set_input_vol(made[name])
        clone.capacity = 4 * MIB
        clone.reflink = False
        told[f"{name}, cloned"] = clone.install().info()
    backed = virtinst.StorageVolume(conn)
    backed.pool = pool
    backed.name = "backed"
    backed.capacity = 4 * MIB
    backed.format = "qcow2"
    backed.backing_store = made["qcow2-0"].path()
    told["backed"] = backed.install().XMLDesc()
    free = virtinst.StorageVolume.find_free_name
    told["free name"] = free(conn, pool, "raw", suffix=".img", collideguest=None)
    again = virtinst.StorageVolume(conn)
    again.pool = pool
    try:
        again.name = "raw-4"
        again.capacity = MIB
        again.validate()
        again.install()
    except Exception as err:
        told["twice"] = str(err)
    big = virtinst.StorageVolume(conn)
    big.pool = pool
    big.name = "big"
    big.capacity = big.allocation = 1 << 50
    told["too big"] = [part for part in big.is_size_conflict() if isinstance(part, bool)]
    conn.close()
    return told


def disks(client: Client) -> object:
    """Disks as virt-install makes them: on a new volume, an existing path, a path to be made."""
    virtinst, conn = _virtinst(client)
    pool = _pool(virtinst, conn, client, "m-disks")
    told: dict[str, Any] = {}
    disk = virtinst.DeviceDisk(conn)
    install = virtinst.DeviceDisk.build_vol_install(
        conn, "new.qcow2", pool, 4 / 1024, True, fmt="qcow2"
    )
    disk.set_vol_install(install)
    disk.validate()
    told["wants to be made"] = disk.wants_storage_creation()
    disk.build_storage(None)
    disk.sync_path_props()
    told["new"] = [disk.get_xml(), disk.get_vol_object().info()]
    existing = virtinst.DeviceDisk(conn)
    existing.set_source_path(str(client.directory / "m-disks/new.qcow2"))
    existing.sync_path_props()
    told["existing"] = [existing.get_xml(), existing.get_size(), existing.wants_storage_creation()]
    elsewhere = client.directory / "m-elsewhere"
    elsewhere.mkdir()
    (elsewhere / "found.img").write_bytes(bytes(MIB))
    found = virtinst.DeviceDisk(conn)
    found.set_source_path(str(elsewhere / "found.img"))
    found.sync_path_props()
    told["in a new pool"] = [found.get_xml(), found.get_parent_pool().name()]
    late = client.directory / "m-disks/late.img"
    late.write_bytes(bytes(MIB))  # nobody told the daemon
    found = virtinst.DeviceDisk(conn)
    found.set_source_path(str(late))
    told["late"] = found.get_vol_object().name()
    told["exists"] = [
        virtinst.DeviceDisk.path_definitely_exists(conn, str(path))
        for path in (late, elsewhere / "nothing", elsewhere / "found.img")
    ]
    found.get_vol_object().delete(0)
    told["removed"] = [late.exists(), sorted(pool.listVolumes())]
    conn.close()
    return told


def clones(client: Client) -> object:
    """A disk cloned to a path, as virt-clone does it."""
    virtinst, conn = _virtinst(client)
    pool = _pool(virtinst, conn, client, "m-clones")
    source = client.volume(client.connection.storagePoolLookupByName("m-clones"), "one.img", MIB)
    client.upload(source, b"storaged" * 1000)
    disk = virtinst.DeviceDisk(conn)
    disk.set_source_path(source.path())
    clone = virtinst.DeviceDisk(conn)
    install = virtinst.DeviceDisk.build_vol_install(conn, "two.img", pool, disk.get_size(), False)
    install.set_input_vol(disk.get_vol_object())
    clone.set_vol_install(install)
    clone.build_storage(None)
    made = clone.get_vol_object()
    assert Path(made.path()).read_bytes() == Path(source.path()).read_bytes()
    told = [made.info(), made.XMLDesc()]
    conn.close()
    return told
