"""The library's secrets: in this process, over a link to each kind of daemon, always the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

import storaged
from storaged import (
    InvalidArgument,
    InvalidSecret,
    NoSuchSecret,
    Secret,
    SecretChange,
    SecretDef,
    SecretEvent,
    SecretKind,
    Storage,
    Unsupported,
)
from storaged.client.engine import RemoteEngine
from storaged.client.enginepeer import ExtendedPeer, Peer
from storaged.errors import InternalError
from storaged.rpc.errors import OperationDenied
from storaged.rpc.secret import Secret as WireSecret
from tests.doubles import eventually
from tests.storaged.libvirtd import libvirtd

VALUE = b"\0quite secret\xff"


@pytest.fixture(scope="module")
def keeper_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of libvirt's own daemon, with its driver of secrets."""
    with libvirtd(tmp_path_factory.mktemp("keeper"), secrets=True) as running:
        yield running.uri.replace("storage:", "secret:")


@pytest.fixture(params=["library", "embedded", "storaged", "libvirtd"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    if request.param == "library":
        opened = storaged.open(tmp_path / "root")
    elif request.param == "embedded":
        opened = storaged.connect(f"storage:///embed?root={tmp_path / 'root'}")
    else:
        name = {"storaged": "daemon_uri", "libvirtd": "keeper_uri"}[request.param]
        opened = storaged.connect(request.getfixturevalue(name))
    with opened:
        yield opened
        for each in opened.secrets.list():
            each.undefine()


def test_life(storage: Storage) -> None:
    secrets = storage.secrets
    assert secrets.list() == []
    wanted = SecretDef(uuid4(), SecretKind.VOLUME, "/images/a <&>", description="for 'a'")
    made = secrets.define(wanted)
    assert isinstance(made, Secret)
    assert (made.uuid, made.definition()) == (wanted.uuid, wanted)
    assert f"<uuid>{wanted.uuid}</uuid>" in made.xml()
    with pytest.raises(NoSuchSecret, match="does not have a value"):
        made.value()
    for value in (VALUE, b"x" * 65536, b"\n"):
        made.set_value(value)
        assert made.value() == value
    assert secrets.define(made.xml(), validate=True) == made
    assert made.value() == b"\n"
    assert secrets.list() == [made]
    assert secrets.lookup(str(wanted.uuid)) == secrets.lookup(wanted.uuid) == made
    assert secrets.lookup_usage("volume", "/images/a <&>") == made
    assert hash(made) == hash(secrets.lookup(wanted.uuid))
    made.undefine()
    for gone in (made.undefine, made.value, made.xml, made.definition):
        with pytest.raises(NoSuchSecret, match=f"no secret with matching uuid '{wanted.uuid}'"):
            gone()
    assert secrets.list() == []


def test_lists(storage: Storage) -> None:
    made = {
        (ephemeral, private): storage.secrets.define(
            SecretDef(
                uuid4(),
                SecretKind.CEPH,
                f"{ephemeral} {private}",
                ephemeral=ephemeral,
                private=private,
            )
        )
        for ephemeral in (False, True)
        for private in (False, True)
    }
    for wants_ephemeral in (None, False, True):
        for wants_private in (None, False, True):
            found = storage.secrets.list(ephemeral=wants_ephemeral, private=wants_private)
            expected = [
                secret
                for (ephemeral, private), secret in made.items()
                if wants_ephemeral in (None, ephemeral) and wants_private in (None, private)
            ]
            assert found == sorted(expected, key=lambda secret: str(secret.uuid))
    kinds = storage.secrets.definitions()
    assert {(each.ephemeral, each.private) for each in kinds} == set(made)


def test_refused(storage: Storage) -> None:
    secrets = storage.secrets
    made = secrets.define(SecretDef(uuid4(), SecretKind.ISCSI, "t", private=True))
    made.set_value(VALUE)
    with pytest.raises(InvalidSecret, match="secret is private") as refused:
        made.value()
    assert refused.value.code == 65
    for value in (b"", b"x" * 65537):
        with pytest.raises(InvalidArgument) as wrong:
            made.set_value(value)
        assert "xxx" not in str(wrong.value)
    with pytest.raises(InternalError, match="already defined for use with t"):
        secrets.define(SecretDef(uuid4(), SecretKind.ISCSI, "t"))
    with pytest.raises(InternalError, match="cannot change private flag"):
        secrets.define(SecretDef(made.uuid, SecretKind.ISCSI, "t"))
    with pytest.raises(NoSuchSecret):
        secrets.lookup(uuid4())
    with pytest.raises(NoSuchSecret, match="no secret with matching usage 'another'"):
        secrets.lookup_usage(SecretKind.ISCSI, "another")
    with pytest.raises(InvalidArgument, match="malformed uuid 'zz'"):
        secrets.lookup("zz")
    with pytest.raises(InvalidArgument, match="no kind of secret 'nfs'"):
        secrets.lookup_usage("nfs", "t")
    shown = [repr(each) for each in (made, made.definition(), secrets)]
    assert not any("quite" in text for text in (*shown, made.xml()))


def test_events(storage: Storage) -> None:
    heard: list[SecretEvent] = []
    stop = storage.secrets.subscribe(heard.append)
    made = storage.secrets.define(SecretDef(uuid4(), SecretKind.TLS, "name"))
    made.set_value(VALUE)
    made.undefine()
    eventually(lambda: len(heard) >= 3)
    assert [each.change for each in heard] == [
        SecretChange.DEFINED,
        SecretChange.VALUE_CHANGED,
        SecretChange.UNDEFINED,
    ]
    assert {each.secret for each in heard} == {SecretDef(made.uuid, SecretKind.TLS, "name")}
    stop()
    storage.secrets.define(SecretDef(uuid4(), SecretKind.TLS, "name"))
    assert len(heard) == 3


def test_who_only_reads(daemon_uri: str) -> None:
    with storaged.connect(daemon_uri) as writer:
        made = writer.secrets.define(SecretDef(uuid4(), SecretKind.TLS, "read only"))
        made.set_value(VALUE)
        with storaged.connect(daemon_uri, readonly=True) as reader:
            seen = reader.secrets.lookup(made.uuid)
            assert seen.definition().usage_id == "read only"
            for forbidden in (seen.value, seen.undefine, lambda: seen.set_value(b"x")):
                with pytest.raises(OperationDenied, match="read only access prevents virSecret"):
                    forbidden()
        made.undefine()


def test_libvirts_driver_of_storage_has_none(libvirt_uri: str) -> None:
    with storaged.connect(libvirt_uri) as storage, pytest.raises(Unsupported):
        storage.secrets.list()


def test_one_that_goes_while_it_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside libvirt's daemon, or an older one of ours."""
    with storaged.connect(f"storage:///embed?root={tmp_path / 'root'}") as storage:
        monkeypatch.setattr(Peer, "secret_documents", lambda *_: None)
        monkeypatch.setattr(ExtendedPeer, "secret_documents", Peer.secret_documents)
        kept = storage.secrets.define(SecretDef(UUID(int=2), SecretKind.TLS, "kept"))
        storage.secrets.define(SecretDef(UUID(int=1), SecretKind.TLS, "going"))
        engine = storage.engine
        assert isinstance(engine, RemoteEngine)
        read = engine._read

        def losing(record: WireSecret) -> SecretDef:
            if record.usage_id == "going":
                engine.secret_undefine(UUID(int=1))
            return read(record)

        monkeypatch.setattr(engine, "_read", losing)
        assert storage.secrets.definitions() == [kept.definition()]


def test_all_are_asked_for_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with storaged.connect(f"storage:///embed?root={tmp_path / 'root'}") as storage:
        kept = storage.secrets.define(SecretDef(UUID(int=2), SecretKind.TLS, "kept"))
        assert isinstance(storage.engine, RemoteEngine)
        monkeypatch.setattr(storage.engine, "_xml", None)
        assert storage.secrets.list(private=False) == [kept]
        assert storage.secrets.definitions() == [SecretDef(kept.uuid, SecretKind.TLS, "kept")]
