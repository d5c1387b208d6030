"""What particular programs do with the interface that no other does."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from tests.clients.peer import Client, volume_xml

MIB = 1 << 20


def progress_of_a_creation(client: Client) -> object:
    """virtinst looks a volume up and asks for its info while it is made, on one connection.

    Until it is there, a look-up answers "not found"; then info answers, whatever the state.
    """
    pool = client.pool("h-progress")
    seen: list[Any] = []
    ended = threading.Event()

    def watch(name: str) -> None:
        while not ended.wait(0.002):
            try:
                seen.append(pool.storageVolLookupByName(name).info()[1])
            except client.libvirt.libvirtError as err:
                seen.append(-err.get_error_code())

    big = 96 * MIB
    xml = f"<volume><name>NAME</name><capacity>{big}</capacity></volume>"
    told: list[Any] = []
    for name in ("full", "clone"):
        ended.clear()
        watcher = threading.Thread(target=watch, args=(name,))
        watcher.start()
        if name == "full":
            volume = pool.createXML(xml.replace("NAME", name))
        else:
            volume = pool.createXMLFrom(xml.replace("NAME", name), volume)
        ended.set()
        watcher.join()
        assert set(seen) <= {-50, big}, set(seen)
        told.append([volume.info(), Path(volume.path()).stat().st_size])
        seen.clear()
    for volume in pool.listAllVolumes():
        volume.delete()
    return told


def many_connections(client: Client) -> object:
    """Ansible connects anew for each task."""
    pool = client.pool("h-many")
    client.volume(pool, "v", MIB)
    answers = set()
    for _ in range(44):
        conn = client.connect()
        answers.add(len(conn.storagePoolLookupByName("h-many").listVolumes()))
        conn.close()
    return sorted(answers)


def closed_with_references(client: Client) -> object:
    """Programs that end without closing."""
    client.pool("h-references")
    for _ in range(20):
        conn = client.connect()
        pool = conn.storagePoolLookupByName("h-references")
        assert conn.close() == 1
        assert pool.isActive() == 1
    return client.connection.storagePoolLookupByName("h-references").isActive()


def guest_image_tools(client: Client) -> object:
    """virt-manager's default pool: looked for, defined, built where a directory is, started."""
    (client.directory / "h-default").mkdir()
    missing = client.error(client.connection.storagePoolLookupByName, "h-default")
    pool = client.connection.storagePoolDefineXML(client.pool_xml("h-default"))
    pool.build(0)
    pool.create(0)
    pool.setAutostart(True)
    return [missing, pool.isActive(), pool.autostart()]


def path_on_a_command_line(client: Client) -> object:
    """virtinst: by path, not there; refresh; there."""
    conn = client.connection
    pool = client.pool("h-path")
    file = client.directory / "h-path/new.img"
    first = client.error(conn.storageVolLookupByPath, str(file))
    assert first[0] == 50
    file.write_bytes(bytes(MIB))
    pool.refresh(0)
    volume = conn.storageVolLookupByPath(str(file))
    return [first, volume.info()]


def terraform(client: Client) -> object:
    """Everything through the volume's key, errors on the way ignored."""
    conn = client.connection
    pool = conn.storagePoolDefineXML(client.pool_xml("h-terraform"), 0)
    pool.build(0)
    pool.setAutostart(1)
    pool.create(0)
    pool.refresh(0)
    volume = pool.createXML(volume_xml("disk", MIB, target="<permissions><mode>0600</mode>"
                                       "</permissions>"), 0)  # fmt: skip
    found = conn.storageVolLookupByKey(volume.key())
    xml = found.XMLDesc(0)
    assert "<capacity unit='bytes'>1048576</capacity>" in xml
    assert "<mode>0600</mode>" in xml
    found.delete(0)
    gone = client.error(conn.storageVolLookupByKey, volume.key())
    pool.destroy()
    pool.delete(0)
    pool.undefine()
    return [xml, gone]


def cockpit(client: Client) -> object:
    """Everything in parallel on one connection: each pool by its UUID, each volume by its key."""
    conn = client.connection
    pool = client.pool("h-cockpit")
    keys = [client.volume(pool, f"v{number:02}", MIB).key() for number in range(30)]
    wrong: list[Any] = []

    def show(key: str) -> None:
        owner = conn.storagePoolLookupByUUIDString(pool.UUIDString())
        volume = conn.storageVolLookupByKey(key)
        shown = [owner.isActive(), volume.key(), volume.infoFlags(0)[1]]
        if shown != [1, key, MIB] or volume.name() not in volume.XMLDesc():
            wrong.append([key, shown])

    threads = [threading.Thread(target=show, args=(key,)) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong


def calls_beside_a_long_one(client: Client) -> object:
    """A wipe on one connection does not hold up a question on the same one."""
    pool = client.pool("h-long")
    volume = client.volume(pool, "long", 200 * MIB)
    other = client.volume(pool, "other", MIB)
    worker = threading.Thread(target=volume.wipe)
    worker.start()
    slowest = 0.0
    while worker.is_alive():
        start = time.monotonic()
        assert other.info()[1] == MIB
        assert pool.isActive()
        slowest = max(slowest, time.monotonic() - start)
    worker.join()
    assert slowest < 2.0
    size = volume.info()[1]
    volume.delete()
    return size


def made_for_a_restart(client: Client) -> object:
    """Pools and volumes that the next daemon must find."""
    conn = client.connection
    kept = client.pool("kept")
    kept.setAutostart(1)
    volumes = [client.volume(kept, name, MIB, name) for name in ("raw", "qcow2", "vmdk")]
    client.pool("stopped").destroy()
    conn.storagePoolCreateXML(client.pool_xml("fleeting"), 1)
    client.volume(conn.storagePoolLookupByName("fleeting"), "v", 4096)
    return [volume.key() for volume in volumes]


def found_after_a_restart(client: Client, *keys: str) -> object:
    """What was there is there, under the same keys."""
    conn = client.connection
    kept = conn.storagePoolLookupByName("kept")
    for key in keys:
        assert conn.storageVolLookupByKey(key).key() == key
        assert conn.storageVolLookupByPath(key).key() == key
    told: dict[str, Any] = {
        "kept": [kept.isActive(), kept.isPersistent(), kept.autostart()],
        "volumes": {volume.name(): volume.info() for volume in kept.listAllVolumes()},
        "xml": kept.XMLDesc(),
        "pools": sorted(pool.name() for pool in conn.listAllStoragePools()),
        "stopped": conn.storagePoolLookupByName("stopped").isActive(),
        "fleeting": conn.storagePoolLookupByName("fleeting").listVolumes(),
    }
    return told
