"""Rbd pools whose cluster is away, refuses us, is full, or changes under us."""

from __future__ import annotations

import base64
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from storaged.backends.ceph.monitors import Unreachable, addresses
from storaged.errors import (
    InternalError,
    InvalidArgument,
    NoSpace,
    NoSuchSecret,
    OperationFailed,
    StorageError,
    SystemFailure,
    VolumeBusy,
)
from storaged.flow import Sink
from storaged.job import Job
from storaged.poolhandle import Pool
from storaged.storage import Storage
from tests.backends.rbdpools import IMPATIENT, backend_of, engine, opened, pool_xml, start
from tests.ceph.cluster import Cluster
from tests.ceph.fixtures import CephPools
from tests.ceph.images import Pool as CephPool
from tests.kernel.programs import eventually, patience

#: Options with which work on volumes fails before anybody thinks that the pool is gone.
HASTY = {**IMPATIENT, "rados_osd_op_timeout": "3"}
#: Seconds in which everything fails that need not wait for a time-out.
SOON = 1.5


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Fail if what is done takes longer, with room for a machine that has much to do."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < patience(seconds) + 3


@contextmanager
def saying(data: bytes, *, hang_up: bool = False) -> Iterator[tuple[str, int]]:
    """Give the address of a server that says something to everybody, and no more."""
    with socket.create_server(("127.0.0.1", 0)) as listening, ExitStack() as peers:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    peer = peers.enter_context(listening.accept()[0])
                    peer.sendall(data)
                    if hang_up:
                        peer.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield "127.0.0.1", listening.getsockname()[1]
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.fixture
def dead() -> Iterator[tuple[str, int]]:
    """Give an address where nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield "127.0.0.1", held.getsockname()[1]


def secret(
    storage: Storage, value: bytes | None, *, kind: str = "ceph", name: str = "other"
) -> str:
    """Make a secret with a value, and return how a pool names it."""
    inner = "target" if kind == "iscsi" else "name"
    text = f"<usage type='{kind}'><{inner}>{name}</{inner}></usage>"
    made = storage.secrets.define(f"<secret ephemeral='no' private='yes'>{text}</secret>")
    if value is not None:
        made.set_value(value)
    return f"uuid='{made.uuid}'"


def failure(storage: Storage, xml: str) -> StorageError:
    """Start a pool, and return why that fails."""
    pool = storage.define_pool(xml)
    try:
        with pytest.raises(StorageError) as caught:
            pool.start()
        assert not pool.active
    finally:
        pool.undefine()
    return caught.value


def wrong_key(cluster: Cluster) -> bytes:
    key = bytearray(base64.b64decode(cluster.key()))
    key[-1] ^= 1
    return bytes(key)


# Starts


@pytest.mark.parametrize(
    ("said", "hang_up"),
    [(b"SSH-2.0-OpenSSH_9.2\r\n", False), (b"\0\xff" * 5000, False), (b"", True), (b"ce", True)],
)
def test_something_else_than_a_monitor_is_told_at_once(
    tmp_path: Path, ceph_open: Cluster, said: bytes, hang_up: bool
) -> None:
    with (
        engine(tmp_path, ceph_open) as storage,
        saying(said, hang_up=hang_up) as where,
        at_most(SOON),
    ):
        error = failure(storage, pool_xml(ceph_open, "p", hosts=[where], options=IMPATIENT))
    shown = f"127.0.0.1:{where[1]}"
    assert isinstance(error, SystemFailure)
    assert str(error).startswith(f"failed to connect to the RADOS monitor on: {shown}: ")
    assert error.code == 38
    assert error.advice == (f"No monitor answers: {shown}: what answers there is no Ceph monitor")


def test_monitors_that_do_not_answer_are_named(
    tmp_path: Path, ceph_open: Cluster, dead: tuple[str, int]
) -> None:
    with engine(tmp_path, ceph_open) as storage:
        with at_most(SOON):
            error = failure(storage, pool_xml(ceph_open, "p", hosts=[dead], options=IMPATIENT))
        assert error.advice == f"No monitor answers: 127.0.0.1:{dead[1]}: Connection refused"
        with saying(b"") as silent, at_most(2):
            hosts = [silent, dead, ("no-such-host.invalid", 6789)]
            error = failure(storage, pool_xml(ceph_open, "p", hosts=hosts, options=IMPATIENT))
    shown = f"127.0.0.1:{silent[1]},127.0.0.1:{dead[1]},no-such-host.invalid:6789"
    assert f"failed to connect to the RADOS monitor on: {shown}: " in str(error)
    assert error.code == 38
    assert error.advice is not None
    told = error.advice.removeprefix("No monitor answers: ").split("; ")
    assert told[:2] == [
        f"127.0.0.1:{silent[1]}: no answer within 2 s",
        f"127.0.0.1:{dead[1]}: Connection refused",
    ]
    assert told[2].startswith("no-such-host.invalid:6789: ")


def test_a_frozen_monitor_fails_the_start_in_time(
    tmp_path: Path, ceph_cluster: Cluster, ceph_pool: CephPool
) -> None:
    with engine(tmp_path, ceph_cluster) as storage:
        xml = pool_xml(ceph_cluster, ceph_pool.name, options=IMPATIENT)
        with ceph_cluster.mon.frozen(), at_most(2):
            error = failure(storage, xml)
        assert error.code == 38
        assert error.advice is not None
        assert error.advice.endswith("no answer within 2 s")
        storage.define_pool(xml).start()


@pytest.mark.parametrize("banner", [b"ceph v2\n", b"ceph v027" + b"\xff" * 300])
def test_what_only_begins_like_a_monitor_fails_the_start_in_time(
    tmp_path: Path, ceph_open: Cluster, banner: bytes
) -> None:
    with engine(tmp_path, ceph_open) as storage, saying(banner) as where, at_most(2):
        error = failure(storage, pool_xml(ceph_open, "p", hosts=[where], options=IMPATIENT))
    assert error.code == 38
    assert error.advice is not None
    assert f"127.0.0.1:{where[1]} answers and lets nobody in" in error.advice


def test_one_monitor_that_answers_is_enough(
    tmp_path: Path, ceph_cluster: Cluster, ceph_pool: CephPool, dead: tuple[str, int]
) -> None:
    good = (ceph_cluster.host, ceph_cluster.port)
    with engine(tmp_path, ceph_cluster) as storage, saying(b"") as silent, saying(b"SSH") as ssh:
        for number, hosts in enumerate([(dead, good), (good, dead), (silent, ssh, good)]):
            with at_most(SOON):
                pool = start(storage, ceph_cluster, ceph_pool, name=f"p{number}", hosts=hosts)
            assert pool.active
        wrong = secret(storage, wrong_key(ceph_cluster))
        xml = pool_xml(ceph_cluster, ceph_pool.name, name="w", hosts=[silent, good], secret=wrong)
        with at_most(SOON):
            assert "refuse client.libvirt" in str(failure(storage, xml).advice)


def test_a_host_may_hold_its_port(
    tmp_path: Path, ceph_cluster: Cluster, ceph_pool: CephPool
) -> None:
    hosts = [(f"{ceph_cluster.host}:{ceph_cluster.port}", None)]
    with opened(tmp_path, ceph_cluster, ceph_pool, hosts=hosts) as (_, pool):
        assert pool.active
        assert pool.definition().source.hosts[0].name == hosts[0][0]


def test_looks_prefer_the_newer_protocol(ceph_cluster: Cluster) -> None:
    host, endpoint = ceph_cluster.host, ceph_cluster.endpoint
    assert addresses([(host, endpoint.port)], 5) == f"v1:{host}:{endpoint.port}"
    assert addresses([(host, endpoint.port2)], 5) == f"v2:{host}:{endpoint.port2}"
    assert addresses([("localhost", endpoint.port2)], 5) == f"v2:{host}:{endpoint.port2}"
    with pytest.raises(Unreachable, match="nobody"):
        addresses([("nobody.invalid", 0), ("\0", 1)], 5)


@pytest.mark.parametrize("port", ["port", "port2"])
def test_who_is_refused_is_told_at_once(
    tmp_path: Path, ceph_cluster: Cluster, ceph_open: Cluster, port: str
) -> None:
    """Also on ports that are not Ceph's own."""
    with engine(tmp_path, ceph_cluster) as storage:

        def advice(cluster: Cluster, **how: object) -> str:
            hosts = [(cluster.host, getattr(cluster.endpoint, port))]
            with at_most(SOON):
                error = failure(storage, pool_xml(cluster, "p", hosts=hosts, **how))  # type: ignore[arg-type]
            assert str(error).startswith("failed to connect to the RADOS monitor on: ")
            assert error.code == 38
            return str(error.advice)

        wrong = secret(storage, wrong_key(ceph_cluster))
        refused = "The monitors answer, and refuse client.libvirt with the key of the secret"
        assert advice(ceph_cluster, secret=wrong).startswith(refused)
        assert "refuse client.nobody" in advice(ceph_cluster, user="nobody")
        assert "let nobody in without a key" in advice(ceph_cluster, auth=False)
        assert "know no cephx" in advice(ceph_open, auth=True)
        malformed = secret(storage, b"a password", name="malformed")
        told = advice(ceph_cluster, secret=malformed)
        assert told.startswith("The value of the secret is no key of Ceph.")
        assert f"storagectl secret set-value {malformed[6:-1]} --base64 --file -" in told


@pytest.mark.slow
def test_a_wrong_key_is_refused_on_ceph_s_own_ports(
    tmp_path: Path, ceph_known_port: Cluster
) -> None:
    ceph_known_port.create_pool("p")
    with engine(tmp_path, ceph_known_port) as storage:
        start(storage, ceph_known_port, "p", name="well", hosts=[(ceph_known_port.host, None)])
        wrong = secret(storage, wrong_key(ceph_known_port))
        for number in (None, 6789, 3300):
            hosts = [(ceph_known_port.host, number)]
            with at_most(SOON):
                error = failure(storage, pool_xml(ceph_known_port, "p", hosts=hosts, secret=wrong))
            assert "refuse client.libvirt" in str(error.advice)


def test_secrets_that_are_of_no_use(tmp_path: Path, ceph_cluster: Cluster) -> None:
    with engine(tmp_path, ceph_cluster) as storage:
        empty = secret(storage, None, name="empty")
        foreign = secret(storage, b"x", kind="iscsi")
        nobody = "uuid='11111111-2222-4333-8444-555555555555'"
        for given, kind, code, text in (
            (nobody, NoSuchSecret, 66, "no secret with matching uuid '11111111-2222-4333-8444"),
            ("usage='nix'", NoSuchSecret, 66, "no secret with matching usage 'nix'"),
            (empty, NoSuchSecret, 66, f"secret '{empty[6:-1]}' does not have a value"),
            (foreign, InvalidArgument, 8, "is of type 'iscsi' not expected 'ceph' type"),
        ):
            error = failure(storage, pool_xml(ceph_cluster, "p", secret=given))
            assert isinstance(error, kind)
            assert error.code == code
            assert text in str(error)


def test_what_is_not_there_has_a_text_of_its_own(
    tmp_path: Path, ceph_cluster: Cluster, ceph_pool: CephPool
) -> None:
    name = ceph_pool.name
    with engine(tmp_path, ceph_cluster) as storage:
        error = failure(storage, pool_xml(ceph_cluster, "no-such-pool"))
        text = "failed to create the RBD IoCTX. Does the pool 'no-such-pool' exist?"
        assert str(error).startswith(text)
        assert error.code == 38
        error = failure(storage, pool_xml(ceph_cluster, f"{name}/space"))
        assert f"Does the namespace 'space' of pool '{name}' exist?" in str(error)
        assert f"rbd namespace create {name}/space" in str(error.advice)
        for option in ("nosuchoption", "rados_osd_op_timeout"):
            error = failure(storage, pool_xml(ceph_cluster, name, options={option: "soon"}))
            assert isinstance(error, InternalError)
            assert error.message == f"internal error: failed to set RADOS option: {option}"
        ceph_pool.create_namespace("space")
        start(storage, ceph_cluster, f"{name}/space")


def test_a_user_who_may_only_read(
    tmp_path: Path, ceph_cluster: Cluster, ceph_pool: CephPool
) -> None:
    ceph_cluster.add_user("client.ro", {"mon": "profile rbd", "osd": "profile rbd-read-only"})
    ceph_pool.create("image", 8 << 20).write(0, b"data" * 1024)
    how = {"user": "ro", "options": IMPATIENT}
    with opened(
        tmp_path / "root", ceph_cluster, ceph_pool, engine_options={"watch": True}, **how
    ) as (_, pool):
        image = pool.volume("image")
        assert image.download(tmp_path / "copy") == 8 << 20
        assert (tmp_path / "copy").read_bytes().startswith(b"data" * 1024 + b"\0")
        for work in (
            lambda: pool.create("new", 1 << 20),
            lambda: image.clone_to("clone"),
            lambda: image.resize("16 MiB"),
            lambda: image.wipe(),
            lambda: image.upload(tmp_path / "copy"),
            lambda: image.delete(),
        ):
            with at_most(SOON), pytest.raises(SystemFailure) as caught:
                work()
            assert caught.value.errno in (1, 13, 30), str(caught.value)
        assert ceph_pool.images() == ["image"]
        ceph_pool.create("other", 1 << 20)  # seen although it may not watch
        eventually(lambda: pool.names() == ["image", "other"], 10)
        assert pool.info().outage is None
        assert pool.problems == ()


# Under an active pool


@pytest.fixture
def watched(
    tmp_path: Path, ceph_cluster: Cluster, ceph_pool: CephPool
) -> Iterator[tuple[Storage, Pool]]:
    """Give a watched pool with a volume ``v``."""
    with opened(
        tmp_path / "root",
        ceph_cluster,
        ceph_pool,
        engine_options={"watch": True},
        options=HASTY,
    ) as (storage, pool):
        pool.create("v", 8 << 20)
        yield storage, pool


def work(pool: Pool, place: Path, name: str = "made", *, clone: bool = True) -> None:
    """Do a bit of everything."""
    (place / "data").write_bytes(os.urandom(1 << 20))
    pool.create(name, 1 << 20).upload(place / "data")
    pool.volume(name).download(place / "back")
    assert (place / "back").read_bytes() == (place / "data").read_bytes()
    pool.volume(name).resize(2 << 20)
    if clone:
        pool.volume(name).clone_to("clone")
        pool.volume("clone").delete()
    pool.volume(name).delete()


@pytest.mark.parametrize("how", ["freeze", "kill"])
@pytest.mark.slow
def test_without_monitors_volumes_go_on(
    tmp_path: Path, ceph_cluster: Cluster, watched: tuple[Storage, Pool], how: str
) -> None:
    _, pool = watched
    before = pool.info().space
    getattr(ceph_cluster.mon, how)()
    work(pool, tmp_path, clone=False)
    with at_most(4), pytest.raises(SystemFailure) as caught:
        pool.volume("v").clone_to("clone")  # monitors number the snapshots
    assert "monitors or OSDs are down" in str(caught.value.advice)
    with at_most(4):
        pool.refresh()
    info = pool.info()
    assert info.outage is None
    assert info.space.capacity == before.capacity
    assert any("its figures cannot be read" in problem for problem in info.problems)
    assert pool.names() == ["v"]
    ceph_cluster.heal()
    work(pool, tmp_path)
    pool.refresh()
    assert pool.problems == ()


@pytest.mark.slow
def test_a_frozen_osd_makes_its_pool_inaccessible(
    tmp_path: Path,
    ceph_cluster: Cluster,
    ceph_open: Cluster,
    ceph_pools: CephPools,
    watched: tuple[Storage, Pool],
) -> None:
    storage, pool = watched
    there = ceph_pools(ceph_open)
    other = start(storage, ceph_open, there, name="other")
    with ceph_cluster.osd.frozen():
        eventually(lambda: pool.info().outage, 12)
        with at_most(0.1):
            assert pool.names() == ["v"]
            assert pool.volume("v").info().capacity == 8 << 20
        for refused in (lambda: pool.create("x", 1), pool.refresh, pool.volume("v").delete):
            with at_most(0.1), pytest.raises(OperationFailed, match="does not answer since"):
                refused()
        work(other, tmp_path)
        events: list[object] = []
        storage.subscribe(lambda event: events.append(event.pool.name))
    eventually(lambda: pool.info().outage is None and pool.ref.name in events, 12)
    work(pool, tmp_path)


@pytest.mark.slow
def test_an_osd_that_was_killed_comes_back(
    tmp_path: Path, ceph_bluestore: Cluster, ceph_pools: CephPools
) -> None:
    source = ceph_pools(ceph_bluestore)
    with opened(
        tmp_path / "root",
        ceph_bluestore,
        source,
        engine_options={"watch": True},
        options=HASTY,
    ) as (_, pool):
        pool.create("v", 8 << 20)
        ceph_bluestore.osd.kill()
        eventually(lambda: pool.info().outage, 12)
        ceph_bluestore.heal()
        eventually(lambda: pool.info().outage is None, 12)
        assert pool.names() == ["v"]
        work(pool, tmp_path)


@pytest.mark.slow
def test_a_ceph_pool_is_deleted_and_made_anew(
    tmp_path: Path, ceph_cluster: Cluster, ceph_pool: CephPool, watched: tuple[Storage, Pool]
) -> None:
    _, pool = watched
    ceph_cluster.admin.delete_pool(ceph_pool.name)
    eventually(lambda: pool.info().outage, 10)
    assert f"Does the pool '{ceph_pool.name}' exist?" in pool.problems[0]
    with pytest.raises(OperationFailed, match="does not answer"):
        pool.create("x", 1)
    ceph_cluster.create_pool(ceph_pool.name)
    eventually(lambda: pool.info().outage is None and pool.names() == [], 10)
    work(pool, tmp_path)


def test_without_a_watch_a_new_pool_of_the_same_name_is_taken_up(
    tmp_path: Path, ceph_cluster: Cluster, ceph_pool: CephPool
) -> None:
    with opened(tmp_path / "root", ceph_cluster, ceph_pool) as (_, pool):
        pool.create("v", 8 << 20)
        ceph_cluster.admin.delete_pool(ceph_pool.name)
        with pytest.raises(SystemFailure, match="Does the pool"):
            pool.create("x", 1 << 20)
        ceph_cluster.create_pool(ceph_pool.name)
        pool.refresh()
        assert pool.names() == []
        work(pool, tmp_path)


@pytest.mark.slow
def test_a_full_cluster(
    tmp_path: Path, ceph_cluster: Cluster, watched: tuple[Storage, Pool]
) -> None:
    _, pool = watched
    for name in ("big", "source"):
        pool.create(name, 64 << 20)
    (tmp_path / "data").write_bytes(b"x" * 100_000)
    with ceph_cluster.full():
        with at_most(SOON), pytest.raises(NoSpace):
            pool.create("x", 1 << 20)
        with at_most(SOON), pytest.raises(NoSpace):
            pool.volume("source").clone_to("x")
        for writing in (
            lambda: pool.volume("v").upload(tmp_path / "data"),
            lambda: pool.volume("v").wipe(),
        ):
            with at_most(SOON), pytest.raises(StorageError, match="space"):
                writing()
        with at_most(SOON):
            pool.volume("big").delete()
        with at_most(SOON):
            pool.refresh()
        assert pool.names() == ["source", "v"]
        assert pool.info().outage is None
    work(pool, tmp_path)


@pytest.mark.slow
def test_a_full_cluster_where_nothing_was_ever_deleted(
    tmp_path: Path, ceph_cluster: Cluster, ceph_pool: CephPool
) -> None:
    with opened(tmp_path, ceph_cluster, ceph_pool, options=HASTY) as (_, pool):
        pool.create("v", 8 << 20)
        with ceph_cluster.full(), at_most(SOON):
            pool.volume("v").delete()
        assert ceph_pool.images() == []


def test_the_user_is_removed(tmp_path: Path, ceph_cluster: Cluster, ceph_pool: CephPool) -> None:
    ceph_cluster.add_user("client.guest", {"mon": "profile rbd", "osd": "profile rbd"})
    with opened(tmp_path, ceph_cluster, ceph_pool, user="guest") as (_, pool):
        ceph_cluster.remove_user("client.guest")
        pool.create("v", 1 << 20)  # as long as its ticket is good
        backend_of(pool).link.kill()
        for anew in (pool.refresh, lambda: pool.create("w", 1 << 20)):
            with at_most(SOON), pytest.raises(SystemFailure) as caught:
                anew()
            assert "refuse client.guest" in str(caught.value.advice)


def block(cluster: Cluster, source: CephPool, name: str) -> None:
    """Shut those out who have an image open."""
    for address in source.image(name).watchers():
        cluster.admin.mon_command("osd blocklist", blocklistop="add", addr=address)
    cluster.admin.wait_for_latest_map()


def fill(sink: Sink) -> None:
    """Upload eight mebibytes."""
    for _ in range(8):
        sink.write(bytes(1 << 20))
    sink.finish()


@pytest.mark.parametrize("watch", [True, False])
def test_a_client_that_is_shut_out_connects_anew(
    tmp_path: Path, ceph_cluster: Cluster, ceph_pool: CephPool, watch: bool
) -> None:
    with opened(tmp_path / "root", ceph_cluster, ceph_pool, engine_options={"watch": watch}) as (
        _,
        pool,
    ):
        pool.create("v", 8 << 20)
        pid = backend_of(pool).link.pid
        sink = pool.volume("v").open_upload()
        block(ceph_cluster, ceph_pool, "v")
        with pytest.raises(StorageError):
            fill(sink)
        sink.abort()
        assert pool.volume("v").info().capacity == 8 << 20
        pool.refresh()
        work(pool, tmp_path)
        assert backend_of(pool).link.pid != pid


def test_an_image_that_is_open_elsewhere(
    tmp_path: Path, ceph_cluster: Cluster, ceph_pool: CephPool
) -> None:
    with opened(tmp_path / "root", ceph_cluster, ceph_pool) as (_, pool):
        volume = pool.create("v", 8 << 20)
        (tmp_path / "data").write_bytes(bytes(100))

        def done() -> list[object]:
            return [
                lambda: volume.upload(tmp_path / "data"),
                lambda: volume.wipe(),
                lambda: volume.resize(4 << 20, shrink=True),
                lambda: volume.delete(),
            ]

        record = backend_of(pool).refresh({}, Job("test")).volumes["v"]
        with ceph_pool.image("v").held():
            (address,) = ceph_pool.image("v").watchers() or [""]
            for refused in done():
                with at_most(SOON), pytest.raises(VolumeBusy, match=r"127\.0\.0\.1") as caught:
                    refused()  # type: ignore[operator]
                assert address in str(caught.value)
            with pytest.raises(VolumeBusy, match=address):
                backend_of(pool).open_disk(record)
            volume.resize(9 << 20)
            volume.download(tmp_path / "copy")
        for allowed in done():
            allowed()  # type: ignore[operator]
        assert pool.names() == ceph_pool.images() == []


@pytest.mark.slow
def test_a_client_that_was_killed_counts_until_its_watch_ends(
    tmp_path: Path, ceph_cluster: Cluster, ceph_pool: CephPool
) -> None:
    with opened(tmp_path / "root", ceph_cluster, ceph_pool) as (_, pool):
        volume = pool.create("v", 8 << 20)
        client = ceph_cluster.client()
        with client.image(ceph_pool.name, "v").held():
            client.child.kill()
        with at_most(11), pytest.raises(VolumeBusy) as caught:
            volume.delete()
        assert "A client that has died is seen for some 30 s more." in str(caught.value.advice)

        def deleted() -> bool:
            with suppress(VolumeBusy):
                volume.delete()
                return True
            return False

        eventually(deleted, 60)
        assert ceph_pool.images() == []
