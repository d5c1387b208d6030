"""What a connection begins with: opening, versions, features, identity."""

from __future__ import annotations

from pathlib import Path

import pytest

from storaged.driver import open_driver
from storaged.errors import Domain
from storaged.paths import Paths
from storaged.rpc import remote
from storaged.rpc import storage as rpc
from storaged.rpc.program import EXTENSION, REMOTE, Access
from storaged.rpc.record import Void
from storaged.rpc.remote import FeatureRet, Secure, Text, TypeRet, Version
from storaged.rpc.remoteerror import RemoteError
from storaged.rpc.typedparam import ParamType, TypedParam
from storaged.service import Identity, Service
from tests.doubles import refused
from tests.service.conftest import Peer

WHERE = "unexpected storage URI path"


def internal(detail: str, domain: int = 7) -> RemoteError:
    text = f"internal error: {detail}"
    return RemoteError(1, domain, text, str1="internal error: %s", str2=detail)


def unreachable(detail: str) -> RemoteError:
    prefix = "no connection driver available for %s"
    return RemoteError(5, 0, prefix % detail, str1=prefix, str2=detail)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("storage:///system", "storage:///system"),
        ("storage:/system", "storage:///system"),
        ("storage:///system?foo=bar", "storage:///system?foo=bar"),
        ("storage:///system?socket=%2Ftmp&a=b", "storage:///system?socket=%2Ftmp&a=b"),
        ("storage:///system#x", "storage:///system#x"),
        ("secret:///system", "secret:///system"),
        ("secret:/system?foo=bar", "secret:///system?foo=bar"),
    ],
)
def test_open(service: Service, name: str, kept: str) -> None:
    peer = Peer.of(service, opened=False)
    assert peer.session.uri is None
    assert peer.call(remote.OPEN, name, 6) == Void()
    assert peer.call(remote.GET_URI) == Text(kept)
    assert peer.session.uri == kept
    assert not peer.session.readonly


@pytest.mark.parametrize(
    ("name", "error"),
    [
        (None, internal("connection not open")),
        ("", unreachable("<null>")),
        ("xxx", unreachable("URI 'xxx' does not include a driver name")),
        ("qemu:///system", unreachable("qemu:///system")),
        ("STORAGE:///system", unreachable("STORAGE:///system")),
        ("storage+unix:///system", unreachable("storage+unix:///system")),
        ("storage://host/system", unreachable("storage://host/system")),
        ("storage:///session", internal(f"{WHERE} '/session', try storage:///system", 0)),
        ("storage:///", internal(f"{WHERE} '/', try storage:///system", 0)),
        (
            "secret:///session",
            internal("unexpected secret URI path '/session', try secret:///system", 0),
        ),
        ("storage://", internal(f"{WHERE} '', try storage:///system", 0)),
        ("storage:system", internal(f"{WHERE} 'system', try storage:///system", 0)),
        ("storage:///system/", internal(f"{WHERE} '/system/', try storage:///system", 0)),
        ("stor age:///system", internal("Unable to parse URI stor age:///system", 45)),
        ("%zz://", internal("Unable to parse URI %zz://", 45)),
    ],
)
def test_open_refused(service: Service, name: str | None, error: RemoteError) -> None:
    peer = Peer.of(service, opened=False)
    assert peer.error(remote.OPEN, name, 0) == error
    assert peer.error(remote.GET_URI) == internal("hypervisor connection not open")
    assert peer.call(remote.OPEN, "storage:///system", 0) == Void()


def test_open_twice(peer: Peer) -> None:
    for name in ("storage:///system", None, "nonsense"):
        assert peer.error(remote.OPEN, name, 0) == internal("connection already open")
    assert peer.call(remote.GET_URI) == Text("storage:///system")


def test_open_of_a_session_engine(tmp_path: Path) -> None:
    with open_driver(Paths.below(tmp_path, session=True)) as driver:
        peer = Peer.of(Service(driver), opened=False)
        expected = internal(f"{WHERE} '/system', try storage:///session", 0)
        assert peer.error(remote.OPEN, "storage:///system", 0) == expected
        assert peer.call(remote.OPEN, "storage:///session", 0) == Void()


def test_what_is_told(peer: Peer) -> None:
    assert peer.call(remote.GET_TYPE) == TypeRet("storage")
    assert peer.call(remote.GET_LIB_VERSION) == Version(9_000_000)
    assert peer.call(remote.IS_SECURE) == Secure(1)
    assert "<value>dir</value>" in peer.call(remote.GET_CAPABILITIES).capabilities
    for procedure in (remote.REGISTER_CLOSE_CALLBACK, remote.UNREGISTER_CLOSE_CALLBACK):
        assert peer.call(procedure) == peer.call(procedure) == Void()


def test_a_raised_level(service: Service) -> None:
    peer = Peer.of(Service(service.driver, level=10_001_000))
    assert peer.call(remote.GET_LIB_VERSION) == Version(10_001_000)


def test_features(peer: Peer) -> None:
    for number in (*range(-2, 40), 2**31 - 1):
        expected = int(number in (8, 10, 14, 15))
        assert peer.call(remote.SUPPORTS_FEATURE, number) == FeatureRet(expected)


def test_before_the_opening(service: Service) -> None:
    peer = Peer.of(service, opened=False)
    assert peer.call(remote.SUPPORTS_FEATURE, 10) == FeatureRet(1)
    assert peer.error(remote.SUPPORTS_FEATURE, 14) == internal("hypervisor connection not open")
    assert peer.error(remote.IS_SECURE) == internal("hypervisor connection not open")
    assert peer.error(remote.SET_IDENTITY, (), 0) == internal("hypervisor connection not open")
    assert peer.error(rpc.LIST_POOLS, -1) == internal("connection not open")
    assert peer.error(rpc.EVENT_REGISTER, 9, None) == internal("connection not open")
    assert peer.ready(rpc.POOL_DEFINE_XML, "<pool/>", 0)


def test_after_the_end(peer: Peer) -> None:
    peer.session.close()
    peer.session.close()
    assert peer.error(rpc.NUM_OF_POOLS) == internal("connection not open")
    assert peer.error(remote.OPEN, "storage:///system", 0) == internal("connection already open")


# Procedures


def test_every_procedure_is_served(service: Service, peer: Peer) -> None:
    own = {remote.CLOSE, remote.AUTH_LIST, remote.AUTH_POLKIT}
    own |= {remote.AUTH_SASL_INIT, remote.AUTH_SASL_START, remote.AUTH_SASL_STEP}
    for number, procedure in remote.PROCEDURES.items():
        if procedure.access is Access.EVENT:
            continue
        assert service.procedure(REMOTE, number) is procedure
        assert (procedure in service._shared.handlers) == (procedure not in own)


@pytest.mark.parametrize("number", [0, -1, 362, 370, 373, 444, 453, 1000, 2**31 - 1, -(2**31)])
def test_unknown_procedures(service: Service, number: int) -> None:
    with refused(39, f"unknown procedure: {number}", Domain.RPC):
        service.procedure(REMOTE, number)


def test_procedures_of_others(service: Service) -> None:
    for number, code, domain in (
        (273, 3, Domain.DOMAIN),
        (59, 3, Domain.DOMAIN),
        (185, 3, Domain.DOMAIN_SNAPSHOT),
        (411, 3, Domain.DOMAIN_CHECKPOINT),
        (118, 3, Domain.NODEDEV),
        (44, 1, Domain.RPC),
    ):
        with refused(code, domain=domain):
            service.procedure(REMOTE, number)


def test_our_own_program(service: Service) -> None:
    assert service.procedure(EXTENSION, 1).name == "storagedHello"
    for number in (0, 9, 10, 30, -1):
        with refused(39, f"unknown procedure: {number}", Domain.RPC):
            service.procedure(EXTENSION, number)
    with refused(39, "Cannot find program 536903815 version 1", Domain.RPC):
        service.procedure(0x20008087, 1)


# Identity


def string(name: str, value: str) -> TypedParam:
    return TypedParam(name, (ParamType.STRING, value))


def number(name: str, value: int, kind: ParamType = ParamType.ULLONG) -> TypedParam:
    return TypedParam(name, (kind, value))


WHO = (
    string("user-name", "u"),
    number("unix-user-id", 7),
    string("group-name", "g"),
    number("unix-group-id", 8),
    number("process-id", 9, ParamType.LLONG),
    number("process-time", 10),
    string("sasl-user-name", "s"),
    string("x509-distinguished-name", "d"),
    string("selinux-context", "c"),
)
ADOPTED = Identity(7, 8, 9, 10, "u", "g", "c", "s", trusted=True)


@pytest.mark.parametrize(
    ("own", "params", "honoured"),
    [
        (Identity(uid=0), WHO, True),
        (Identity(uid=1000, trusted=True), WHO, True),
        (Identity(uid=1000), WHO, False),
        (Identity(uid=1000), (*WHO, string("system.token", "the-token")), True),
        (Identity(uid=1000), (*WHO, string("system.token", "the-tokem")), False),
        (Identity(uid=1000), (*WHO, string("system.token", "")), False),
        (Identity(), WHO, False),
    ],
)
def test_identity(
    service: Service, own: Identity, params: tuple[TypedParam, ...], honoured: bool
) -> None:
    peer = Peer.of(service, identity=own)
    assert peer.call(remote.SET_IDENTITY, params, 0) == Void()
    elevated = bool(params) and params[-1] == string("system.token", "the-token")
    assert peer.session.identity == (ADOPTED._replace(elevated=elevated) if honoured else own)
    assert peer.session.for_others is honoured


def test_identity_without_a_token(service: Service) -> None:
    peer = Peer.of(Service(service.driver), identity=Identity(uid=5))
    peer.call(remote.SET_IDENTITY, (string("system.token", ""),), 0)
    assert peer.session.identity == Identity(uid=5)


def test_identity_of_nothing(service: Service) -> None:
    peer = Peer.of(service, identity=Identity(uid=0))
    assert peer.call(remote.SET_IDENTITY, (), 1) == Void()
    assert (peer.session.identity, peer.session.for_others) == (Identity(uid=0), False)


@pytest.mark.parametrize("uid", [0, 5])
@pytest.mark.parametrize(
    ("params", "code", "detail"),
    [
        ((string("bogus", "x"),), 74, "parameter 'bogus' not supported"),
        (
            (number("unix-user-id", 1, ParamType.INT),),
            8,
            "invalid type 'int' for parameter 'unix-user-id', expected 'ullong'",
        ),
        ((WHO[0], WHO[0]), 8, "parameter 'user-name' occurs multiple times"),
    ],
)
def test_identity_refused(
    service: Service, uid: int, params: tuple[TypedParam, ...], code: int, detail: str
) -> None:
    peer = Peer.of(service, identity=Identity(uid=uid))
    error = peer.error(remote.SET_IDENTITY, params, 0)
    assert (error.code, error.domain, error.str2) == (code, 0, detail)
    assert peer.session.identity == Identity(uid=uid)
