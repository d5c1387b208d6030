# mypy: allow-untyped-calls, disable-error-code="assignment"
"""Every call on secrets, for libvirt-python and for ours, called as `recording` says."""

from __future__ import annotations

import gc

from tests.libvirt.recording import READONLY, URI, libvirt, show, turn

FIRST = "00000000-0000-4000-8000-000000000001"
OTHER = "00000000-0000-4000-8000-000000000002"


def xml(uuid, usage="", switches=""):
    return f"<secret {switches}><uuid>{uuid}</uuid>{usage}</secret>"


VOLUME = "<usage type='volume'><volume>/x/y</volume></usage>"
TARGET = "<usage type='iscsi'><target>t</target></usage>"


def empty(conn):
    for name in ("numOfSecrets", "listSecrets", "listAllSecrets", "getType"):
        show(f"empty {name}", getattr(conn, name))


def lookups(conn):
    for value in (None, 4, b"x", "x", "x\0y", OTHER, OTHER.replace("-", ""), f" {OTHER}"):
        show(f"uuid string {value!r}", conn.secretLookupByUUIDString, value)
    show("uuid", conn.secretLookupByUUID, b"x" * 16)
    for kind, thing in ((1, None), (1, 5), ("x", "y"), (None, "y"), (1 << 31, "y"), (1, "a\0b")):
        show(f"usage {kind} {thing!r}", conn.secretLookupByUsage, kind, thing)
    for kind in (-1, 0, 1, 5, 6, 99):
        show(f"usage {kind}", conn.secretLookupByUsage, kind, "nothing")
    for flags in (15, 16, -1, "x", None, 1.0, 1 << 40):
        show(f"list {flags!r}", conn.listAllSecrets, flags)


def definitions(conn):
    for document in (None, 5, b"<secret/>", "<secret", "<x/>", "<secret private='q'/>", "a\0b"):
        show(f"define {document!r}", conn.secretDefineXML, document)
    for flags in (1, 2, "x", None, -1, 1 << 40):
        show(f"define flags {flags!r}", conn.secretDefineXML, xml(FIRST, VOLUME), flags)
    show("clash", conn.secretDefineXML, xml(OTHER, VOLUME))
    show("change", conn.secretDefineXML, xml(FIRST, TARGET))


def values(conn):
    secret = show("define", conn.secretDefineXML, xml(FIRST, VOLUME))
    for name in ("UUID", "UUIDString", "usageType", "usageID", "XMLDesc", "value"):
        show(name, getattr(secret, name))
    for value in (None, 5, "text", "\u00e4", b"a\0b", b"", "", bytearray(b"x"), 1.5, b"x" * 65537):
        show(f"set {str(value)[:20]}", secret.setValue, value)
        show("get", secret.value)
    for flags in (1, "x", None, -1, 1 << 40):
        show(f"set flags {flags!r}", secret.setValue, b"x", flags)
        show(f"get flags {flags!r}", secret.value, flags)
        show(f"xml flags {flags!r}", secret.XMLDesc, flags)
    show("private", conn.secretDefineXML, xml(FIRST, VOLUME, "private='yes'"))
    show("get private", secret.value)
    show("public", conn.secretDefineXML, xml(FIRST, VOLUME))
    show("connect", lambda: secret.connect() is conn)
    show("pointer", lambda: type(secret.c_pointer()))
    show("one by uuid", lambda: conn.secretLookupByUUID(secret.UUID()).usageID())
    show("one by usage", lambda: conn.secretLookupByUsage(1, "/x/y").UUIDString())
    show("all", lambda: [each.UUIDString() for each in conn.listAllSecrets()])
    show("names", conn.listSecrets)
    show("number", conn.numOfSecrets)
    show("undefine", secret.undefine)
    for name in ("UUIDString", "XMLDesc", "value", "undefine"):
        show(f"gone {name}", getattr(secret, name))


def reading(conn):
    made = show("define", conn.secretDefineXML, xml(FIRST, VOLUME))
    made.setValue(b"value")
    reader = libvirt.openReadOnly(READONLY)
    seen = show("seen", reader.secretLookupByUUIDString, FIRST)
    show("ro xml", seen.XMLDesc)
    show("ro value", seen.value)
    show("ro value flags", seen.value, 1)
    for value in (b"x", b"", None, b"x" * 70000):
        show("ro set", seen.setValue, value)
    show("ro undefine", seen.undefine)
    for document in ("<secret/>", None):
        show("ro define", reader.secretDefineXML, document)
    show("ro close", reader.close)
    show("ro closed", reader.numOfSecrets)
    for call, args in (
        (reader.secretDefineXML, ("<secret/>",)),
        (reader.secretLookupByUsage, (1, "x")),
        (reader.listAllSecrets, ()),
        (reader.secretEventRegisterAny, (None, 0, print, None)),
        (reader.secretEventDeregisterAny, (0,)),
    ):
        show(f"closed {call.__name__}", call, *args)
    show("still", seen.XMLDesc)
    made.undefine()


def events(conn, other):
    heard = []

    def lifecycle(_conn, secret, event, detail, opaque):
        heard.append([opaque, secret.UUIDString(), secret.usageType(), event, detail])

    def changed(_conn, secret, opaque):
        heard.append([opaque, secret.UUIDString(), secret.usageID()])

    def after(label, count):
        turn(lambda: len(heard) >= count)
        show(label, lambda: sorted(heard, key=str))
        heard.clear()

    show("register", conn.secretEventRegisterAny, None, 0, lifecycle, "all")
    show("register values", conn.secretEventRegisterAny, None, 1, changed, "all")
    show("register twice", conn.secretEventRegisterAny, None, 0, lifecycle, "all")
    show("pools beside them", conn.secretEventDeregisterAny, 77)
    for value in (-1, "x", None, 1 << 31):
        show(f"deregister {value!r}", conn.secretEventDeregisterAny, value)
    first = conn.secretDefineXML(xml(FIRST, VOLUME))
    show("register one", conn.secretEventRegisterAny, first, 0, lifecycle, "one")
    show("register one value", conn.secretEventRegisterAny, first, 1, changed, "one")
    foreign = other.secretLookupByUUIDString(FIRST)
    show("foreign", conn.secretEventRegisterAny, foreign, 0, lifecycle, "foreign")
    after("defined", 1)
    first.setValue(b"x")
    after("changed", 2)
    first.undefine()
    after("undefined", 2)
    for number in (0, 1, 2, 3):
        show("deregister", conn.secretEventDeregisterAny, number)
    show("deregister again", conn.secretEventDeregisterAny, 0)
    conn.secretDefineXML(xml(FIRST)).undefine()
    turn(lambda: bool(heard), 0.2)
    show("nothing more", lambda: heard)


def main():
    libvirt.registerErrorHandler(lambda *_: None, None)
    libvirt.virEventRegisterDefaultImpl()
    conn = libvirt.open(URI)
    other = libvirt.open(URI)
    for part in (empty, lookups, definitions):
        part(conn)
    show("back", lambda: conn.secretLookupByUUIDString(FIRST).undefine())
    values(conn)
    reading(conn)
    events(conn, other)
    show("other close", other.close)
    gc.collect()
    show("close", conn.close)


if __name__ == "__main__":
    main()
