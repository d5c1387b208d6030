"""The calls on images: what they answer, as jobs and not, to whom, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from storaged.rpc import extension, storage
from storaged.rpc import images as rpc
from storaged.rpc.extension import CallFlag, JobEnded, JobFacts
from storaged.rpc.program import AnyProcedure
from storaged.rpc.record import Void
from storaged.rpc.storage import PoolArgs, StoragePool, StorageVol, VolRet
from storaged.service import Service
from tests.doubles import Control, eventually
from tests.service.conftest import NOWHERE, Peer


def qcow2_xml(name: str, capacity: int = 1 << 20, *, backing: Path | None = None) -> str:
    inner = f"<path>{backing}</path><format type='qcow2'/>"
    below = f"<backingStore>{inner}</backingStore>" if backing else ""
    return f"""<volume><name>{name}</name><capacity>{capacity}</capacity>
        <target><format type='qcow2'/><compat>1.1</compat></target>{below}</volume>"""


def raw_xml(name: str) -> str:
    return f"<volume><name>{name}</name><capacity>4096</capacity></volume>"


@pytest.fixture
def pool(peer: Peer, target: Path) -> StoragePool:
    """A started pool whose work can be held."""
    return peer.started("p", target, "double")


@pytest.fixture
def pool2(peer: Peer, target: Path) -> StoragePool:
    """A started pool of type dir: the double's volumes have format raw on the wire."""
    return peer.started("q", target.parent / "q")


@pytest.fixture
def base(peer: Peer, pool2: StoragePool) -> StorageVol:
    """A qcow2 of 1 MiB."""
    made: StorageVol = peer.call(storage.VOL_CREATE_XML, pool2, qcow2_xml("base"), 0).vol
    return made


@pytest.fixture
def top(peer: Peer, pool2: StoragePool, base: StorageVol) -> StorageVol:
    """An overlay of it."""
    xml = qcow2_xml("top", backing=Path(base.key))
    made: StorageVol = peer.call(storage.VOL_CREATE_XML, pool2, xml, 0).vol
    return made


def begin(peer: Peer, procedure: AnyProcedure, *args: Any, flags: int = 0) -> JobFacts:
    packed = procedure.args(*args).pack()
    wanted = flags | int(CallFlag.OWN)
    begun: JobFacts = peer.call(extension.JOB_BEGIN, procedure.number, packed, wanted).job
    return begun


def ended(peer: Peer) -> JobEnded:
    def ends() -> list[JobEnded]:
        return [event for event in peer.events() if isinstance(event, JobEnded)]

    eventually(lambda: bool(ends()))
    return ends()[-1]


def inspect(peer: Peer, vol: StorageVol) -> rpc.VolInspectRet:
    found: rpc.VolInspectRet = peer.call(rpc.VOL_INSPECT, vol)
    return found


def test_a_check(peer: Peer, base: StorageVol) -> None:
    report = peer.call(rpc.VOL_CHECK, base)
    assert (report.format, report.corruptions, report.leaks, report.total) == ("qcow2", 0, 0, 16)


def test_a_check_as_a_job(peer: Peer, base: StorageVol) -> None:
    facts = begin(peer, rpc.VOL_CHECK, base)
    assert (facts.kind, facts.pool, facts.volume) == ("check", "q", "base")
    told = ended(peer)
    assert (told.job.id, told.job.state) == (facts.id, "done")
    assert rpc.VolCheckRet.unpack(told.ret).format == "qcow2"


def test_what_has_no_tables(peer: Peer, pool: StoragePool) -> None:
    error = peer.error(rpc.VOL_CHECK, peer.made(pool, "r"))
    assert (error.code, error.str2) == (84, "volumes of format raw have no tables")
    assert peer.error(rpc.VOL_CHECK, StorageVol("p", "none", "")).code == 50
    assert peer.error(rpc.VOL_INSPECT, StorageVol("none", "none", "")).code == 49


def test_an_inspection(peer: Peer, base: StorageVol, top: StorageVol) -> None:
    found = inspect(peer, top)
    assert found.image is not None
    assert (found.image.backing, found.image.backing_format) == (base.key, "qcow2")
    assert [layer.name for layer in found.chain] == ["top", base.key]
    assert inspect(peer, base).used_by == (f"{top.pool}/{top.name}",)


def test_rebase(peer: Peer, base: StorageVol, top: StorageVol) -> None:
    assert peer.call(rpc.VOL_REBASE, top, None, None, 0) == Void()
    assert len(inspect(peer, top).chain) == 1
    assert peer.error(rpc.VOL_REBASE, top, "none", "qcow2", 0).code == 38
    assert peer.error(rpc.VOL_REBASE, top, "base", None, 0).code == 8
    begin(peer, rpc.VOL_REBASE, top, "none", "qcow2", 0, flags=int(CallFlag.FORCE))
    assert ended(peer).job.state == "done"
    assert peer.call(rpc.VOL_REBASE, top, "base", "qcow2", 0) == Void()
    assert [layer.format for layer in inspect(peer, top).chain] == ["qcow2", "qcow2"]
    only = int(rpc.RebaseFlag.FORMAT_ONLY)
    assert peer.call(rpc.VOL_REBASE, top, None, "qcow2", only) == Void()
    assert peer.error(rpc.VOL_REBASE, top, "base", "qcow2", only).code == 8
    assert peer.error(rpc.VOL_REBASE, top, None, None, only).code == 8


def test_amend(peer: Peer, base: StorageVol) -> None:
    assert peer.call(rpc.VOL_AMEND, base, 1, None) == Void()
    image = inspect(peer, base).image
    assert image is not None
    assert image.features == ("lazy_refcounts",)
    assert peer.error(rpc.VOL_AMEND, base, 2, None).code == 8
    assert peer.error(rpc.VOL_AMEND, base, 9, None).code == 8
    assert peer.error(rpc.VOL_AMEND, base, 2, "0.10").code == 67


def convert(vol: StorageVol, **given: Any) -> tuple[Any, ...]:
    made = {
        "vol": vol, "format": None, "compat": None, "cluster_size": 0, "lazy_refcounts": 2,
        "extended_l2": 2, "compress": None, "subformat": None, "flatten": 0, "durability": None,
        "secret": None, **given,
    }  # fmt: skip
    return tuple(made.values())


def test_convert(peer: Peer, base: StorageVol, top: StorageVol) -> None:
    assert peer.call(rpc.VOL_CONVERT, *convert(top, flatten=1, compress="zstd")) == Void()
    found = inspect(peer, top)
    assert found.image is not None
    assert (len(found.chain), found.image.compression) == (1, "zstd")
    for given in ({"compress": "lzma"}, {"durability": "some"}, {"extended_l2": 7}):
        assert peer.error(rpc.VOL_CONVERT, *convert(base, **given)).code == 8
    assert peer.error(rpc.VOL_CONVERT, *convert(base, secret=b"x")).code == 8


def test_a_conversion_ends_with_who_began_it(
    service: Service, peer: Peer, pool: StoragePool, control: Control
) -> None:
    vol = peer.made(pool, "v")
    other = Peer.of(service)
    control.hold("rewrite", lively=True)
    begin(other, rpc.VOL_CONVERT, *convert(vol, format="qcow2"))
    control.wait_for("rewrite")
    other.session.close()
    eventually(lambda: not service.driver.jobs())
    assert peer.call(extension.VOL_FACTS, vol).facts.format == "raw"


def clone(pool: StoragePool, xml: str, source: StorageVol, **given: Any) -> tuple[Any, ...]:
    made = {
        "pool": pool, "xml": xml, "clonevol": source, "flags": 0, "backing": "flatten",
        "compress": None, "durability": None, "secret": None, "source_secret": None, **given,
    }  # fmt: skip
    return tuple(made.values())


def test_a_linked_clone(peer: Peer, pool2: StoragePool, base: StorageVol) -> None:
    answer = peer.call(rpc.VOL_CLONE, *clone(pool2, qcow2_xml("c"), base, backing="linked"))
    assert isinstance(answer, VolRet)
    assert [layer.name for layer in inspect(peer, answer.vol).chain] == ["c", base.key]
    wrong = clone(pool2, qcow2_xml("d"), base, backing="nonsense")
    assert peer.error(rpc.VOL_CLONE, *wrong).code == 8
    assert peer.error(rpc.VOL_CLONE, *clone(NOWHERE, qcow2_xml("d"), base)).code == 49


def test_a_secret_for_a_plain_volume(peer: Peer, pool2: StoragePool, base: StorageVol) -> None:
    error = peer.error(rpc.VOL_CREATE, pool2, raw_xml("v"), 0, b"hunter2")
    assert (error.code, "hunter2" in repr(error)) == (8, False)
    error = peer.error(rpc.VOL_CLONE, *clone(pool2, qcow2_xml("d"), base, secret=b"hunter2"))
    assert (error.code, "hunter2" in repr(error)) == (8, False)


def test_create_and_resize_without_one(peer: Peer, pool: StoragePool) -> None:
    made = peer.call(rpc.VOL_CREATE, pool, raw_xml("v"), 0, None).vol
    assert peer.call(rpc.VOL_RESIZE, made, 8192, 0, None) == Void()
    assert peer.call(extension.VOL_FACTS, made).facts.capacity == 8192


# Calls within a call


def test_only_images_within_our_own_call(peer: Peer, pool: StoragePool) -> None:
    for number in (2, 3, 4, 13, 27, 0, -1, 999):
        for outer in (extension.CALL, extension.JOB_BEGIN):
            error = peer.error(outer, number, PoolArgs(pool).pack(), int(CallFlag.OWN))
            assert (error.code, error.message) == (39, f"unknown procedure: {number}")


def test_within_a_call(peer: Peer, base: StorageVol) -> None:
    args = rpc.VolCheckArgs(base).pack()
    answer = peer.call(extension.CALL, rpc.VOL_CHECK.number, args, int(CallFlag.OWN))
    assert rpc.VolCheckRet.unpack(answer.ret).format == "qcow2"


def test_what_a_reader_may(service: Service, peer: Peer, base: StorageVol) -> None:
    reader = Peer.of(service, readonly=True)
    assert reader.call(rpc.VOL_CHECK, base).format == "qcow2"
    begin(reader, rpc.VOL_INSPECT, base)
    assert ended(reader).job.state == "done"
    for procedure, args in (
        (rpc.VOL_REBASE, (base, None, None, 0)),
        (rpc.VOL_AMEND, (base, 1, None)),
        (rpc.VOL_CONVERT, convert(base)),
    ):
        assert reader.error(procedure, *args).code == 29


def test_a_reader_cancels_only_what_it_began(
    service: Service, peer: Peer, pool: StoragePool, control: Control
) -> None:
    vol = peer.made(pool, "v")
    reader = Peer.of(service, readonly=True)
    control.hold("check_image", lively=True)
    foreign, own = begin(peer, rpc.VOL_CHECK, vol), begin(reader, rpc.VOL_CHECK, vol)
    control.wait_for("check_image", 2)
    error = reader.error(extension.JOB_CANCEL, foreign.id)
    assert (error.code, error.str2) == (29, "read only access prevents storagedJobCancel")
    assert reader.call(extension.JOB_CANCEL, own.id) == Void()
    assert ended(reader).job.state == "cancelled"
