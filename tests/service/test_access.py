"""Who may call what with which flags: sweeps over all procedures."""

from __future__ import annotations

from typing import Any

import pytest

from storaged.errordomain import Domain
from storaged.rpc import extension, images, remote
from storaged.rpc import storage as rpc
from storaged.rpc.extension import CallFlag
from storaged.rpc.program import Access, AnyProcedure
from storaged.rpc.record import Record
from storaged.rpc.remoteerror import RemoteError
from storaged.rpc.storage import StoragePool, StorageVol
from storaged.rpc.xdr import Maybe
from storaged.service import Service
from tests.service.conftest import NOWHERE, Peer

SERVED = tuple(
    procedure
    for procedure in (*rpc.PROCEDURES, *extension.PROCEDURES.values())
    if procedure.access is not Access.EVENT
)
WRITERS = tuple(procedure for procedure in SERVED if procedure.access is Access.WRITER)

#: What may be called through a connection that only reads.
READERS = {
    *(71, 72, 73, 74, 84, 85, 86, 87, 88, 89, 91, 92, 95, 96, 97, 98, 99, 100, 154, 155),
    *(281, 282, 368, 369, 378, 391, 403),
}


def anything(procedure: AnyProcedure, **given: Any) -> tuple[Any, ...]:
    """Return arguments of the right types: empty, but for what is given by name."""
    made: list[Any] = []
    for name, kind in procedure.args.field_types().items():
        if name in given:
            made.append(given[name])
        elif name == "pool" and not isinstance(kind, Maybe):
            made.append(NOWHERE)
        elif name in ("vol", "clonevol"):
            made.append(StorageVol("nowhere", "v", ""))
        elif name == "uuid":
            made.append(NOWHERE.uuid)
        elif name == "policy":
            made.append(extension.Policy(None, None, None))
        elif name == "args":
            made.append(b"")
        else:
            made.append(None if isinstance(kind, Maybe) else 0 if kind.code else "")
    return tuple(made)


def test_the_storage_procedures_are_all_there() -> None:
    storage = [procedure for procedure in rpc.PROCEDURES if procedure.access is not Access.EVENT]
    assert len(storage) == 45
    assert {p.number for p in storage if p.access is Access.READER} == READERS


@pytest.mark.parametrize("procedure", WRITERS, ids=repr)
def test_readers_may_not(service: Service, procedure: AnyProcedure) -> None:
    detail = f"read only access prevents {procedure.name}"
    expected = RemoteError(
        29, 18, f"operation forbidden: {detail}", str1="operation forbidden: %s", str2=detail
    )
    flag = Peer.of(service, readonly=True)
    socket = Peer.of(service)
    socket.session.readonly = True
    for peer in (flag, socket):
        assert peer.error(procedure, *anything(procedure)) == expected
        assert peer.ready(procedure, *anything(procedure))


@pytest.mark.parametrize(
    "procedure", [p for p in SERVED if p.access is Access.READER], ids=lambda p: p.name
)
def test_readers_may(service: Service, procedure: AnyProcedure) -> None:
    """What may be read answers the same as through a connection that may write."""
    answers = []
    for readonly in (False, True):
        peer = Peer.of(service, readonly=readonly)
        try:
            answers.append(peer.call(procedure, *anything(procedure)))
        except Exception as err:
            answers.append((type(err), str(err)))
    if procedure is rpc.EVENT_REGISTER:
        assert [answer.callback_id for answer in answers] == [0, 1]
    else:
        assert answers[0] == answers[1]


def test_a_socket_for_readers_stays_one(service: Service) -> None:
    peer = Peer(service)
    peer.session = service.session(lambda _procedure, _record: None, readonly=True)
    peer.call(remote.OPEN, "storage:///system", 0)
    assert peer.session.readonly


def test_readers_may_not_through_another_call(service: Service) -> None:
    peer = Peer.of(service, readonly=True)
    args = rpc.PoolArgs(NOWHERE).pack()
    error = peer.error(extension.CALL, rpc.POOL_DESTROY.number, args, 0)
    assert (error.code, error.str2) == (29, "read only access prevents virStoragePoolDestroy")
    error = peer.error(extension.JOB_BEGIN, rpc.POOL_DESTROY.number, args, 0)
    assert (error.code, error.str2) == (29, "read only access prevents virStoragePoolDestroy")
    own = images.VolRebaseArgs(StorageVol("p", "v", ""), None, None).pack()
    error = peer.error(extension.JOB_BEGIN, images.VOL_REBASE.number, own, int(CallFlag.OWN))
    assert (error.code, error.str2) == (29, "read only access prevents storagedVolRebase")


@pytest.mark.parametrize("procedure", SERVED, ids=repr)
def test_nothing_before_the_opening(service: Service, procedure: AnyProcedure) -> None:
    if procedure is extension.HELLO:
        return
    peer = Peer.of(service, opened=False)
    error = peer.error(procedure, *anything(procedure))
    assert (error.code, error.domain, error.str2) == (1, 7, "connection not open")


#: The flags that each procedure knows, and who says so of the others.
FLAGS: dict[AnyProcedure, tuple[int, str]] = {
    rpc.LIST_ALL_POOLS: (0xFFFFF, "storageConnectListAllStoragePools"),
    rpc.POOL_LIST_ALL_VOLUMES: (0, "storagePoolListAllVolumes"),
    rpc.GET_POOL_CAPABILITIES: (0, "storageConnectGetStoragePoolCapabilities"),
    rpc.POOL_CREATE_XML: (7, "storagePoolCreateXML"),
    rpc.POOL_DEFINE_XML: (1, "storagePoolDefineXML"),
    rpc.POOL_CREATE: (7, "storagePoolCreate"),
    rpc.POOL_REFRESH: (0, "storagePoolRefresh"),
    rpc.POOL_GET_XML_DESC: (1, "storagePoolGetXMLDesc"),
    rpc.VOL_CREATE_XML: (5, "storageVolCreateXML"),
    rpc.VOL_CREATE_XML_FROM: (7, "storageVolCreateXMLFrom"),
    rpc.VOL_GET_XML_DESC: (0, "storageVolGetXMLDesc"),
    rpc.VOL_GET_INFO_FLAGS: (1, "storageVolGetInfoFlags"),
    rpc.VOL_WIPE: (0, "storageVolWipePattern"),
    rpc.VOL_WIPE_PATTERN: (0, "storageVolWipePattern"),
    rpc.VOL_RESIZE: (7, "storageVolResize"),
    rpc.VOL_UPLOAD: (1, "storageVolUpload"),
    rpc.VOL_DOWNLOAD: (1, "storageVolDownload"),
    extension.CALL: (7, "storagedCall"),
    extension.POOL_LIST: (0xFFFFF, "storagedPoolList"),
    extension.POOL_FACTS: (3, "storagedPoolFacts"),
    extension.SECRET_LIST: (0xF, "storagedSecretList"),
    images.VOL_REBASE: (1, "storagedVolRebase"),
    images.VOL_CREATE: (5, "storagedVolCreate"),
    images.VOL_CLONE: (7, "storagedVolClone"),
    images.VOL_RESIZE: (7, "storagedVolResize"),
}
#: These know flags by the type of the pool only.
BY_TYPE: dict[AnyProcedure, tuple[int, str]] = {
    rpc.POOL_BUILD: (12, "virStorageBackendFileSystemBuild"),
    rpc.POOL_DELETE: (0, "virStorageBackendDeleteLocal"),
    rpc.VOL_DELETE: (0, "virStorageBackendVolDeleteLocal"),
}


def unsupported(unknown: int, function: str) -> RemoteError:
    text = f"unsupported flags (0x{unknown:x}) in function {function}"
    domain = Domain.SECRET if "Secret" in function else Domain.STORAGE
    return RemoteError(8, domain, text, str1=function, str2="flags", int1=0, int2=0)


def test_all_with_flags_are_swept() -> None:
    flagged = {p for p in SERVED if "flags" in p.args._fields}
    left = flagged - {*FLAGS, *BY_TYPE, rpc.FIND_POOL_SOURCES, extension.JOB_BEGIN}
    assert not left


@pytest.mark.parametrize("procedure", FLAGS, ids=repr)
def test_flags(peer: Peer, procedure: AnyProcedure) -> None:
    known, function = FLAGS[procedure]
    given = {"capacity": 1} if procedure is rpc.VOL_RESIZE else {}
    for bit in range(32):
        if known & 1 << bit:
            continue
        args = anything(procedure, flags=known | 1 << bit, **given)
        assert peer.error(procedure, *args) == unsupported(1 << bit, function)
    args = anything(procedure, flags=0xFFFFFFFF, **given)
    assert peer.error(procedure, *args) == unsupported(0xFFFFFFFF & ~known, function)


@pytest.mark.parametrize("procedure", BY_TYPE, ids=repr)
def test_flags_of_the_type(
    peer: Peer, pool: StoragePool, vol: StorageVol, procedure: AnyProcedure
) -> None:
    known, function = BY_TYPE[procedure]
    if "pool" in procedure.args._fields:
        # What is wrong with the state of the pool is said first.
        assert peer.error(procedure, pool, 1 << 20).code == 55
        peer.call(rpc.POOL_DESTROY, pool)
    object_ = pool if "pool" in procedure.args._fields else vol
    for bit in range(32):
        if not known & 1 << bit:
            assert peer.error(procedure, object_, 1 << bit) == unsupported(1 << bit, function)


def test_flags_of_a_volume_that_is_not_there(peer: Peer, pool: StoragePool) -> None:
    assert peer.error(rpc.VOL_DELETE, StorageVol("p", "no", ""), 2).code == 50
    assert peer.error(rpc.VOL_DELETE, StorageVol("no", "no", ""), 2).code == 49


def test_flags_of_sources(peer: Peer) -> None:
    function = "storageConnectFindStoragePoolSources"
    assert peer.error(rpc.FIND_POOL_SOURCES, "bogus", None, 1).code == 1
    assert peer.error(rpc.FIND_POOL_SOURCES, "dir", None, 1).code == 3
    assert function  # named where a type can find sources


def test_build_flags_exclude_each_other(peer: Peer, pool: StoragePool) -> None:
    peer.call(rpc.POOL_DESTROY, pool)
    text = (
        "Flags 'VIR_STORAGE_POOL_BUILD_OVERWRITE' and 'VIR_STORAGE_POOL_BUILD_NO_OVERWRITE'"
        " are mutually exclusive"
    )
    function = "virStorageBackendFileSystemBuild"
    expected = RemoteError(8, 18, text, str1=function, str2="ctl", int1=0, int2=0)
    assert peer.error(rpc.POOL_BUILD, pool, 12) == expected


def test_a_fault_of_ours_stays_one(peer: Peer) -> None:
    """A record of another procedure is a fault of the caller in this process, not a crash later."""
    with pytest.raises(AttributeError):
        peer.session.call(rpc.POOL_GET_INFO, Record())
