"""Every call on secrets."""

from __future__ import annotations

import threading
import time
from typing import Any

from tests.clients.peer import Client

FIRST = "00000000-0000-4000-8000-000000000001"
SECOND = "00000000-0000-4000-8000-000000000002"
NOBODY = "00000000-0000-4000-8000-00000000000f"


def xml(uuid: str, usage: str = "", **switches: str) -> str:
    given = "".join(f" {name}='{value}'" for name, value in switches.items())
    return f"<secret{given}><uuid>{uuid}</uuid>{usage}</secret>"


def volume(path: str) -> str:
    return (
        f"<description>a &amp; b</description><usage type='volume'><volume>{path}</volume></usage>"
    )


def _facts(secret: Any) -> list[object]:
    return [
        secret.UUID().hex(),
        secret.UUIDString(),
        secret.usageType(),
        secret.usageID(),
        secret.XMLDesc(),
    ]


def life(client: Client) -> object:
    """From the definition to its end."""
    conn = client.connection
    made = conn.secretDefineXML(xml(FIRST, volume("/x/y")))
    found: list[object] = [_facts(made), client.error(made.value)]
    for value in (b"abc\0def", b"\xff" * 65536, "text", b"x"):
        found.append(made.setValue(value))
        found.append(made.value().hex())
    found.append(_facts(conn.secretDefineXML(xml(FIRST, volume("/x/y")), 1)))
    found.append(made.value().hex())  # a new definition leaves it
    found += [_facts(conn.secretLookupByUUIDString(FIRST)), _facts(conn.secretLookupByUUID(
        bytes.fromhex(FIRST.replace("-", ""))))]  # fmt: skip
    found.append(_facts(conn.secretLookupByUsage(1, "/x/y")))
    found.append(made.undefine())
    for call in (made.undefine, made.value, made.XMLDesc, lambda: made.setValue(b"x")):
        found.append(client.error(call))
    return found


def refused(client: Client) -> object:
    conn = client.connection
    made = conn.secretDefineXML(xml(FIRST, volume("/refused")))
    found = [
        client.error(conn.secretDefineXML, document)
        for document in (
            "<secret",
            "<foo/>",
            "<secret ephemeral='x'/>",
            "<secret private='x'/>",
            "<secret><uuid>zz</uuid></secret>",
            "<secret><usage/></secret>",
            "<secret><usage type='bad'/></secret>",
            *(
                f"<secret><usage type='{kind}'/></secret>"
                for kind in ("volume", "ceph", "iscsi", "tls", "vtpm")
            ),
            xml(SECOND, volume("/refused")),
            xml(FIRST, volume("/another")),
            xml(FIRST, "<usage type='ceph'><name>n</name></usage>"),
        )
    ]
    found += [client.error(conn.secretDefineXML, xml(SECOND), flags) for flags in (2, 3, 1 << 31)]
    found += [client.error(call, 1) for call in (made.XMLDesc, made.value)]
    found.append(client.error(made.setValue, b"x", 1))
    found += [client.error(made.setValue, value) for value in (b"", b"x" * 65537, None)]
    found.append(client.error(conn.secretLookupByUUIDString, NOBODY))
    for kind in (0, 1, 2, 6, 99, -1):
        found.append(client.error(conn.secretLookupByUsage, kind, "/nothing"))
    found.append(client.error(conn.secretLookupByUsage, 0, ""))
    found += [client.error(conn.listAllSecrets, flags) for flags in (16, 31, 1 << 31)]
    made.undefine()
    return found


def private(client: Client) -> object:
    """What is private is told to nobody, and stays private."""
    conn = client.connection
    made = conn.secretDefineXML(xml(FIRST, volume("/private"), private="no"))
    made.setValue(b"value")
    conn.secretDefineXML(xml(FIRST, volume("/private"), private="yes"))
    found = [client.error(made.value), client.error(
        conn.secretDefineXML, xml(FIRST, volume("/private"), private="no"))]  # fmt: skip
    found += [made.setValue(b"another"), made.XMLDesc(), made.undefine()]
    return found


def lists(client: Client) -> object:
    conn = client.connection
    made = [
        conn.secretDefineXML(
            f"<secret ephemeral='{ephemeral}' private='{private}'>{usage}</secret>"
        )
        for ephemeral, private, usage in (
            ("no", "no", ""),
            ("no", "yes", "<usage type='none'/>"),
            ("yes", "no", "<usage type='iscsi'><target>t</target></usage>"),
            ("yes", "yes", "<usage type='ceph'><name>c</name></usage>"),
            ("no", "no", "<usage type='tls'><name>l</name></usage>"),
            ("no", "no", "<usage type='vtpm'><name>v</name></usage>"),
        )
    ]
    kinds = {one.UUIDString(): f"{one.usageType()} {one.usageID()}" for one in made}
    found: list[object] = [conn.numOfSecrets()]
    found.append(sorted(kinds[uuid] for uuid in conn.listSecrets()))
    found += [
        sorted(kinds[one.UUIDString()] for one in conn.listAllSecrets(flags)) for flags in range(16)
    ]
    for one in made:
        one.undefine()
    return [*found, conn.numOfSecrets(), conn.listSecrets(), conn.listAllSecrets()]


def readers(client: Client) -> object:
    """Who may only look sees everything but values."""
    made = client.connection.secretDefineXML(xml(FIRST, volume("/readers")))
    made.setValue(b"value")
    conn = client.libvirt.openReadOnly(client.uri)
    seen = conn.secretLookupByUUIDString(FIRST)
    found = [_facts(seen), conn.numOfSecrets(), [_facts(one) for one in conn.listAllSecrets()]]
    for call, arguments in (
        (conn.secretDefineXML, ("<secret/>",)),
        (seen.setValue, (b"x",)),
        (seen.value, ()),
        (seen.value, (1,)),
        (seen.undefine, ()),
    ):
        found.append(client.error(call, *arguments))
    conn.close()
    return [*found, made.value().hex(), made.undefine()]


def connection(client: Client) -> object:
    conn = client.connection
    answers = {"type": conn.getType(), "library": conn.getLibVersion(), "alive": conn.isAlive()}
    socket = client.uri.partition("socket=")[2]
    for place in ("", "session", "nowhere", "system/"):
        call = client.libvirt.open
        answers[place] = client.error(call, f"secret:///{place}?socket={socket}")
    return answers


def told(client: Client) -> object:
    """Events of all secrets and of one, until they are not asked for any more."""
    libvirt = client.libvirt
    libvirt.virEventRegisterDefaultImpl()
    over = threading.Event()

    def turn() -> None:
        while not over.is_set():
            libvirt.virEventRunDefaultImpl()

    watch = libvirt.virEventAddTimeout(50, lambda *_: None, None)
    thread = threading.Thread(target=turn, daemon=True)
    thread.start()
    conn = libvirt.open(client.uri)
    heard: list[list[object]] = []

    def lifecycle(_conn: Any, one: Any, event: int, detail: int, opaque: str) -> None:
        heard.append([opaque, one.UUIDString(), one.usageType(), one.usageID(), event, detail])

    def changed(_conn: Any, one: Any, opaque: str) -> None:
        heard.append([opaque, one.UUIDString(), one.usageType(), one.usageID()])

    def settled(count: int) -> list[list[object]]:
        deadline = time.monotonic() + 20
        while len(heard) < count and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)  # nothing more comes
        found, heard[:] = sorted(heard, key=str), []
        return found

    ids = [conn.secretEventRegisterAny(None, 0, lifecycle, "all")]
    ids.append(conn.secretEventRegisterAny(None, 1, changed, "all"))
    found: list[object] = [client.error(conn.secretEventRegisterAny, None, 0, lifecycle, "again")]
    first = conn.secretDefineXML(xml(FIRST, volume("/told")))
    conn.secretDefineXML(xml(SECOND))
    ids.append(conn.secretEventRegisterAny(first, 0, lifecycle, "one"))
    ids.append(conn.secretEventRegisterAny(first, 1, changed, "one"))
    found.append(settled(2))
    first.setValue(b"x")
    found.append(settled(2))
    conn.secretLookupByUUIDString(SECOND).setValue(b"y")
    found.append(settled(1))
    conn.secretDefineXML(xml(FIRST, volume("/told")))
    found.append(settled(2))
    conn.secretEventDeregisterAny(ids.pop(0))
    conn.secretLookupByUUIDString(SECOND).undefine()
    first.undefine()
    found.append(settled(1))
    found.append(client.error(conn.secretEventDeregisterAny, 99))
    found.append(client.error(conn.secretEventDeregisterAny, -1))
    for number in ids:
        conn.secretEventDeregisterAny(number)
    conn.close()
    over.set()
    thread.join()
    libvirt.virEventRemoveTimeout(watch)
    return found
