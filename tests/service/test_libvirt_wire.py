"""The same calls, records and all, to libvirt's own daemon and to a session: the same answers.

Errors are compared field by field, replies as whole records. What differs on purpose stands in
`DIFFERENT`, each with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storaged.errors import StorageError
from storaged.job import Pending
from storaged.rpc import remote, remoteerror
from storaged.rpc import storage as rpc
from storaged.rpc.program import AnyProcedure
from storaged.rpc.record import Record, Void
from storaged.rpc.storage import StoragePool, StorageVol
from storaged.rpc.typedparam import ParamType, TypedParam
from storaged.service import Identity, Service
from tests.doubles import eventually
from tests.service.conftest import NOWHERE, Peer
from tests.service.wire import Wire, connected
from tests.storaged.libvirtd import Libvirtd, libvirtd

UUID = bytes(range(1, 17))
P, V, NO = StoragePool("p", UUID), StorageVol("p", "v", ""), StorageVol("p", "no", "")
UNKNOWN = StoragePool("unknown", UUID)

#: name of the step, and why its answers differ
DIFFERENT = {
    "validate volume": "libvirt's validator is another one: it has other words for the same fault",
    "wipe nnsa": "patterns are written by ourselves: no tool of another package is needed",
    "resize huge": "refused before the file is touched, because no file can be so large",
    "resize gone": "the volume is looked at before anything is tried",
    "wipe gone": "it is opened below the pool's directory, and the text is of that",
    "upload gone": "it is opened below the pool's directory, and the text is of that",
    "download gone": "it is opened below the pool's directory, and the text is of that",
    "clone gone": "the volume is looked at before anything is tried",
}


def pool_xml(target: Path, name: str = "p", uuid: bytes = UUID) -> str:
    return (
        f"<pool type='dir'><name>{name}</name><uuid>{uuid.hex()}</uuid>"
        f"<target><path>{target}</path></target></pool>"
    )


def volume(name: str, capacity: int = 4096, allocation: int | None = 0) -> str:
    given = "" if allocation is None else f"<allocation>{allocation}</allocation>"
    return f"<volume><name>{name}</name><capacity>{capacity}</capacity>{given}</volume>"


def text(name: str, value: str) -> TypedParam:
    return TypedParam(name, (ParamType.STRING, value))


Step = tuple[str, AnyProcedure, tuple[Any, ...]]


def sweep(name: str, procedure: AnyProcedure, *args: Any) -> list[Step]:
    """Return steps with each flag that is none, put behind the other arguments."""
    return [(f"{name} {1 << bit:#x}", procedure, (*args, 1 << bit)) for bit in range(3, 32, 4)]


def steps(target: Path) -> Iterator[Step]:
    """Yield the calls, in an order that brings pools and volumes into many states."""
    yield from _connection()
    yield from _undefined(target)
    yield from _inactive(target)
    yield from _active(target)
    yield from _volumes(target)
    yield from _end()


def _connection() -> Iterator[Step]:
    for number in (-1, 0, 8, 14, 15, 16, 99):
        yield "feature", remote.SUPPORTS_FEATURE, (number,)
    yield "type", remote.GET_TYPE, ()
    yield "version", remote.GET_LIB_VERSION, ()
    yield "uri", remote.GET_URI, ()
    yield "secure", remote.IS_SECURE, ()
    for procedure in (remote.REGISTER_CLOSE_CALLBACK, remote.UNREGISTER_CLOSE_CALLBACK):
        yield "close callback", procedure, ()
        yield "close callback again", procedure, ()
    for params in (
        (),
        (text("bogus", "x"),),
        (TypedParam("unix-user-id", (ParamType.INT, 1)),),
        (TypedParam("process-id", (ParamType.ULLONG, 1)),),
        (TypedParam("unix-user-id", (ParamType.ULLONG, 1)),),
        (text("user-name", "a"), text("user-name", "b")),
        (text("x509-distinguished-name", "d"), text("selinux-context", "s")),
    ):
        yield "identity", remote.SET_IDENTITY, (params, 0)
    for event, pool in ((0, None), (0, None), (1, None), (2, None), (-1, None), (0, P), (0, P)):
        yield "register", rpc.EVENT_REGISTER, (event, pool)
    for number in (77, -1, 0, 0, 1, 2):
        yield "deregister", rpc.EVENT_DEREGISTER, (number,)
    for event in (0, 1):  # what is told from here on is compared at the end
        yield "register", rpc.EVENT_REGISTER, (event, None)


def _undefined(target: Path) -> Iterator[Step]:
    for count in (-1, 0, 16384, 16385):
        yield "names", rpc.LIST_POOLS, (count,)
        yield "inactive names", rpc.LIST_DEFINED_POOLS, (count,)
    for count in (-1, 16385, 1):
        yield "volume names", rpc.POOL_LIST_VOLUMES, (UNKNOWN, count)
    for procedure in rpc.PROCEDURES:
        fields = procedure.args._fields
        if fields[:1] == ("pool",) and procedure.access.value != "event":
            rest = {"xml": volume("v"), "name": "v", "clonevol": NO, "maxnames": 1}
            yield f"unknown {procedure.name}", procedure, (
                UNKNOWN, *(rest.get(field, 0) for field in fields[1:])
            )  # fmt: skip
        elif fields[:1] == ("vol",):
            yield f"unknown {procedure.name}", procedure, (
                NO, *(1 if field == "capacity" else 0 for field in fields[1:])
            )  # fmt: skip
    for name in ("no", ""):
        yield "by name", rpc.POOL_LOOKUP_BY_NAME, (name,)
        yield "by target", rpc.POOL_LOOKUP_BY_TARGET_PATH, (name,)
        yield "by key", rpc.VOL_LOOKUP_BY_KEY, (name,)
        yield "by path", rpc.VOL_LOOKUP_BY_PATH, (f"{name}//x/",)
    yield "by uuid", rpc.POOL_LOOKUP_BY_UUID, (UUID,)
    yield "sources", rpc.FIND_POOL_SOURCES, ("bogus", None, 0)
    yield "sources", rpc.FIND_POOL_SOURCES, ("dir", None, 0)
    yield "sources", rpc.FIND_POOL_SOURCES, ("dir", None, 1)
    yield from sweep("capabilities flags", rpc.GET_POOL_CAPABILITIES)
    for document in ("", "<pool", "<pool/>", "<pool type='dir'><name>a/b</name></pool>"):
        yield "bad pool", rpc.POOL_CREATE_XML, (document, 0)
    yield "define", rpc.POOL_DEFINE_XML, (pool_xml(target), 0)


def _inactive(target: Path) -> Iterator[Step]:
    other = bytes(16)
    yield "define again", rpc.POOL_DEFINE_XML, (pool_xml(target), 0)
    yield "clash of names", rpc.POOL_DEFINE_XML, (pool_xml(target, uuid=other), 0)
    yield "clash of uuids", rpc.POOL_DEFINE_XML, (pool_xml(target.with_name("o"), "q"), 0)
    yield "clash of sources", rpc.POOL_DEFINE_XML, (pool_xml(target, "q", other), 0)
    yield from sweep("define", rpc.POOL_DEFINE_XML, pool_xml(target))
    yield from sweep("create", rpc.POOL_CREATE_XML, pool_xml(target))
    calls: tuple[tuple[AnyProcedure, tuple[Any, ...]], ...] = (
        (rpc.POOL_DESTROY, ()),
        (rpc.POOL_REFRESH, (0,)),
        (rpc.POOL_REFRESH, (1,)),
        (rpc.POOL_NUM_OF_VOLUMES, ()),
        (rpc.POOL_LIST_VOLUMES, (10,)),
        (rpc.POOL_LIST_VOLUMES, (-10,)),
        (rpc.POOL_LIST_ALL_VOLUMES, (1, 0)),
        (rpc.POOL_LIST_ALL_VOLUMES, (0, 2)),
        (rpc.VOL_LOOKUP_BY_NAME, ("v",)),
        (rpc.VOL_CREATE_XML, (volume("v"), 0)),
        (rpc.VOL_CREATE_XML, ("<bad", 0)),
        (rpc.VOL_CREATE_XML_FROM, (volume("v"), V, 0)),
        (rpc.POOL_IS_ACTIVE, ()),
        (rpc.POOL_IS_PERSISTENT, ()),
        (rpc.POOL_GET_AUTOSTART, ()),
        (rpc.POOL_SET_AUTOSTART, (-1,)),
        (rpc.POOL_SET_AUTOSTART, (1,)),
        (rpc.POOL_GET_AUTOSTART, ()),
        (rpc.POOL_GET_INFO, ()),
        *((rpc.POOL_BUILD, (flags,)) for flags in (1, 2, 3, 4, 8, 12, 13, 16, 0, 0)),
        *((rpc.POOL_DELETE, (flags,)) for flags in (1, 2, 4, 7)),
        *((rpc.POOL_CREATE, (flags,)) for flags in (2, 4, 6, 7, 8, 9)),
        (rpc.POOL_GET_XML_DESC, (2,)),
    )
    for procedure, args in calls:
        yield f"inactive {procedure.name}", procedure, (P, *args)
    yield "inactive path", rpc.VOL_GET_PATH, (V,)
    yield "inactive target", rpc.POOL_LOOKUP_BY_TARGET_PATH, (str(target),)
    yield "start", rpc.POOL_CREATE, (P, 0)


def _active(target: Path) -> Iterator[Step]:
    for flags in (0, 1, 2, 8):
        yield "start again", rpc.POOL_CREATE, (P, flags)
        yield "build active", rpc.POOL_BUILD, (P, flags)
        yield "delete active", rpc.POOL_DELETE, (P, flags)
    yield "undefine active", rpc.POOL_UNDEFINE, (P,)
    yield "create active", rpc.POOL_CREATE_XML, (pool_xml(target), 0)
    yield "by target", rpc.POOL_LOOKUP_BY_TARGET_PATH, (f"{target}//",)
    yield "by uuid", rpc.POOL_LOOKUP_BY_UUID, (UUID,)
    yield "by name", rpc.POOL_LOOKUP_BY_NAME, ("p",)
    yield "by volume", rpc.POOL_LOOKUP_BY_VOLUME, (NO,)
    yield from sweep("xml", rpc.POOL_GET_XML_DESC, P)
    yield from sweep("list volumes", rpc.POOL_LIST_ALL_VOLUMES, P, 1)
    for flags in (0, 1, 2, 4, 8, 16, 32, 64, 128, 0xC0, 0xFFFFF, 1 << 20, 0xFFFFFFFF):
        for need in (1, 0):
            yield "list", rpc.LIST_ALL_POOLS, (need, flags)
    yield "count", rpc.NUM_OF_POOLS, ()
    yield "count inactive", rpc.NUM_OF_DEFINED_POOLS, ()
    yield "names", rpc.LIST_POOLS, (1,)


def _volumes(target: Path) -> Iterator[Step]:
    for flags in (2, 8, 10, 1):
        yield "create", rpc.VOL_CREATE_XML, (P, volume("v"), flags)
    yield "validate volume", rpc.VOL_CREATE_XML, (P, volume("v"), 4)
    for document in ("", "<volume/>", volume("a/b"), "<volume><name>x</name></volume>"):
        yield "bad volume", rpc.VOL_CREATE_XML, (P, document, 0)
    for name in ("v", "w"):
        yield "create", rpc.VOL_CREATE_XML, (P, volume(name), 0)
    yield "taken", rpc.VOL_CREATE_XML, (P, volume("v"), 0)
    for flags in (8, 16, 1):
        yield "clone", rpc.VOL_CREATE_XML_FROM, (P, volume("c"), V, flags)
    for source in (V, NO, StorageVol("no", "v", "")):
        yield "clone", rpc.VOL_CREATE_XML_FROM, (P, volume("c"), source, 0)
        yield "clone of nonsense", rpc.VOL_CREATE_XML_FROM, (P, "<bad", source, 0)
    yield "clone taken", rpc.VOL_CREATE_XML_FROM, (P, volume("v"), V, 0)
    for flags in range(4):
        yield "info", rpc.VOL_GET_INFO_FLAGS, (V, flags)
    yield "info", rpc.VOL_GET_INFO, (V,)
    yield "path", rpc.VOL_GET_PATH, (V,)
    yield "by name", rpc.VOL_LOOKUP_BY_NAME, (P, "v")
    yield "by path", rpc.VOL_LOOKUP_BY_PATH, (f"{target}//v/",)
    yield "by key", rpc.VOL_LOOKUP_BY_KEY, (f"{target}/v",)
    yield "by a relative path", rpc.VOL_LOOKUP_BY_PATH, (f"{target}/../p/v",)
    yield from sweep("volume xml", rpc.VOL_GET_XML_DESC, V)
    for flags in range(1, 9):
        yield "delete", rpc.VOL_DELETE, (V, flags)
        yield "delete none", rpc.VOL_DELETE, (NO, flags)
    yield from sweep("wipe", rpc.VOL_WIPE, V)
    yield from sweep("wipe pattern", rpc.VOL_WIPE_PATTERN, V, 0)
    for algorithm in (10, 11, 2**31, 2**32 - 1, 9, 0):
        yield "wipe pattern", rpc.VOL_WIPE_PATTERN, (V, algorithm, 0)
    for capacity, flags in (
        *((0, 0), (0, 8), (0, 1), (1, 8), (1, 0), (8192, 0), (8191, 0), (0, 2), (4096, 2)),
        *((4096, 6), (4096, 4), (2**62, 1), (8192, 1), (4096, 0)),
    ):
        yield f"resize {capacity} {flags}", rpc.VOL_RESIZE, (V, capacity, flags)
        yield "info", rpc.VOL_GET_INFO_FLAGS, (V, 0)
    for procedure in (rpc.VOL_UPLOAD, rpc.VOL_DOWNLOAD):
        yield "transfer flags", procedure, (V, 0, 0, 2)
        yield "transfer of none", procedure, (NO, 0, 0, 0)
        yield "transfer from afar", procedure, (V, 2**64 - 1, 0, 0)
    yield "delete", rpc.VOL_DELETE, (StorageVol("p", "c", ""), 0)
    yield "delete again", rpc.VOL_DELETE, (StorageVol("p", "c", ""), 0)
    yield "remove w", rpc.VOL_GET_PATH, (StorageVol("p", "w", ""),)  # see `compared`
    w = StorageVol("p", "w", "")
    for _ in range(2):
        yield "gone", rpc.VOL_GET_INFO, (w,)
        yield "gone", rpc.VOL_GET_INFO_FLAGS, (w, 1)
        yield "gone", rpc.VOL_GET_XML_DESC, (w, 0)
        yield "gone", rpc.VOL_GET_PATH, (w,)
        yield "gone", rpc.VOL_LOOKUP_BY_NAME, (P, "w")
    yield "resize gone", rpc.VOL_RESIZE, (w, 8192, 0)
    yield "wipe gone", rpc.VOL_WIPE, (w, 0)
    yield "upload gone", rpc.VOL_UPLOAD, (w, 0, 0, 0)
    yield "download gone", rpc.VOL_DOWNLOAD, (w, 0, 0, 0)
    yield "clone gone", rpc.VOL_CREATE_XML_FROM, (P, volume("x"), w, 0)
    yield "gone", rpc.VOL_DELETE, (w, 0)
    yield "gone", rpc.VOL_DELETE, (w, 0)
    yield "wipe nnsa", rpc.VOL_WIPE_PATTERN, (V, 1, 0)
    yield "resize huge", rpc.VOL_RESIZE, (V, 2**64 - 1, 0)
    yield "refresh", rpc.POOL_REFRESH, (P, 0)


def _end() -> Iterator[Step]:
    yield "delete v", rpc.VOL_DELETE, (V, 0)
    yield "count", rpc.POOL_NUM_OF_VOLUMES, (P,)
    yield "stop", rpc.POOL_DESTROY, (P,)
    yield "stop again", rpc.POOL_DESTROY, (P,)
    yield "delete", rpc.POOL_DELETE, (P, 0)
    yield "delete again", rpc.POOL_DELETE, (P, 0)
    yield "undefine", rpc.POOL_UNDEFINE, (P,)
    yield "undefine again", rpc.POOL_UNDEFINE, (P,)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Libvirtd]:
    with libvirtd(tmp_path_factory.mktemp("libvirt")) as running:
        yield running


def answer(peer: Peer, procedure: AnyProcedure, args: tuple[Any, ...]) -> Record:
    """Return what a session answers, an error as the record of it."""
    try:
        outcome = peer.start(procedure, *args)
        found = outcome.result(20) if isinstance(outcome, Pending) else outcome
    except StorageError as err:
        return remoteerror.describe(err)
    if not isinstance(found, Record):
        end: Any = found.sink or found.source
        end.abort()
        return Void()
    return found


def comparable(found: Record, target: Path) -> str:
    """Return an answer as text that is the same wherever the pool lies."""
    shown = repr(found).replace(str(target), "TARGET")
    shown = re.sub(r"PoolInfoRet\(state=2.*", "PoolInfoRet(state=2 ...)", shown)
    return re.sub(r"callback_id=\d+", "callback_id=N", shown)


def kind(number: int, payload: bytes) -> tuple[int, int | None]:
    """Return what an event of libvirt's daemon tells, without the number of the registration."""
    if number == rpc.EVENT_LIFECYCLE.number:
        return number, rpc.LifecycleEvent.unpack(payload).event
    return number, None


@pytest.mark.slow
def test_the_same_answers(daemon: Libvirtd, service: Service, tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs/p", tmp_path / "ours/p"
    for directory in (theirs, ours):
        directory.mkdir(parents=True)
    peer = Peer.of(service, identity=Identity(uid=0))
    different = []
    excused = set()
    with connected(daemon.root / "run/libvirt/libvirt-sock") as wire:
        for (name, procedure, args), (_, _, our_args) in zip(
            steps(theirs), steps(ours), strict=True
        ):
            expected = comparable(wire.call(procedure, *args), theirs)
            found = comparable(answer(peer, procedure, our_args), ours)
            if found != expected and name in DIFFERENT:
                excused.add(name)
            elif found != expected:
                different.append(f"{name} {args!r:.120}:\n  libvirt {expected}\n  ours    {found}")
            if name == "remove w":
                (theirs / "w").unlink()
                (ours / "w").unlink()
        # Events are sent by themselves: they may come after the reply to what caused them.
        eventually(lambda: bool(wire.call(remote.GET_TYPE)) and len(wire.events) >= len(peer.told))
    assert not different, "\n".join(different)
    assert [kind(number, data) for number, data in wire.events] == [
        (procedure.number, getattr(record, "event", None)) for procedure, record in peer.told
    ]
    assert excused == DIFFERENT.keys()


NAMES = (
    *("storage:///system", "storage:/system", "storage:///session", "storage:///", None, ""),
    *("storage:///foo", "qemu:///system", "xxx", "STORAGE:///system", "storage:///system?foo=bar"),
    *("storage:///system/", "storage:///system#x", "storage:system", "stor age:///system"),
    *("storage+unix:///system", "%zz://", "storage:///system?socket=%2Ftmp"),
)


@pytest.mark.slow
def test_the_same_openings(daemon: Libvirtd, service: Service) -> None:
    socket = daemon.root / "run/libvirt/libvirt-sock"
    for name in NAMES:
        peer, wire = Peer.of(service, opened=False), Wire(socket)
        try:
            for procedure, args in (
                (rpc.LIST_POOLS, (-1,)),
                (remote.SUPPORTS_FEATURE, (14,)),
                (remote.OPEN, (name, 6)),
                (remote.GET_URI, ()),
                (rpc.NUM_OF_POOLS, ()),
            ):
                expected = wire.call(procedure, *args)
                assert answer(peer, procedure, args) == expected, (name, procedure)
        finally:
            wire.close()


@pytest.mark.slow
def test_readers_are_refused_the_same(daemon: Libvirtd, service: Service) -> None:
    peer = Peer.of(service, readonly=True)
    with connected(daemon.root / "run/libvirt/libvirt-sock", flags=1) as wire:
        for procedure in rpc.PROCEDURES:
            if procedure.access.value != "writer":
                continue
            known = {"pool": NOWHERE, "vol": V, "clonevol": V, "xml": "", "type": ""}
            args = tuple(known.get(field, 0) for field in procedure.args._fields)
            if procedure is rpc.FIND_POOL_SOURCES:
                args = ("", None, 0)
            assert answer(peer, procedure, args) == wire.call(procedure, *args)
