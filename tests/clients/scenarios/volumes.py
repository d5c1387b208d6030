"""Every call on volumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.clients.peer import Client, volume_xml

MIB = 1 << 20


def life(client: Client) -> object:
    """Every call on a volume."""
    pool = client.pool("v-life")
    volume = pool.createXML(volume_xml("one", MIB))
    told: dict[str, Any] = {
        "created": _facts(volume),
        "xml": volume.XMLDesc(),
        "pool": volume.storagePoolLookupByVolume().name(),
        "connection": volume.connect() is client.connection,
    }
    told["physical"] = [volume.infoFlags(0), volume.infoFlags(1)]
    told["resize"] = [volume.resize(2 * MIB), volume.info()]
    told["grow by"] = [volume.resize(MIB, 2), volume.info()]
    told["shrink"] = [volume.resize(MIB, 4), volume.info()]
    told["shrink by"] = [volume.resize(MIB // 2, 2 | 4), volume.info()]
    told["allocate"] = [volume.resize(4 * MIB, 1), volume.info()]
    told["wipe"] = [volume.wipe(), volume.info()]
    told["wipe pattern"] = [volume.wipePattern(0), volume.info()]
    told["delete"] = volume.delete()
    for name in ("delete", "info", "XMLDesc", "path", "wipe"):
        told[f"{name}, gone"] = client.error(getattr(volume, name))
    told["resize, gone"] = client.error(volume.resize, MIB)
    told["pool, gone"] = volume.storagePoolLookupByVolume().name()
    pool.destroy()
    told["info, stopped"] = client.error(volume.info)
    pool.undefine()
    told["info, undefined"] = client.error(volume.info)
    return told


def _facts(volume: Any) -> list[Any]:
    return [volume.name(), volume.key(), volume.path(), volume.info()]


def formats(client: Client) -> object:
    """Volumes of each format, as they are made and as a refresh finds them."""
    pool = client.pool("v-formats")
    told: dict[str, Any] = {}
    for format in ("raw", "qcow2", "vmdk", "qcow", "qed", "vdi", "vpc", "dir", "iso"):
        try:
            volume = client.volume(pool, format, 4 * MIB, format)
        except client.libvirt.libvirtError as err:
            told[format] = [err.get_error_code(), err.get_error_message()]
        else:
            told[format] = [_facts(volume), volume.XMLDesc()]
    pool.refresh()
    for volume in pool.listAllVolumes():
        told[f"{volume.name()}, refreshed"] = [_facts(volume), volume.XMLDesc()]
    return told


def options(client: Client) -> object:
    """Options of qcow2 and of all files."""
    pool = client.pool("v-options")
    client.volume(pool, "base", MIB, "qcow2")
    base = client.directory / "v-options/base"
    backing = f"<backingStore><path>{base}</path><format type='qcow2'/></backingStore>"
    targets = {
        "compat": "<compat>1.1</compat>",
        "old": "<compat>0.10</compat>",
        "bad-compat": "<compat>7</compat>",
        "lazy": "<compat>1.1</compat><features><lazy_refcounts/></features>",
        "lazy-old": "<features><lazy_refcounts/></features>",
        "clusters": "<clusterSize unit='KiB'>128</clusterSize>",
        "bad-clusters": "<clusterSize unit='B'>1000</clusterSize>",
        "mode": "<permissions><mode>0600</mode></permissions>",
        "owner": "<permissions><mode>0644</mode><owner>7</owner><group>8</group></permissions>",
        "label": "<permissions><label>virt_image_t</label></permissions>",
        "bad-mode": "<permissions><mode>8</mode></permissions>",
        "nocow": "<nocow/>",
    }
    told = {
        name: _made(client, pool, volume_xml(name, MIB, format="qcow2", target=target))
        for name, target in targets.items()
    }
    tops = {
        "backed": backing,
        "labelled": backing.replace(
            "</backingStore>",
            "<permissions><mode>0644</mode><label>virt_image_t</label></permissions>"
            "</backingStore>",
        ),
        "no-such-base": "<backingStore><path>/nowhere</path><format type='raw'/></backingStore>",
        "no-base-path": "<backingStore/>",
        "source": "<source></source>",
    }
    told |= {
        name: _made(client, pool, volume_xml(name, MIB, format="qcow2", top=top))
        for name, top in tops.items()
    }
    raw = volume_xml("raw-backed", MIB, top=backing)
    told["raw, backed"] = _made(client, pool, raw)
    return told


def _made(client: Client, pool: Any, xml: str, flags: int = 0) -> Any:
    try:
        volume = pool.createXML(xml, flags)
    except client.libvirt.libvirtError as err:
        return [err.get_error_code(), err.get_error_domain(), err.get_error_message()]
    return [_facts(volume), volume.XMLDesc()]


def odd_documents(client: Client) -> object:
    """What programs write: units, other volumes' elements, wrong types."""
    pool = client.pool("v-odd")
    documents = {
        "unit-g": "<volume><name>NAME</name><capacity unit='G'>1</capacity>"
        "<allocation>0</allocation></volume>",
        "unit-b": "<volume><name>NAME</name><capacity unit='B'>512</capacity></volume>",
        "unit-kb": "<volume><name>NAME</name><capacity unit='KB'>4</capacity></volume>",
        "unit-bad": "<volume><name>NAME</name><capacity unit='Q'>4</capacity></volume>",
        "empty-source": "<volume><name>NAME</name><source></source><capacity>5</capacity>"
        "<target/></volume>",
        "others": "<volume type='file'><name>NAME</name><key>/elsewhere/key</key>"
        "<capacity unit='bytes'>4096</capacity><physical unit='bytes'>77</physical>"
        "<target><path>/elsewhere/path</path><format type='raw'/><timestamps>"
        "<atime>1.2</atime></timestamps></target></volume>",
        "type": "<volume type='block'><name>NAME</name><capacity>4096</capacity></volume>",
        "no-capacity": "<volume><name>NAME</name></volume>",
        "text": "<volume><name>NAME</name><capacity>much</capacity></volume>",
        "minus": "<volume><name>NAME</name><capacity>-5</capacity></volume>",
        "huge": "<volume><name>NAME</name><capacity unit='E'>99</capacity></volume>",
        "more-allocation": "<volume><name>NAME</name><capacity>4096</capacity>"
        "<allocation>8192</allocation></volume>",
        "zero": "<volume><name>NAME</name><capacity>0</capacity></volume>",
        "comment": "<!-- made by hand --><volume><name>NAME</name><!-- --><capacity>9</capacity>"
        "</volume>",
    }
    told = {name: _made(client, pool, xml.replace("NAME", name)) for name, xml in documents.items()}
    bad = {
        "empty": "",
        "not xml": "<volume",
        "other root": "<pool/>",
        "no name": "<volume><capacity>5</capacity></volume>",
        "slash": volume_xml("a/b", 5),
        "dots": volume_xml("..", 5),
        "bad format": volume_xml("bad", 5, format="cloud"),
    }
    told |= {name: _made(client, pool, xml) for name, xml in bad.items()}
    told["reflink"] = client.error(pool.createXML, volume_xml("r", 5), 2)
    told["bad flag"] = client.error(pool.createXML, volume_xml("r", 5), 64)
    told["validated"] = _made(client, pool, volume_xml("valid", 4096), 4)
    told["not valid"] = _made(client, pool, volume_xml("r", 5, top="<surprise/>"), 4)
    told["names"] = sorted(pool.listVolumes())
    return told


def exists_already(client: Client) -> object:
    """The text that Vagrant compares, and that of a clone."""
    pool = client.pool("v-exists")
    volume = client.volume(pool, "disk.qcow2", MIB, "qcow2")
    error = client.error(client.volume, pool, "disk.qcow2", MIB)
    assert error == [90, 18, "storage volume 'disk.qcow2' exists already"]
    return {
        "create": error,
        "clone": client.error(pool.createXMLFrom, volume_xml("disk.qcow2", MIB), volume),
    }


def refusals(client: Client) -> object:
    """Sizes, flags and algorithms that cannot be."""
    pool = client.pool("v-refusals")
    volume = client.volume(pool, "v", MIB)
    told: dict[str, Any] = {
        "resize to nothing": client.error(volume.resize, 0),
        "shrink": client.error(volume.resize, 4096),
        "beyond the pool": client.error(volume.resize, 1 << 40, 1),
        "resize, bad flag": client.error(volume.resize, 4096, 8),
        "delete, zeroed": client.error(volume.delete, 1),
        "delete, snapshots": client.error(volume.delete, 2),
        "delete, bad flag": client.error(volume.delete, 4),
        "wipe, bad flag": client.error(volume.wipe, 1),
        "wipe pattern 10": client.error(volume.wipePattern, 10),
        "trim": client.error(volume.wipePattern, 9),
        "info, bad flag": client.error(volume.infoFlags, 2),
        "xml, bad flag": client.error(volume.XMLDesc, 1),
        "list, bad flag": client.error(pool.listAllVolumes, 1),
        "no such volume": client.error(pool.storageVolLookupByName, "nobody"),
        "empty name": client.error(pool.storageVolLookupByName, ""),
        "upload, bad flag": client.error(volume.upload, client.connection.newStream(), 0, 0, 2),
        "download, bad flag": client.error(volume.download, client.connection.newStream(), 0, 0, 2),
        "clone, bad flag": client.error(pool.createXMLFrom, volume_xml("c", MIB), volume, 64),
    }
    told["facts"] = _facts(volume)
    return told


def clones(client: Client) -> object:
    """Clones within a pool and between pools and formats."""
    one, two = client.pool("v-clone-1"), client.pool("v-clone-2")
    raw = client.volume(one, "raw", MIB)
    client.upload(raw, b"storaged" * 1024)
    qcow2 = client.volume(two, "qcow2", MIB, "qcow2")
    told: dict[str, Any] = {}
    for name, pool, xml, source, flags in (
        ("same", one, volume_xml("c1", MIB), raw, 0),
        ("reflink", one, volume_xml("c2", MIB), raw, 2),
        ("other pool", two, volume_xml("c3", MIB), raw, 0),
        ("smaller", two, volume_xml("c4", 4096), raw, 0),
        ("larger", two, volume_xml("c5", 2 * MIB), raw, 0),
        ("qcow2", two, volume_xml("c6", MIB, format="qcow2"), raw, 1),
        ("from qcow2", one, volume_xml("c7", MIB), qcow2, 0),
        ("qcow2 to qcow2", one, volume_xml("c8", MIB, format="qcow2"), qcow2, 0),
        ("bad xml", one, "<volume/>", qcow2, 0),
        ("source's own", two, raw.XMLDesc().replace("<name>raw", "<name>c9"), raw, 0),
    ):
        try:
            clone = pool.createXMLFrom(xml, source, flags)
        except client.libvirt.libvirtError as err:
            told[name] = [err.get_error_code(), err.get_error_message()]
        else:
            told[name] = [_facts(clone), clone.XMLDesc()]
    for pool, name in ((one, "c1"), (two, "c3"), (two, "c4"), (two, "c9")):
        data = Path(pool.storageVolLookupByName(name).path()).read_bytes()
        assert data == b"storaged" * 1024 + bytes(MIB - 8192), name
    larger = Path(two.storageVolLookupByName("c5").path()).read_bytes()
    assert larger == b"storaged" * 1024 + bytes(2 * MIB - 8192)
    told["gone source"] = [raw.delete(), client.error(one.createXMLFrom, volume_xml("x", 5), raw)]
    return told


def look_ups(client: Client) -> object:
    """By key and by path, also after a refresh."""
    conn = client.connection
    pool = client.pool("v-look-ups")
    volume = client.volume(pool, "one", MIB)
    key, path = volume.key(), volume.path()
    for _ in range(2):
        assert conn.storageVolLookupByKey(key).name() == "one"
        assert conn.storageVolLookupByPath(path).name() == "one"
        assert conn.storageVolLookupByPath(path.replace("/one", "///one")).key() == key
        pool.refresh()
    pool.destroy()
    told = {
        "key, stopped": client.error(conn.storageVolLookupByKey, key),
        "path, stopped": client.error(conn.storageVolLookupByPath, path),
    }
    pool.create()
    assert conn.storageVolLookupByKey(key).path() == path
    volume.delete()
    told["key, deleted"] = client.error(conn.storageVolLookupByKey, key)
    told["path, deleted"] = client.error(conn.storageVolLookupByPath, path)
    return told


def one_name_in_two_pools(client: Client) -> object:
    """Volumes of one name are told apart by their pools."""
    pools = [client.pool(f"v-twin-{number}") for number in (1, 2)]
    twins = [client.volume(pool, "twin", MIB * (number + 1)) for number, pool in enumerate(pools)]
    assert [twin.info()[1] for twin in twins] == [MIB, 2 * MIB]
    assert [twin.storagePoolLookupByVolume().name() for twin in twins] == ["v-twin-1", "v-twin-2"]
    twins[0].delete()
    assert pools[1].storageVolLookupByName("twin").info()[1] == 2 * MIB
    return [pool.listVolumes() for pool in pools]


def foreign_files(client: Client) -> object:
    """Files that others put into a pool's directory, and take away."""
    pool = client.pool("v-foreign")
    directory = client.directory / "v-foreign"
    (directory / "file").write_bytes(b"x" * 5000)
    (directory / ".hidden").write_bytes(b"")
    (directory / "folder").mkdir()
    (directory / "link").symlink_to("file")
    (directory / "dangling").symlink_to("nowhere")
    (directory / "with space & <mark>").write_bytes(b"")
    pool.refresh()
    told: dict[str, Any] = {"names": sorted(pool.listVolumes())}
    for volume in pool.listAllVolumes():
        told[volume.name()] = [_facts(volume), volume.XMLDesc()]
    file = pool.storageVolLookupByName("file")
    (directory / "file").write_bytes(b"y" * 9000)
    told["grown"] = file.info()
    (directory / "file").unlink()
    told["vanished"] = [client.error(file.info)[0], client.error(file.XMLDesc)[0]]
    told["vanished, delete"] = file.delete()
    return told
