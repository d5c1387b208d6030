"""Arguments of somebody who means no good: an error each, and nothing left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storaged.errors import StorageError
from storaged.flow import Sink
from storaged.job import Pending
from storaged.rpc import extension, remote
from storaged.rpc import storage as rpc
from storaged.rpc.program import AnyProcedure
from storaged.rpc.storage import StoragePool, StorageVol
from storaged.service import Opened, Service
from tests.service.conftest import NOWHERE, Peer, volume_xml
from tests.service.test_access import SERVED

NAMES = (
    "\udcff\udcfe",
    "\0",
    "a\0b",
    "x" * (1 << 20),
    "%s%n",
    "..",
    ".",
    "/",
    "//",
    "/etc/passwd",
    "../../etc/passwd",
    "\n",
    "é\u202e",
    "-rf",
)


def done(outcome: Any) -> Any:
    """Return the reply of an outcome."""
    return outcome.result(10) if isinstance(outcome, Pending) else outcome


@pytest.mark.parametrize("name", NAMES, ids=[repr(name)[:12] for name in NAMES])
def test_names(peer: Peer, pool: StoragePool, name: str, target: Path) -> None:
    """Also as they come within a process, where no wire has cut them."""
    vol = StorageVol("p", name, name)
    for procedure, args in (
        (rpc.POOL_LOOKUP_BY_NAME, (name,)),
        (rpc.POOL_LOOKUP_BY_TARGET_PATH, (name,)),
        (rpc.POOL_LOOKUP_BY_VOLUME, (StorageVol(name, name, name),)),
        (rpc.VOL_LOOKUP_BY_NAME, (pool, name)),
        (rpc.VOL_LOOKUP_BY_KEY, (name,)),
        (rpc.VOL_LOOKUP_BY_PATH, (name,)),
        (rpc.VOL_LOOKUP_BY_PATH, (f"{target}/{name}",)),
        (rpc.VOL_GET_INFO, (vol,)),
        (rpc.VOL_GET_PATH, (vol,)),
        (rpc.VOL_GET_XML_DESC, (vol, 0)),
        (rpc.VOL_DELETE, (vol, 0)),
        (rpc.VOL_RESIZE, (vol, 1, 0)),
        (rpc.VOL_WIPE, (vol, 0)),
        (rpc.VOL_UPLOAD, (vol, 0, 0, 0)),
        (rpc.VOL_DOWNLOAD, (vol, 0, 0, 0)),
        (rpc.VOL_CREATE_XML, (pool, volume_xml("w")[:20] + name, 0)),
        (rpc.FIND_POOL_SOURCES, (name, name, 0)),
        (rpc.POOL_DEFINE_XML, (name, 0)),
    ):
        record = procedure.args(*args)
        assert isinstance(peer.session.ready(procedure, record), bool)
        with pytest.raises(StorageError) as caught:
            done(peer.session.call(procedure, record))
        assert caught.value.code in (1, 8, 27, 35, 38, 49, 50)
        if "\0" not in name:
            assert peer.error(procedure, *args).code == caught.value.code
    assert list(target.iterdir()) == []


def test_a_name_that_is_not_utf8(peer: Peer, pool: StoragePool, target: Path) -> None:
    name = b"caf\xe9"
    (target / name.decode(errors="surrogateescape")).write_bytes(b"x" * 512)
    peer.call(rpc.POOL_REFRESH, pool, 0)
    (listed,) = peer.call(rpc.POOL_LIST_ALL_VOLUMES, pool, 1, 0).vols
    assert listed.name.encode(errors="surrogateescape") == name
    assert peer.call(rpc.VOL_GET_INFO, listed).capacity == 512
    assert peer.call(rpc.VOL_LOOKUP_BY_PATH, listed.key).vol == listed
    peer.call(rpc.VOL_GET_XML_DESC, listed, 0)
    peer.call(extension.VOL_FACTS, listed)
    peer.call(rpc.VOL_DELETE, listed, 0)


DOCUMENTS = ("&x;" * 10, "<a>" * 100_000, "<!DOCTYPE a [<!ENTITY b 'c'>]><a/>")


@pytest.mark.parametrize("text", DOCUMENTS, ids=["references", "depth", "entities"])
def test_documents(peer: Peer, pool: StoragePool, text: str) -> None:
    for procedure, args in (
        (rpc.POOL_DEFINE_XML, (text, 0)),
        (rpc.POOL_CREATE_XML, (text, 0)),
        (rpc.VOL_CREATE_XML, (pool, text, 0)),
        (rpc.VOL_CREATE_XML, (pool, text, 4)),
    ):
        assert peer.error(procedure, *args).code in (1, 27, 35, 92)


WORDS = st.text(max_size=12) | st.sampled_from(["p", "v", "", "/", *NAMES[:3]])
BYTES = st.binary(max_size=40)


def values(name: str, code: str, optional: bool) -> st.SearchStrategy[Any]:
    """Return a strategy for a field of arguments, by its name and type."""
    pool = st.sampled_from([NOWHERE, StoragePool("p", bytes(16))])
    vol = st.builds(StorageVol, st.sampled_from(["p", "no"]), WORDS, WORDS)
    known: dict[str, st.SearchStrategy[Any]] = {
        "pool": pool,
        "vol": vol,
        "clonevol": vol,
        "uuid": st.binary(min_size=16, max_size=16),
        "args": BYTES,
        "data": BYTES,
        "secret": BYTES,
        "source_secret": BYTES,
        "params": st.just(()),
        "policy": st.builds(
            extension.Policy, *[st.none() | st.integers(0, 2**32 - 1) for _ in range(3)]
        ),
    }
    bounds = {
        "i": (-(2**31), 2**31 - 1),
        "I": (0, 2**32 - 1),
        "q": (-(2**63), 2**63 - 1),
        "Q": (0, 2**64 - 1),
    }
    found = known.get(name)
    if found is None:
        found = WORDS if not code else st.integers(*bounds[code]) | st.integers(0, 8)
    return found | st.none() if optional else found


def arguments(procedure: AnyProcedure) -> st.SearchStrategy[Any]:
    fields = [
        values(name, kind.code, type(kind).__name__ == "Maybe")
        for name, kind in procedure.args.field_types().items()
    ]
    return st.tuples(*fields)


CALLS = st.sampled_from([*SERVED, remote.SUPPORTS_FEATURE, remote.GET_URI]).flatmap(
    lambda procedure: st.tuples(st.just(procedure), arguments(procedure))
)


@settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(CALLS)
def test_any_call(service: Service, call: tuple[AnyProcedure, tuple[Any, ...]]) -> None:
    """Whatever is sent: a reply that can be packed, or an error of ours."""
    procedure, args = call
    peer = Peer.of(service)
    try:
        found = peer.call(procedure, *args)
    except StorageError:
        return
    finally:
        peer.session.close()
    if isinstance(found, Opened):
        end: Any = found.sink or found.source
        end.abort()


def test_sinks_are_sinks(peer: Peer, vol: StorageVol) -> None:
    sink: Sink = peer.call(rpc.VOL_UPLOAD, vol, 0, 0, 0).sink
    sink.abort()
    sink.abort()
