"""Our side of the protocol against a real libvirt daemon.

Our refusals beside its own, number by number; what breaks a connection; its administration, asked
with our records.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import TypeVar

import pytest

from storaged.rpc import admin, remote, unserved
from storaged.rpc.errors import NoSuchClient, NoSuchServer
from storaged.rpc.packet import LENGTH, Header, Kind, Packet, Splitter, pack
from storaged.rpc.program import ADMIN, REMOTE, Access, Procedure
from storaged.rpc.record import Record, Void
from storaged.rpc.remoteerror import RemoteError, describe, revive
from storaged.rpc.storage import Flags
from storaged.rpc.typedparam import ParamType, TypedParam
from tests.storaged.libvirtd import Libvirtd, libvirtd

#: libvirt 9.0's daemon dies of these where its connection has no driver of networks
DEADLY = (152, 153, 156)
#: arguments of zeros, as many as any call takes
ZEROS = bytes(400)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Libvirtd]:
    with libvirtd(tmp_path_factory.mktemp("libvirtd")) as running:
        yield running


def call(
    peer: socket.socket, number: int, payload: bytes = b"", *, program: int = REMOTE
) -> Packet:
    """Call a procedure and return the reply, cut by our own splitter."""
    peer.sendall(pack(program, number, Kind.CALL, 3, 0, payload))
    splitter = Splitter()
    while True:
        data = peer.recv(65536)
        assert data, f"the daemon hung up at {number}"
        for found in splitter.feed(data):
            assert isinstance(found, Packet)
            assert found.header == Header(program, 1, number, Kind.REPLY, 3, found.header.status)
            return found


def reached(path: Path) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX)
    peer.settimeout(30)
    peer.connect(str(path))
    return peer


def connected(path: Path, *, readonly: bool) -> socket.socket:
    peer = reached(path)
    assert call(peer, remote.AUTH_LIST.number).payload == remote.AuthListRet((0,)).pack()
    args = remote.OpenArgs("storage:///system", int(readonly))
    assert call(peer, remote.OPEN.number, args.pack()) == Packet(
        Header(REMOTE, 1, 1, Kind.REPLY, 3, 0), b""
    )
    return peer


@pytest.mark.parametrize("readonly", [False, True])
def test_refusals(daemon: Libvirtd, readonly: bool) -> None:
    """Where the daemon finds fault with our arguments or has a driver, there is nothing to see."""
    path = daemon.socket.with_name("libvirt-sock-ro") if readonly else daemon.socket
    known = {n for n, found in remote.PROCEDURES.items() if found.access is not Access.EVENT}
    compared = 0
    with closing(connected(path, readonly=readonly)) as peer:
        for number in sorted({*range(-1, 460)} - known - {*DEADLY}):
            answer = call(peer, number, ZEROS)
            if not answer.header.status:
                continue
            theirs = RemoteError.unpack(answer.payload)
            ours = describe(unserved.refusal(number, readonly=readonly))
            if ours.domain == 7 and ours.code == 1:
                continue  # a monolithic daemon has no further daemons to hand calls to
            if theirs.code in (3, 29, 39, 74):
                assert ours == theirs, number
                compared += 1
            else:
                assert (theirs.code, theirs.domain) in ((8, ours.domain), (1, 7)), number
    assert compared > 230


def test_error_of_a_truncated_call(daemon: Libvirtd) -> None:
    with closing(connected(daemon.socket, readonly=False)) as peer:
        answer = call(peer, remote.PROCEDURES[84].number, struct.pack(">I", 100))
        error = RemoteError.unpack(answer.payload)
        assert (error.code, error.domain) == (39, 7)
        assert error.message == "Unable to decode message payload"


def test_lengths_that_end_a_connection(daemon: Libvirtd) -> None:
    for length in (0, 3, 4, 27, 33_554_437, 2**32 - 1):
        with closing(connected(daemon.socket, readonly=False)) as peer:
            peer.sendall(LENGTH.pack(length) + bytes(24))
            with suppress(ConnectionResetError):
                assert peer.recv(100) == b""


R = TypeVar("R", bound=Record)
A = TypeVar("A", bound=Record)


def asked(peer: socket.socket, procedure: Procedure[A, R], args: A) -> R:
    """Call a procedure of the administration and return its result, which must be all there is."""
    answer = call(peer, procedure.number, args.pack(), program=ADMIN)
    assert not answer.header.status, RemoteError.unpack(answer.payload)
    found = procedure.ret.unpack(answer.payload)
    assert found.pack() == answer.payload
    return found


def names(params: tuple[TypedParam, ...]) -> dict[str, object]:
    return {param.field: param.value[1] for param in params}


def test_administration(daemon: Libvirtd) -> None:
    """Every call that asks; the answers are taken apart and put together again to the byte."""
    with (
        closing(connected(daemon.socket, readonly=False)),
        closing(reached(daemon.socket.with_name("libvirt-admin-sock"))) as peer,
    ):
        assert asked(peer, admin.OPEN, Flags()) == Void()
        assert asked(peer, admin.GET_LIB_VERSION, Void()).version >= 9_000_000
        servers = asked(peer, admin.LIST_SERVERS, admin.ListServersArgs(1)).servers
        assert {server.name for server in servers} == {"libvirtd", "admin"}
        server = admin.Server("libvirtd")
        assert asked(peer, admin.LOOKUP_SERVER, admin.LookupServerArgs("libvirtd")).server == server
        pool = asked(peer, admin.GET_THREADPOOL, admin.ServerArgs(server))
        assert {"minWorkers", "maxWorkers", "prioWorkers"} <= names(pool.params).keys()
        clients = asked(peer, admin.LIST_CLIENTS, admin.ListClientsArgs(server, 1)).clients
        assert [client.transport for client in clients] == [admin.Transport.UNIX]
        lookup = admin.LookupClientArgs(server, clients[0].id)
        assert asked(peer, admin.LOOKUP_CLIENT, lookup).client == clients[0]
        info = asked(peer, admin.CLIENT_GET_INFO, admin.ClientArgs(clients[0]))
        assert names(info.params)["unix_user_id"] == 0
        limits = asked(peer, admin.GET_LIMITS, admin.ServerArgs(server))
        assert names(limits.params)["nclients"] == 1
        outputs = asked(peer, admin.GET_LOG_OUTPUTS, Flags())
        assert (outputs.outputs.startswith("2:file:"), outputs.noutputs) == (True, 1)
        assert asked(peer, admin.GET_LOG_FILTERS, Flags()) == admin.LogFiltersRet(None, 0)


def test_changes_of_the_administration(daemon: Libvirtd) -> None:
    with (
        closing(connected(daemon.socket, readonly=False)) as client,
        closing(reached(daemon.socket.with_name("libvirt-admin-sock"))) as peer,
    ):
        asked(peer, admin.OPEN, Flags())
        server = admin.Server("libvirtd")
        wanted = TypedParam("maxWorkers", (ParamType.UINT, 17))
        asked(peer, admin.SET_THREADPOOL, admin.ThreadpoolArgs(server, (wanted,)))
        pool = asked(peer, admin.GET_THREADPOOL, admin.ServerArgs(server))
        assert names(pool.params)["maxWorkers"] == 17
        wanted = TypedParam("nclients_max", (ParamType.UINT, 123))
        asked(peer, admin.SET_LIMITS, admin.LimitsArgs(server, (wanted,)))
        limits = asked(peer, admin.GET_LIMITS, admin.ServerArgs(server))
        assert names(limits.params)["nclients_max"] == 123
        asked(peer, admin.SET_LOG_FILTERS, admin.LogFiltersArgs("3:storage"))
        filters = asked(peer, admin.GET_LOG_FILTERS, Flags())
        assert (filters.filters or "").strip() == "3:*storage*"
        assert filters.nfilters == 1
        asked(peer, admin.SET_LOG_FILTERS, admin.LogFiltersArgs(None))
        outputs = asked(peer, admin.GET_LOG_OUTPUTS, Flags())
        asked(peer, admin.SET_LOG_OUTPUTS, admin.LogOutputsArgs(outputs.outputs))
        asked(peer, admin.SET_DAEMON_TIMEOUT, admin.TimeoutArgs(0))
        clients = asked(peer, admin.LIST_CLIENTS, admin.ListClientsArgs(server, 1)).clients
        asked(peer, admin.CLIENT_CLOSE, admin.ClientArgs(clients[-1]))
        assert client.recv(100) == b""
        asked(peer, admin.CLOSE, Void())


@pytest.mark.parametrize("what", ["server", "client"])
def test_nothing_to_administer(daemon: Libvirtd, what: str) -> None:
    path = daemon.socket.with_name("libvirt-admin-sock")
    if what == "server":
        procedure, args = 5, admin.LookupServerArgs("nobody").pack()
    else:
        procedure, args = 9, admin.LookupClientArgs(admin.Server("admin"), 10**9).pack()
    with closing(reached(path)) as peer:
        asked(peer, admin.OPEN, Flags())
        answer = call(peer, procedure, args, program=ADMIN)
        error = revive(RemoteError.unpack(answer.payload))
        assert type(error) is (NoSuchServer if what == "server" else NoSuchClient)
