# mypy: allow-untyped-calls, disable-error-code="assignment, var-annotated"
"""Rarer calls, for libvirt-python and for ours: identity, credentials, what may not wait.

Called as `recording` says; prints as the main script does.
"""

from __future__ import annotations

import sys

from tests.libvirt.recording import POOL, READONLY, URI, VOLUME, libvirt, show


def asked(credentials, opaque):
    show("asked", lambda: [len(credentials), opaque])
    return 0


def credentials():
    """Nobody is asked. Without a list of kinds libvirt-python ends the process."""
    kinds = [libvirt.VIR_CRED_AUTHNAME, libvirt.VIR_CRED_PASSPHRASE]
    for number, auth in enumerate(
        (
            [kinds, asked],
            [[], asked, "o"],
            [kinds, asked, "o"],
            [kinds, asked, "o", 4],
            [[99], asked, "o"],
            [[-1], asked, "o"],
            [[1 << 40], asked, "o"],
            [kinds, None, "o"],
            [kinds, "no function", "o"],
        )
    ):
        conn = show(f"auth {number}", libvirt.openAuth, URI, auth)
        if conn is not None:
            show("auth alive", conn.isAlive)
    good = [kinds, asked, "o"]
    for flags in (0, 1, 2, 3, 4, 1 << 31, -1, "x", None, 1.0, 1 << 40):
        conn = show(f"auth flags {flags}", libvirt.openAuth, URI, good, flags)
        if conn is not None:
            show("auth writes", conn.storagePoolDefineXML, "<x/>")
    for uri in ("storage", 5, "a\0b"):
        show(f"auth uri {uri!r}", libvirt.openAuth, uri, good)


IDENTITIES = (
    {},
    None,
    5,
    "x",
    [],
    [("user-name", "x")],
    {"user-name": "x"},
    {"user-name": b"x"},
    {"user-name": 5},
    {"user-name": None},
    {"user-name": "a\0b"},
    {"unix-user-id": 0},
    {"unix-user-id": True},
    {"unix-user-id": "0"},
    {"unix-user-id": -1},
    {"unix-user-id": 1.0},
    {"unix-user-id": (1 << 64) - 1},
    {"unix-user-id": 1 << 64},
    {"unix-user-id": None},
    {"process-id": 5},
    {"process-id": -5},
    {"process-id": 1 << 63},
    {"process-id": -(1 << 63)},
    {"process-id": -(1 << 63) - 1},
    {"process-time": 7, "process-id": 7},
    {"group-name": "g", "unix-group-id": 4, "sasl-user-name": "s", "selinux-context": "c"},
    {"x509-distinguished-name": "d"},
    {"system.token": "t"},
    {"nothing": "x"},
    {"nothing": 5},
    {"nothing": None},
    {5: "x"},
    {None: "x"},
    {b"user-name": "x"},
    {"a\0b": "x"},
    {"": "x"},
    {"user-name": "x", "nothing": 4},
    {"nothing": 4, "unix-user-id": "x"},
    {"user-name": "x" * 200},
    {"x" * 79: "x"},
)


def identity():
    """Say for whom a connection works; each in a connection of its own."""
    for number, given in enumerate(IDENTITIES):
        conn = libvirt.open(URI)
        show(f"identity {number} {str(given)[:40]}", conn.setIdentity, given)
        conn.close()
    conn = libvirt.open(URI)
    show("identity", conn.setIdentity, {"user-name": "x"})
    show("identity again", conn.setIdentity, {"user-name": "y"})
    for flags in (1, 1 << 31, -1, "x", None, 1 << 40):
        show(f"identity flags {flags}", conn.setIdentity, {"user-name": "x"}, flags)
    show("still", conn.numOfStoragePools)
    reader = libvirt.openReadOnly(READONLY)
    for given in ({}, {"user-name": "x"}, {"user-name": 5}, {"nothing": 5}, None):
        show(f"ro identity {given}", reader.setIdentity, given)
    conn.close()


def whole(conn, volume):
    """The methods that move everything wait; streams that may not wait refuse.

    There is more to come than lies in any buffer.
    """
    for name, more in (("recvAll", ()), ("sparseRecvAll", (lambda *_: 0,))):
        stream = conn.newStream(libvirt.VIR_STREAM_NONBLOCK)
        volume.download(stream, 0, 0, 1 if more else 0)
        show(f"nonblocking {name}", getattr(stream, name), lambda *_: 0, *more, None)
        show("abort", stream.abort)


def handlers(conn, volume):
    """What handlers return, and what they raise."""

    def boom(*_):
        raise ValueError("mine")

    for arguments in (
        (boom, lambda *_: 0),
        (lambda *_: 0, boom),
        (lambda *_: -1, lambda *_: 0),
        (lambda *_: 0, lambda *_: -1),
    ):
        stream = conn.newStream()
        volume.download(stream, 0, 0, 1)
        show("sparseRecvAll", stream.sparseRecvAll, *arguments, None)
        show("after", stream.abort)
    for arguments in (
        (boom, lambda *_: (True, 4), lambda *_: 0),
        (lambda *_: b"", boom, lambda *_: 0),
        (lambda *_: b"", lambda *_: (False, 4), boom),
        (lambda *_: -1, lambda *_: (True, 4), lambda *_: 0),
        (lambda *_: 0, lambda *_: (True, 4), lambda *_: 0),
        (lambda *_: b"", lambda *_: (False, 4), lambda *_: -1),
        (lambda *_: b"", lambda *_: (False, 4), lambda *_: None),
        (lambda *_: b"", lambda *_: 5, lambda *_: 0),
        (lambda *_: b"", lambda *_: (1, 2, 3), lambda *_: 0),
    ):
        stream = conn.newStream()
        volume.upload(stream, 0, 0, 1)
        show("sparseSendAll", stream.sparseSendAll, *arguments, None)
        show("after", stream.abort)


def bounds(conn, pool):
    """Numbers of events that there are not, and callbacks that cannot be called."""
    for about in (None, pool):
        for event in (-1, 2, 3, 100, 1 << 31, -(1 << 31) - 1, "x", None, 1.0):
            show(f"event {event}", conn.storagePoolEventRegisterAny, about, event, print, None)
    for number in (-1, 5, 1 << 31, "x"):
        show(f"end of event {number}", conn.storagePoolEventDeregisterAny, number)
    for seconds, count in ((0, 0), (-1, 3), (1 << 31, 1), (5, -1), (5, 1 << 32), ("x", 1)):
        show(f"keepalive {seconds} {count}", conn.setKeepAlive, seconds, count)
    for callback in (None, 5):
        show(f"close callback {callback}", conn.registerCloseCallback, callback, None)
        show("no close callback", conn.unregisterCloseCallback)


def main():
    libvirt.registerErrorHandler(lambda *_: None, None)
    libvirt.virEventRegisterDefaultImpl()
    credentials()
    identity()
    conn = libvirt.open(URI)
    pool = conn.storagePoolDefineXML(POOL)
    pool.build()
    pool.create()
    volume = pool.createXML(VOLUME % ("a.img", 1 << 20, "raw"))
    stream = conn.newStream()
    volume.upload(stream, 1 << 19, 0)
    stream.send(b"data")
    stream.finish()
    handlers(conn, volume)
    stream = conn.newStream()
    volume.upload(stream, 0, 0)
    stream.send(b"data" * (4 << 20))
    stream.finish()
    stream = None
    whole(conn, volume)
    bounds(conn, pool)
    volume = None
    pool.destroy()
    pool.undefine()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
