"""The calls on secrets: what is answered, what is refused, who hears of it, and what is shown."""

from __future__ import annotations

import logging
from typing import Any
from uuid import UUID

import pytest

from storaged.errors import StorageError
from storaged.rpc import extension, remote
from storaged.rpc import secret as rpc
from storaged.rpc.extension import CallArgs
from storaged.rpc.record import Void
from storaged.rpc.secret import LifecycleEvent, ListSecretsRet, Secret, Uuids, ValueChangedEvent
from storaged.rpc.storage import CallbackId, Count
from storaged.rpc.typedparam import ParamType, TypedParam
from storaged.secrets.values import SecretDef, SecretKind
from storaged.secrets.wirenames import KINDS, kind_numbered, secret_named, secret_record
from storaged.service import Identity, Service
from tests.service.conftest import Peer

#: Must be seen nowhere but in the reply to who asks for it.
MARK = b"quite-secret-0815"
FIRST = Secret(bytes(15) + b"\1", 1, "/images/a")
OTHER = Secret(bytes(15) + b"\2", 3, "target")


def document(named: Secret, *, private: str = "no") -> str:
    kind, element = {1: ("volume", "volume"), 3: ("iscsi", "target")}[named.usage_type]
    return (
        f"<secret private='{private}'><uuid>{UUID(bytes=named.uuid)}</uuid>"
        f"<usage type='{kind}'><{element}>{named.usage_id}</{element}></usage></secret>"
    )


@pytest.fixture
def first(peer: Peer) -> Secret:
    """A secret with a value."""
    made: Secret = peer.call(rpc.DEFINE_XML, document(FIRST), 0).secret
    peer.call(rpc.SET_VALUE, made, MARK, 0)
    return made


def test_life(peer: Peer) -> None:
    assert peer.call(rpc.NUM_OF_SECRETS) == Count(0)
    assert peer.call(rpc.LIST_SECRETS, 0) == Uuids(())
    assert peer.call(rpc.DEFINE_XML, document(FIRST), 0).secret == FIRST
    assert peer.call(rpc.DEFINE_XML, document(OTHER), 1).secret == OTHER
    assert peer.call(rpc.NUM_OF_SECRETS) == Count(2)
    assert set(peer.call(rpc.LIST_SECRETS, 5).uuids) == {
        str(UUID(bytes=each.uuid)) for each in (FIRST, OTHER)
    }
    assert len(peer.call(rpc.LIST_SECRETS, 1).uuids) == 1
    assert set(peer.call(rpc.LIST_ALL_SECRETS, 1, 0).secrets) == {FIRST, OTHER}
    assert peer.call(rpc.LIST_ALL_SECRETS, 0, 0) == ListSecretsRet((), 2)
    assert peer.call(rpc.LIST_ALL_SECRETS, 1, 1) == ListSecretsRet((), 0)
    assert peer.call(rpc.LOOKUP_BY_UUID, OTHER.uuid).secret == OTHER
    assert peer.call(rpc.LOOKUP_BY_USAGE, 3, "target").secret == OTHER
    assert "<target>target</target>" in peer.call(rpc.GET_XML_DESC, OTHER, 0).xml
    assert peer.error(rpc.GET_VALUE, FIRST, 0).code == 66
    assert peer.call(rpc.SET_VALUE, FIRST, b"\0\xff", 0) == Void()
    assert peer.call(rpc.GET_VALUE, FIRST, 0).value == b"\0\xff"
    assert peer.call(rpc.UNDEFINE, FIRST) == Void()
    assert peer.error(rpc.UNDEFINE, FIRST).code == 66
    assert peer.call(rpc.NUM_OF_SECRETS) == Count(1)


@pytest.mark.parametrize(
    ("procedure", "args", "code", "function"),
    [
        (rpc.LIST_ALL_SECRETS, (1, 16), 8, "secretConnectListAllSecrets"),
        (rpc.DEFINE_XML, ("", 2), 8, "secretDefineXML"),
        (rpc.GET_XML_DESC, (FIRST, 1), 8, "secretGetXMLDesc"),
        (rpc.SET_VALUE, (FIRST, b"x", 1), 8, "secretSetValue"),
        (rpc.GET_VALUE, (FIRST, 1), 8, "secretGetValue"),
        (rpc.SET_VALUE, (FIRST, b"", 1), 8, "virSecretSetValue"),
    ],
)
def test_refused_arguments(
    peer: Peer, procedure: Any, args: tuple[Any, ...], code: int, function: str
) -> None:
    error = peer.error(procedure, *args)
    assert (error.code, error.domain, error.str1) == (code, 30, function)
    assert (error.int1, error.int2) == (0, 0)


def test_lists_are_bounded(peer: Peer) -> None:
    for number, text in ((-1, "must be non-negative"), (16385, "> REMOTE_SECRET_LIST_MAX")):
        error = peer.error(rpc.LIST_SECRETS, number)
        assert (error.code, error.domain, error.str2) == (39, 7, f"maxuuids {text}")


@pytest.mark.parametrize("kind", [-1, 0, 2, 6, 2**31 - 1])
def test_nothing_is_for_a_kind_that_is_not_there(peer: Peer, first: Secret, kind: int) -> None:
    error = peer.error(rpc.LOOKUP_BY_USAGE, kind, first.usage_id)
    text = f"no secret with matching usage '{first.usage_id}'"
    assert (error.code, error.domain, error.str2) == (66, 30, text)


def test_definitions_are_told_at_once(peer: Peer, first: Secret, service: Service) -> None:
    peer.call(rpc.DEFINE_XML, document(OTHER, private="yes"), 0)
    reader = Peer.of(service, readonly=True)
    told = reader.call(extension.SECRET_LIST, 0).documents
    assert set(told) == {peer.call(rpc.GET_XML_DESC, each, 0).xml for each in (first, OTHER)}
    assert len(reader.call(extension.SECRET_LIST, 4).documents) == 1
    assert reader.error(extension.SECRET_LIST, 16).code == 8
    assert not reader.ready(extension.SECRET_LIST, 0)


def test_readers_see_all_but_values(service: Service, first: Secret) -> None:
    reader = Peer.of(service, readonly=True)
    assert reader.call(rpc.LIST_ALL_SECRETS, 1, 0).secrets == (first,)
    assert MARK.decode() not in reader.call(rpc.GET_XML_DESC, first, 0).xml
    for procedure, args in (
        (rpc.DEFINE_XML, (document(OTHER), 0)),
        (rpc.SET_VALUE, (first, b"", 0)),
        (rpc.GET_VALUE, (first, 9)),
        (rpc.UNDEFINE, (first,)),
    ):
        error = reader.error(procedure, *args)
        detail = f"read only access prevents {procedure.name}"
        assert (error.code, error.domain, error.str2) == (29, 30, detail)
    carried = rpc.SecretFlagsArgs(first, 0).pack()
    assert reader.error(extension.CALL, rpc.GET_VALUE.number, carried, 0).code == 29


def elevate(peer: Peer, token: str) -> None:
    params = (
        TypedParam("unix-user-id", (ParamType.ULLONG, 107)),
        TypedParam("system.token", (ParamType.STRING, token)),
    )
    peer.call(remote.SET_IDENTITY, params, 0)


def test_what_is_private_is_for_daemons_of_this_host(service: Service, first: Secret) -> None:
    Peer.of(service).call(rpc.DEFINE_XML, document(first, private="yes"), 0)
    for identity in (Identity(), Identity(uid=0, trusted=True)):
        error = Peer.of(service, identity=identity).error(rpc.GET_VALUE, first, 0)
        assert (error.code, error.domain, error.str2) == (65, 30, "secret is private")
    root = Peer.of(service, identity=Identity(uid=0, trusted=True))
    elevate(root, "another token")  # it may speak for others, but for these it does not ask
    assert root.session.for_others
    assert root.error(rpc.GET_VALUE, first, 0).code == 65
    daemon = Peer.of(service, identity=Identity(uid=107))
    elevate(daemon, "the-token")
    assert daemon.call(rpc.GET_VALUE, first, 0).value == MARK


def test_calls_may_wait(peer: Peer, first: Secret) -> None:
    """Libvirt's daemon may keep the secrets, and take its time."""
    for procedure, args in (
        (rpc.NUM_OF_SECRETS, ()),
        (rpc.LOOKUP_BY_UUID, (first.uuid,)),
        (rpc.GET_VALUE, (first, 0)),
        (rpc.SET_VALUE, (first, b"x", 0)),
    ):
        assert not peer.ready(procedure, *args)
    assert peer.ready(rpc.EVENT_REGISTER, 0, None)


def test_events(peer: Peer) -> None:
    everything = peer.call(rpc.EVENT_REGISTER, 0, None).callback_id
    values = peer.call(rpc.EVENT_REGISTER, 1, None).callback_id
    one = peer.call(rpc.EVENT_REGISTER, 0, OTHER).callback_id
    peer.call(rpc.DEFINE_XML, document(FIRST), 0)
    peer.call(rpc.SET_VALUE, FIRST, MARK, 0)
    peer.call(rpc.DEFINE_XML, document(OTHER), 0)
    peer.call(rpc.UNDEFINE, FIRST)
    assert peer.events() == [
        LifecycleEvent(everything, FIRST, 0),
        ValueChangedEvent(values, FIRST),
        LifecycleEvent(everything, OTHER, 0),
        LifecycleEvent(one, OTHER, 0),
        LifecycleEvent(everything, FIRST, 1),
    ]
    for number in (everything, values, one):
        peer.call(rpc.EVENT_DEREGISTER, number)
    peer.told.clear()
    peer.call(rpc.UNDEFINE, OTHER)
    assert peer.told == []


def test_registrations(service: Service, peer: Peer) -> None:
    assert peer.call(rpc.EVENT_REGISTER, 0, FIRST) == CallbackId(0)
    error = peer.error(rpc.EVENT_REGISTER, 0, Secret(FIRST.uuid, 9, "whatever"))
    assert (error.code, error.str2) == (8, "event callback already tracked")
    error = peer.error(rpc.EVENT_REGISTER, 2, None)
    assert (error.code, error.str2) == (1, "unsupported secret event ID 2")
    # the words are libvirt's
    error = peer.error(rpc.EVENT_DEREGISTER, 7)
    assert error.str2 == "node device event callback 7 not registered"
    peer.session.close()
    Peer.of(service).call(rpc.DEFINE_XML, document(FIRST), 0)
    assert peer.told == []


def test_values_are_not_shown(
    peer: Peer, first: Secret, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    mark = MARK.decode()
    shown = [repr(rpc.SetValueArgs(first, MARK, 0)), repr(peer.call(rpc.GET_VALUE, first, 0))]
    carried = CallArgs(rpc.SET_VALUE.number, rpc.SetValueArgs(first, MARK, 0).pack(), 0)
    shown += [repr(carried), repr(peer.call(extension.CALL, *vars(carried).values()))]
    wish = rpc.SecretFlagsArgs(first, 0).pack()
    shown.append(repr(peer.call(extension.CALL, rpc.GET_VALUE.number, wish, 0)))

    def fail(*_: object, **__: object) -> None:
        raise StorageError("the disk is gone")

    monkeypatch.setattr(peer.service.driver, "secret_set_value", fail)
    shown.append(repr(peer.error(rpc.SET_VALUE, first, MARK, 0)))
    assert not any(mark in text for text in (*shown, caplog.text))
    assert shown[0] == "SetValueArgs(...)"


def test_names() -> None:
    known = SecretDef(UUID(int=7), SecretKind.TLS, "name", private=True, description="d")
    assert secret_record(known) == Secret(UUID(int=7).bytes, 4, "name")
    assert secret_named(secret_record(known)) == SecretDef(UUID(int=7), SecretKind.TLS, "name")
    bare = SecretDef(UUID(int=7))
    assert secret_named(secret_record(bare)) == bare
    assert secret_named(Secret(UUID(int=7).bytes, 99, "from a later libvirt")) == bare
    assert [kind_numbered(number) for number in range(6)] == list(KINDS)
    assert kind_numbered(-1) is kind_numbered(6) is None
