# mypy: allow-untyped-calls, disable-error-code="assignment"
"""One program for libvirt-python and for ours, called as `recording` says.

It uses every call about storage and prints one line of JSON for each: its label with what it
returned or raised. Sizes of file systems, uuids and times are left out.
"""

from __future__ import annotations

import gc
import sys

from tests.libvirt.recording import HERE, POOL, READONLY, URI, UUID, VOLUME, libvirt, show, turn


def connection(conn):
    for name in ("getType", "isAlive", "isSecure", "isEncrypted", "getHostname", "getVersion"):
        show(name, getattr(conn, name))
    for name in ("listAllDomains", "listAllNetworks", "getInfo", "numOfDomains"):
        show(name, getattr(conn, name))
    show("version", conn.getLibVersion)
    show("uri", lambda: conn.getURI() == URI)
    show("caps", lambda: conn.getCapabilities()[:14])
    show("pool caps", lambda: conn.getStoragePoolCapabilities()[:24])
    show("pool caps flags", conn.getStoragePoolCapabilities, 1)
    show("last", libvirt.virGetLastErrorMessage)
    show("keepalive", conn.setKeepAlive, 5, 3)
    show("unregister close", conn.unregisterCloseCallback)
    show("close callback", conn.registerCloseCallback, print, None)
    show("close callback again", conn.registerCloseCallback, print, None)
    show("unregister close", conn.unregisterCloseCallback)
    show("sources", conn.findStoragePoolSources, "dir", None)
    show("sources type", conn.findStoragePoolSources, "zz", None)
    show("sources null", conn.findStoragePoolSources, None, None)
    show("sources int", conn.findStoragePoolSources, "dir", 5)
    for flags in (1 << 31, -1, "x", 1.0, None, 1 << 40):
        show(f"list {flags}", conn.listAllStoragePools, flags)


def lookups(conn):
    show("by name", conn.storagePoolLookupByName, "p")
    show("by uuid", conn.storagePoolLookupByUUID, bytes.fromhex(UUID.replace("-", "")))
    show("by uuid string", conn.storagePoolLookupByUUIDString, UUID)
    show("by target", conn.storagePoolLookupByTargetPath, f"{HERE}/p/")
    for name in ("Name", "UUIDString", "TargetPath"):
        lookup = getattr(conn, f"storagePoolLookupBy{name}")
        for value in (None, 4, b"x", "x", "x\0y"):
            show(f"{name} {value!r}", lookup, value)
    show("uuid 16", conn.storagePoolLookupByUUID, b"x" * 16)
    for name in ("Key", "Path"):
        for value in (None, 4, "/x"):
            show(f"vol {name} {value!r}", getattr(conn, f"storageVolLookupBy{name}"), value)


def pools(conn):
    show("define null", conn.storagePoolDefineXML, None)
    show("create null", conn.storagePoolCreateXML, None)
    show("define bad", conn.storagePoolDefineXML, "<x/>")
    pool = show("define", conn.storagePoolDefineXML, POOL)
    for name in (
        "name",
        "UUIDString",
        "UUID",
        "autostart",
        "isActive",
        "isPersistent",
        "numOfVolumes",
        "listVolumes",
        "listAllVolumes",
        "refresh",
        "destroy",
    ):
        show(f"inactive {name}", getattr(pool, name))
    show("build", pool.build)
    show("delete", pool.delete)
    show("build", pool.build)
    show("create", pool.create)
    show("create again", pool.create)
    show("build active", pool.build, 12)
    for value in (1, True, 1, "x", 1 << 40, 0):
        show(f"autostart {value}", pool.setAutostart, value)
    show("autostart", pool.autostart)
    show("xml", pool.XMLDesc)
    show("xml flags", pool.XMLDesc, 77)
    show("info", lambda: [pool.info()[0], len(pool.info()), type(pool.info()).__name__])
    show("connect", lambda: pool.connect() is conn)
    show("refresh", pool.refresh)
    show("refresh flags", pool.refresh, 1)
    show("names", conn.listStoragePools)
    show("number", conn.numOfStoragePools)
    show("defined", conn.listDefinedStoragePools)
    show("defined number", conn.numOfDefinedStoragePools)
    show("all", conn.listAllStoragePools)
    show("all active", conn.listAllStoragePools, libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE)
    show("all inactive", conn.listAllStoragePools, libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_INACTIVE)
    return pool


def volumes(conn, pool):
    show("vol null", pool.createXML, None)
    show("vol reflink", pool.createXML, VOLUME % ("b", 1, "raw"), 2)
    volume = show("vol", pool.createXML, VOLUME % ("a.img", 1 << 20, "raw"))
    show("vol exists", pool.createXML, VOLUME % ("a.img", 1 << 20, "raw"))
    show("qcow2", pool.createXML, VOLUME % ("q.qcow2", 1 << 20, "qcow2"), 1)
    for name in ("name", "key", "path", "info", "connect", "storagePoolLookupByVolume", "XMLDesc"):
        show(f"vol {name}", getattr(volume, name))
    show("infoFlags", volume.infoFlags, 1)
    show("infoFlags bad", volume.infoFlags, 8)
    show("lookup", pool.storageVolLookupByName, "a.img")
    show("lookup miss", pool.storageVolLookupByName, "none")
    show("lookup null", pool.storageVolLookupByName, None)
    show("by key", conn.storageVolLookupByKey, volume.key())
    show("by path", conn.storageVolLookupByPath, volume.path())
    show("vols", lambda: sorted(pool.listVolumes()))
    show("all vols", lambda: sorted(each.name() for each in pool.listAllVolumes()))
    show("all vols flags", pool.listAllVolumes, 1)
    show("clone null", pool.createXMLFrom, VOLUME % ("c", 1, "raw"), None)
    show("clone xml null", pool.createXMLFrom, None, volume)
    show("clone", pool.createXMLFrom, VOLUME % ("c.img", 1 << 20, "raw"), volume)
    show("clone exists", pool.createXMLFrom, VOLUME % ("c.img", 1 << 20, "raw"), volume)
    for value in (0, "1", 1.0, 1 << 64, 1 << 21, 1 << 19):
        show(f"resize {value}", volume.resize, value)
    show("shrink", volume.resize, 1 << 20, libvirt.VIR_STORAGE_VOL_RESIZE_SHRINK)
    show("wipe", volume.wipe)
    show("wipe flags", volume.wipe, 1)
    for value in (0, 9, 99, -1):
        show(f"pattern {value}", volume.wipePattern, value)
    show("pattern flags", volume.wipePattern, 0, 1)
    show("delete flags", volume.delete, 7)
    other = pool.storageVolLookupByName("c.img")
    show("delete", other.delete)
    for name in ("info", "path", "XMLDesc", "delete"):
        show(f"gone {name}", getattr(other, name))
    return volume


def streams(conn, volume):
    show("upload null", volume.upload, None, 0, 0)
    stream = conn.newStream()
    calls = (
        ("send", b"x"),
        ("recv", 5),
        ("finish",),
        ("abort",),
        ("recvHole",),
        ("sendHole", 4),
        ("recvFlags", 4, 0),
        ("eventRemoveCallback",),
        ("eventUpdateCallback", 1),
    )
    for name, *args in calls:
        show(f"unopened {name}", getattr(stream, name), *args)
    show("upload", volume.upload, stream, 0, 0)
    show("send", stream.send, b"hello")
    show("no hole", stream.sendHole, 4096)
    show("send much", stream.send, b"h" * 700_000)
    show("finish", stream.finish)
    for name, *args in calls[:3]:
        show(f"ended {name}", getattr(stream, name), *args)
    stream = conn.newStream()
    show("short", volume.upload, stream, 0, 3)
    show("send", stream.send, b"123456789")
    show("finish full", stream.finish)
    show("finish again", stream.finish)
    stream = conn.newStream()
    show("sparse", volume.upload, stream, 0, 0, 1)
    for name, *args in (("send", b"1234"), ("sendHole", 1 << 20), ("send", b"5678"), ("finish",)):
        show(f"sparse {name}", getattr(stream, name), *args)
    stream = conn.newStream()
    show("download", volume.download, stream, 0, 20)
    for size in (6, 600, 600, 600):
        show(f"recv {size}", stream.recv, size)
    show("recv str", stream.recv, "4")
    show("recvFlags bad", stream.recvFlags, 4, 8)
    show("no holes", stream.recvHole)
    show("finish", stream.finish)
    show("abort ended", stream.abort)
    stream = conn.newStream()
    show("beyond", volume.download, stream, 1 << 40, 0)
    show("recv", stream.recv, 6)
    show("abort", stream.abort)
    stream = conn.newStream()
    show("bad flags", volume.download, stream, 0, 0, 8)
    show("after bad flags", volume.download, stream, 0, 5)
    show(
        "recvAll",
        stream.recvAll,
        lambda _s, data, opaque: show("data", lambda: [data, opaque]),
        "o",
    )
    show("finish", stream.finish)
    whole(conn, volume)
    show("foreign", volume.upload, libvirt.open(URI).newStream(), 0, 0)


def whole(conn, volume):
    def boom(*_):
        raise ValueError("mine")

    for name, handler in (("recvAll", boom), ("recvAll", lambda *_: -1)):
        stream = conn.newStream()
        volume.download(stream, 0, 5)
        show(name, getattr(stream, name), handler, None)
        show("after", stream.recv, 3)
    stream = conn.newStream()
    volume.upload(stream, 0, 5)
    pieces = iter([b"abc", b"de", b""])
    show("sendAll", stream.sendAll, lambda *_: next(pieces), None)
    show("finish", stream.finish)
    stream = conn.newStream()
    volume.upload(stream, 0, 0)
    show("sendAll boom", stream.sendAll, boom, None)
    show("after", stream.finish)
    stream = conn.newStream()
    volume.upload(stream, 0, 0, 1)
    sections = iter([(True, 4), (False, 1 << 20), (True, 4), (True, 0)])
    show(
        "sparseSendAll",
        stream.sparseSendAll,
        lambda _s, n, _o: b"x" * n,
        lambda *_: next(sections),
        lambda _s, n, _o: show("skip", lambda: n),
        None,
    )
    show("finish", stream.finish)
    got = []
    stream = conn.newStream()
    volume.download(stream, 0, 0, 1)
    show(
        "sparseRecvAll",
        stream.sparseRecvAll,
        lambda _s, data, _o: got.append(len(data)),
        lambda _s, length, _o: got.append(-length),
        None,
    )
    show("sparse total", lambda: sum(abs(each) for each in got))
    show("finish", stream.finish)


def nonblocking(conn, volume):
    stream = conn.newStream(libvirt.VIR_STREAM_NONBLOCK)
    volume.upload(stream, 0, 0)
    seen = []

    def writable(st, events, opaque):
        seen.append((events, opaque))
        if st.send(b"nonblock") != -2:
            st.eventRemoveCallback()

    show("add", stream.eventAddCallback, libvirt.VIR_STREAM_EVENT_WRITABLE, writable, "o")
    show("add twice", stream.eventAddCallback, libvirt.VIR_STREAM_EVENT_WRITABLE, writable, "o")
    turn(lambda: seen)
    show("seen", lambda: seen[:1])
    show("finish", stream.finish)
    stream = conn.newStream(libvirt.VIR_STREAM_NONBLOCK)
    volume.download(stream, 0, 8)
    got = []

    def readable(st, events, opaque):
        data = st.recv(100)
        if data != -2:
            got.append(data)
        if data == b"":
            st.eventRemoveCallback()

    show("add", stream.eventAddCallback, libvirt.VIR_STREAM_EVENT_READABLE, readable, None)
    turn(lambda: b"" in got)
    show("got", lambda: b"".join(got))
    show("finish", stream.finish)


def without_loop(conn):
    show("no loop", conn.storagePoolEventRegisterAny, None, 0, print, None)
    libvirt.virResetLastError()
    show("no loop handle", libvirt.virEventAddHandle, 0, 1, print, None)
    show("no loop timeout", libvirt.virEventAddTimeout, 0, print, None)
    show("no loop remove", libvirt.virEventRemoveTimeout, 0)
    show("no loop update", libvirt.virEventUpdateTimeout, 0, 0)


def events(conn, pool):
    seen = []
    register = conn.storagePoolEventRegisterAny

    def life(about, event_pool, event, detail, opaque):
        seen.append(
            [about is conn, event_pool.name(), event_pool.UUIDString(), event, detail, opaque]
        )

    def refreshed(about, event_pool, opaque):
        seen.append([about is conn, event_pool.name(), opaque])

    everything = show("register", register, None, 0, life, "all")
    show("register twice", register, None, 0, life, "all")
    rest = [show("register refresh", register, None, 1, refreshed, "refresh")]
    rest.append(show("register pool", register, pool, 0, life, "pool"))
    show("unknown id", conn.storagePoolEventDeregisterAny, 77)
    show("bad id", conn.storagePoolEventDeregisterAny, "x")
    pool.destroy()
    pool.create()
    pool.refresh()

    def told():  # each once: an upload that ended before may be followed by a refresh of its own
        return sorted({str(each) for each in seen})

    turn(lambda: len(told()) >= 5)
    show("seen", told)
    show("deregister", conn.storagePoolEventDeregisterAny, everything)
    show("deregister twice", conn.storagePoolEventDeregisterAny, everything)
    seen.clear()
    pool.destroy()
    turn(lambda: any(len(each) == 6 for each in seen))
    show("seen after", lambda: [each for each in seen if len(each) == 6])
    show("keepalive", conn.setKeepAlive, 5, 3)
    for each in rest:
        show("deregister", conn.storagePoolEventDeregisterAny, each)


def readonly(pool):
    reader = libvirt.openReadOnly(READONLY)
    for name, *args in (
        ("storagePoolCreateXML", "<x/>"),
        ("storagePoolDefineXML", None),
        ("findStoragePoolSources", "dir", None),
        ("findStoragePoolSources", None, None),
    ):
        show(f"ro {name} {args}", getattr(reader, name), *args)
    theirs = reader.storagePoolLookupByName("p")
    for name, *args in (
        ("create",),
        ("build",),
        ("destroy",),
        ("delete",),
        ("undefine",),
        ("refresh",),
        ("setAutostart", 1),
        ("createXML", "<x/>"),
        ("createXML", None),
        ("isActive",),
    ):
        show(f"ro {name}", getattr(theirs, name), *args)
    file = theirs.storageVolLookupByName("a.img")
    for name, *args in (
        ("delete",),
        ("wipe",),
        ("wipePattern", 0),
        ("resize", 0),
        ("upload", reader.newStream(), 0, 0),
        ("download", reader.newStream(), 0, 0),
    ):
        show(f"ro {name}", getattr(file, name), *args)
    show("ro clone", theirs.createXMLFrom, "<x/>", file)
    show("rw clone of ro", pool.createXMLFrom, "<x/>", file)
    show("ro event", reader.storagePoolEventRegisterAny, pool, 0, print, None)


def ending(conn, pool):
    show("destroy", pool.destroy)
    show("undefine", pool.undefine)
    show("gone info", pool.info)
    show("close", conn.close)
    show("name", pool.name)
    show("closed info", pool.info)
    for name in (
        "close",
        "getType",
        "getURI",
        "isAlive",
        "listAllStoragePools",
        "listStoragePools",
        "newStream",
        "c_pointer",
        "listAllDomains",
        "listAllNetworks",
    ):
        show(f"closed {name}", getattr(conn, name))
    show("closed lookup", conn.storagePoolLookupByName, "p")
    show("closed callback", conn.storagePoolEventRegisterAny, None, 0, print, None)
    show("closed keepalive", conn.setKeepAlive, 5, 3)
    with libvirt.open(URI) as last:
        show("with", last.isAlive)
    show("without", last.isAlive)
    another = libvirt.open(URI)
    show("close at once", another.close)


def main():
    libvirt.registerErrorHandler(lambda *_: None, None)
    show("no error", libvirt.virGetLastError)
    show("scheme", libvirt.open, "storage")
    show("int", libvirt.open, 5)
    conn = libvirt.open(URI)
    connection(conn)
    pool = pools(conn)
    lookups(conn)
    volume = volumes(conn, pool)
    streams(conn, volume)
    without_loop(conn)
    readonly(pool)
    del pool, volume
    gc.collect()
    show("close first", conn.close)
    libvirt.virEventRegisterDefaultImpl()
    conn = libvirt.open(URI)
    pool = conn.storagePoolLookupByName("p")
    volume = pool.storageVolLookupByName("a.img")
    nonblocking(conn, volume)
    events(conn, pool)
    pool.create()
    del volume
    ending(conn, pool)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
