"""Every call on connections and pools."""

from __future__ import annotations

import uuid
from typing import Any

from tests.clients.peer import Client


def connection(client: Client) -> object:
    """What a connection says of itself."""
    conn = client.connection
    unsupported = {
        name: client.answer(call)
        for name, call in (
            ("getVersion", conn.getVersion),
            ("getHostname", conn.getHostname),
            ("getInfo", conn.getInfo),
            ("getMaxVcpus", lambda: conn.getMaxVcpus(None)),
            ("getSysinfo", conn.getSysinfo),
            ("listAllDomains", conn.listAllDomains),
            ("listDomainsID", conn.listDomainsID),
            ("numOfDomains", conn.numOfDomains),
            ("lookupByName", lambda: conn.lookupByName("x")),
            ("createXML", lambda: conn.createXML("<domain/>")),
            ("getCPUModelNames", lambda: conn.getCPUModelNames("x86_64")),
            ("getFreeMemory", conn.getFreeMemory),
            ("getCellsFreeMemory", lambda: conn.getCellsFreeMemory(0, 1)),
            ("getMemoryStats", lambda: conn.getMemoryStats(-1)),
            ("getDomainCapabilities", conn.getDomainCapabilities),
            ("baselineCPU", lambda: conn.baselineCPU(["<cpu/>"])),
            ("suspendForDuration", lambda: conn.suspendForDuration(0, 60)),
            ("restore", lambda: conn.restore("/nowhere")),
        )
    }
    assert conn.isAlive() == 1
    assert conn.isEncrypted() == 0
    return {
        "type": conn.getType(),
        "library": conn.getLibVersion(),
        "uri": conn.getURI(),
        "secure": conn.isSecure(),
        "capabilities": conn.getCapabilities(),
        "pool capabilities": conn.getStoragePoolCapabilities(),
        "pool capabilities, bad flag": client.error(conn.getStoragePoolCapabilities, 1),
        **unsupported,
    }


def drivers_that_are_not_here(client: Client) -> object:
    """Calls on networks, interfaces, filters and devices fail and do no harm."""
    conn = client.connection
    errors = {
        name: client.error(call)
        for name, call in (
            ("networks", conn.listAllNetworks),
            ("interfaces", conn.listAllInterfaces),
            ("filters", conn.listAllNWFilters),
            ("devices", conn.listAllDevices),
            ("bindings", conn.listAllNWFilterBindings),
        )
    }
    assert conn.isAlive()
    assert conn.listAllStoragePools() is not None
    return errors


def life(client: Client) -> object:
    """Every call on a pool, through its states."""
    conn = client.connection
    given = str(uuid.UUID(int=0x1000))
    xml = client.pool_xml("life").replace("<target>", f"<uuid>{given}</uuid><target>")
    pool = conn.storagePoolDefineXML(xml)
    assert pool.UUIDString() == given
    assert pool.UUID() == uuid.UUID(given).bytes
    assert pool.connect() is conn
    told: dict[str, Any] = {"defined": _facts(pool), "xml": pool.XMLDesc()}
    for name in ("refresh", "destroy", "listVolumes", "numOfVolumes", "listAllVolumes", "delete"):
        told[f"{name}, inactive"] = client.error(getattr(pool, name))
    told["create, nothing there"] = client.error(pool.create)
    told["build"] = pool.build()
    told["create"] = pool.create()
    told["started"] = _facts(pool)
    told["volumes"] = [pool.numOfVolumes(), pool.listVolumes(), pool.listAllVolumes()]
    for name in ("create", "build", "delete", "undefine"):
        told[f"{name}, active"] = client.error(getattr(pool, name))
    told["autostart"] = [pool.setAutostart(1), pool.setAutostart(1), pool.autostart()]
    told["autostart off"] = [pool.setAutostart(0), pool.setAutostart(0), pool.autostart()]
    told["refresh"] = pool.refresh()
    told["started xml"] = pool.XMLDesc()
    told["pending xml"] = pool.XMLDesc(client.libvirt.VIR_STORAGE_XML_INACTIVE)
    path = client.directory / "life"
    told["look-ups"] = [
        conn.storagePoolLookupByName("life").UUIDString(),
        conn.storagePoolLookupByUUID(pool.UUID()).name(),
        conn.storagePoolLookupByUUIDString(given).name(),
        conn.storagePoolLookupByTargetPath(str(path)).name(),
        conn.storagePoolLookupByTargetPath(f"{path}///").name(),
    ]
    told["destroy"] = pool.destroy()
    told["delete"] = pool.delete()
    told["undefine"] = pool.undefine()
    for name in ("undefine", "create", "info", "XMLDesc", "isActive", "autostart", "refresh"):
        told[f"{name}, gone"] = client.error(getattr(pool, name))
    told["autostart, gone"] = client.error(pool.setAutostart, 1)
    return told


def _facts(pool: Any) -> list[Any]:
    return [pool.name(), pool.isActive(), pool.isPersistent(), pool.autostart(), pool.info()[0]]


def misses(client: Client) -> object:
    """What is not there is not found, with the code that clients look for."""
    conn = client.connection
    nobody = uuid.UUID(int=0xDEAD)
    return {
        "name": client.error(conn.storagePoolLookupByName, "nobody"),
        "odd name": client.error(conn.storagePoolLookupByName, "näßty / \n"),
        "empty name": client.error(conn.storagePoolLookupByName, ""),
        "uuid": client.error(conn.storagePoolLookupByUUIDString, str(nobody)),
        "bad uuid": client.error(conn.storagePoolLookupByUUIDString, "nonsense"),
        "target": client.error(conn.storagePoolLookupByTargetPath, "/nowhere"),
        "odd target": client.error(conn.storagePoolLookupByTargetPath, "//nowhere//"),
        "relative target": client.error(conn.storagePoolLookupByTargetPath, "nowhere"),
        "volume path": client.error(conn.storageVolLookupByPath, "/nowhere/volume"),
        "volume odd path": client.error(conn.storageVolLookupByPath, "/nowhere///volume/"),
        "volume key": client.error(conn.storageVolLookupByKey, "nothing"),
        "empty key": client.error(conn.storageVolLookupByKey, ""),
    }


def transient(client: Client) -> object:
    """A pool without a definition goes when it stops."""
    conn = client.connection
    xml = client.pool_xml("transient")
    told: dict[str, Any] = {"no directory": client.error(conn.storagePoolCreateXML, xml)}
    pool = conn.storagePoolCreateXML(xml, client.libvirt.VIR_STORAGE_POOL_CREATE_WITH_BUILD)
    told["facts"] = _facts(pool)
    told["autostart"] = client.error(pool.setAutostart, 1)
    told["no autostart"] = client.error(pool.setAutostart, 0)
    told["undefine"] = client.error(pool.undefine)
    told["destroy"] = pool.destroy()
    told["afterwards"] = client.error(pool.info)
    pool = conn.storagePoolCreateXML(xml)
    same = client.pool_xml("transient").replace(
        "<target>", f"<uuid>{pool.UUIDString()}</uuid><target>"
    )
    told["again"] = client.error(conn.storagePoolCreateXML, same)
    told["other uuid"] = client.error(conn.storagePoolCreateXML, xml)
    told["defined"] = _facts(conn.storagePoolDefineXML(same))
    told["stopped"] = [pool.destroy(), _facts(pool), pool.undefine()]
    return told


def documents(client: Client) -> object:
    """Descriptions that cannot be, and flags that are none."""
    conn = client.connection
    good = client.pool_xml("documents")
    bad = {
        "empty": "",
        "no xml": "pool",
        "other root": "<volume/>",
        "no type": "<pool><name>x</name></pool>",
        "bad type": "<pool type='cloud'><name>x</name></pool>",
        "no name": "<pool type='dir'><target><path>/x</path></target></pool>",
        "no target": "<pool type='dir'><name>x</name></pool>",
        "slash": good.replace("<name>documents", "<name>a/b"),
        "newline": good.replace("<name>documents", "<name>a\nb"),
        "bad uuid": good.replace("<target>", "<uuid>1</uuid><target>"),
        "bad mode": good.replace("</path>", "</path><permissions><mode>99</mode></permissions>"),
        "bad owner": good.replace("</path>", "</path><permissions><owner>me</owner></permissions>"),
        "no source": "<pool type='logical'><name>x</name></pool>",
        "no host": "<pool type='netfs'><name>x</name><source><dir path='/x'/></source>"
        "<target><path>/x</path></target></pool>",
    }
    told = {name: client.answer(conn.storagePoolDefineXML, xml) for name, xml in bad.items()}
    for pool in conn.listAllStoragePools(client.libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_INACTIVE):
        if pool.name() in {"x", "documents"}:
            pool.undefine()
    told |= {
        f"{name}, created": client.answer(conn.storagePoolCreateXML, xml)
        for name, xml in bad.items()
        if name != "newline"  # libvirt creates it
    }
    told["define, bad flag"] = client.error(conn.storagePoolDefineXML, good, 2)
    told["create, bad flag"] = client.error(conn.storagePoolCreateXML, good, 8)
    pool = conn.storagePoolDefineXML(good)
    for name in ("build", "create", "delete", "refresh", "XMLDesc"):
        told[f"{name}, bad flag"] = client.error(getattr(pool, name), 1 << 20)
    told["both overwrites"] = client.error(pool.build, 12)
    told["delete, zeroed"] = client.error(pool.delete, 1)
    told["list, bad flag"] = client.error(conn.listAllStoragePools, 1 << 25)
    clash = good.replace("<name>documents", "<name>clash")
    told["same target"] = client.error(conn.storagePoolDefineXML, clash)
    told["same name"] = client.error(conn.storagePoolDefineXML, good)
    other = clash.replace("<target>", f"<uuid>{pool.UUIDString()}</uuid><target>")
    told["same uuid"] = client.error(conn.storagePoolDefineXML, other)
    pool.undefine()
    return told


def lists(client: Client) -> object:
    """Lists of pools, by all filters."""
    conn = client.connection
    conn.storagePoolDefineXML(client.pool_xml("l-off"))
    conn.storagePoolCreateXML(client.pool_xml("l-transient"), 1)
    client.pool("l-on").setAutostart(1)
    told: dict[str, Any] = {
        str(flags): _ours(pool.name() for pool in conn.listAllStoragePools(flags))
        for flags in [1 << bit for bit in range(20)]
        + [0, 3, 2 | 16, 1 | 16, 4 | 8, 1 | 8, 2 | 32 | 64, 3 | 64 | 256, 16 | 32, 1 | 4 | 256]
    }
    told["active"] = _ours(conn.listStoragePools())
    told["inactive"] = _ours(conn.listDefinedStoragePools())
    assert conn.numOfStoragePools() == len(conn.listStoragePools())
    assert conn.numOfDefinedStoragePools() == len(conn.listDefinedStoragePools())
    for name in ("l-transient", "l-on"):
        conn.storagePoolLookupByName(name).destroy()
    for name in ("l-off", "l-on"):
        conn.storagePoolLookupByName(name).undefine()
    return told


def _ours(names: Any) -> list[str]:
    return sorted(name for name in names if name.startswith("l-"))


def redefinition(client: Client) -> object:
    """A definition of a running pool waits until it stops."""
    conn = client.connection
    pool = client.pool("redefined")
    xml = client.pool_xml("redefined").replace(
        "<target>", f"<uuid>{pool.UUIDString()}</uuid><target>"
    )
    inactive = client.libvirt.VIR_STORAGE_XML_INACTIVE
    conn.storagePoolDefineXML(xml.replace("/redefined<", "/moved<"))
    told: dict[str, Any] = {"live": _path(pool.XMLDesc()), "pending": _path(pool.XMLDesc(inactive))}
    pool.destroy()
    told["stopped"] = _path(pool.XMLDesc())
    told["by its new target, stopped"] = client.error(
        conn.storagePoolLookupByTargetPath, f"{client.directory}/moved"
    )
    pool.undefine()
    return told


def _path(xml: str) -> str:
    return xml.partition("<path>")[2].partition("</path>")[0]


def finding_sources(client: Client) -> object:
    """Discovery, as far as a machine without servers answers."""
    find = client.connection.findStoragePoolSources
    return {
        "dir": client.error(find, "dir", None),
        "unknown": client.error(find, "cloud", None),
        "rbd": client.error(find, "rbd", None),
        "scsi": client.error(find, "scsi", None),
        "netfs, no host": client.error(find, "netfs", None),
        "netfs, bad xml": client.error(find, "netfs", "<source"),
        "netfs, empty host": client.error(find, "netfs", "<source><host/></source>"),
        "iscsi, no host": client.error(find, "iscsi", None),
        "bad flag": client.error(find, "netfs", None, 1),
    }


def read_only(client: Client) -> object:
    """A connection that may only look."""
    pool = client.pool("readonly")
    client.volume(pool, "v", 4096)
    conn = client.libvirt.openReadOnly(client.uri)
    pool = conn.storagePoolLookupByName("readonly")
    volume = pool.storageVolLookupByName("v")
    xml = client.pool_xml("other")
    told: dict[str, Any] = {
        "define": client.error(conn.storagePoolDefineXML, xml),
        "create xml": client.error(conn.storagePoolCreateXML, xml),
        "find": client.error(conn.findStoragePoolSources, "netfs", None),
    }
    for name in ("create", "build", "destroy", "delete", "undefine", "refresh"):
        told[name] = client.error(getattr(pool, name))
    told["autostart"] = client.error(pool.setAutostart, 1)
    told["new volume"] = client.error(pool.createXML, "<volume/>")
    told["clone"] = client.error(pool.createXMLFrom, "<volume/>", volume)
    for name in ("delete", "wipe"):
        told[f"volume {name}"] = client.error(getattr(volume, name))
    told["volume wipe pattern"] = client.error(volume.wipePattern, 0)
    told["volume resize"] = client.error(volume.resize, 8192)
    told["upload"] = client.error(volume.upload, conn.newStream(), 0, 0)
    told["download"] = client.error(volume.download, conn.newStream(), 0, 0)
    told["looks"] = [pool.info()[0], pool.listVolumes(), volume.info(), volume.path()]
    assert conn.listAllStoragePools()
    assert conn.getCapabilities()
    assert conn.getStoragePoolCapabilities()
    conn.close()
    return told


def contexts(client: Client) -> object:
    """Connections close when nothing refers to them any more, and closed ones do nothing."""
    with client.connect() as conn:
        assert conn.isAlive()
        assert conn.numOfStoragePools() >= 0
    conn = client.connect()
    remaining = conn.close()
    return {"remaining": remaining}
