"""Clusters as fixtures. One is started when first asked for and ends with the tests.

Where they cannot run, tests are skipped and say which package is missing. Tests may stop, kill and
fill a cluster as they like: what they leave so is healed when their `ceph_pool` ends.
"""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.ceph.cluster import KNOWN_PORTS, Cluster, missing
from tests.ceph.images import Pool
from tests.kernel.programs import patience

CephPools = Callable[..., Pool]

#: Numbers of pools, so that no name comes twice in a cluster.
_NUMBERS = itertools.count(1)

#: Seconds that another's tests may have the known ports.
_PORTS_PATIENCE = 120


@pytest.fixture(scope="session")
def ceph_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with cephx and its data in memory, on a port of its own."""
    with _running(Cluster(_place(tmp_path_factory))) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def ceph_open(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster that asks nobody for a key."""
    with _running(Cluster(_place(tmp_path_factory), auth="none")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def ceph_bluestore(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with its data in a file: for many of them, and for an OSD that is killed."""
    with _running(Cluster(_place(tmp_path_factory), store="bluestore")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def ceph_ipv6(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster on ``::1``."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError as err:
        pytest.skip(f"this machine has no IPv6: {err}")
    with _running(Cluster(_place(tmp_path_factory), host="::1")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def ceph_known_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster on ports 6789 and 3300, where a wrong key is refused at once.

    Nobody else's tests on this machine have one meanwhile.
    """
    with _known_ports(), _running(Cluster(_place(tmp_path_factory), port=KNOWN_PORTS[0])) as made:
        yield made


@pytest.fixture
def ceph_pool(ceph_pools: CephPools, ceph_cluster: Cluster) -> Pool:
    """A fresh RADOS pool of `ceph_cluster`, ready for images."""
    return ceph_pools(ceph_cluster)


@pytest.fixture
def ceph_pools() -> Iterator[CephPools]:
    """A function: ``ceph_pools(cluster)`` makes a fresh RADOS pool; it goes with the test.

    ``init=False`` leaves out what ``rbd pool init`` does.
    """
    with ExitStack() as stack:

        def make(cluster: Cluster, *, init: bool = True) -> Pool:
            name = f"test-{next(_NUMBERS)}"
            stack.callback(_remove, cluster, name)
            return cluster.create_pool(name, init=init)

        yield make


def _place(factory: pytest.TempPathFactory) -> Path:
    return factory.mktemp("ceph")


@contextmanager
def _running(cluster: Cluster) -> Iterator[Cluster]:
    why = missing()
    if why is not None:
        pytest.skip(why)
    with cluster:
        yield cluster


def _remove(cluster: Cluster, name: str) -> None:
    if not cluster.started:
        return  # the test has stopped it
    cluster.heal()
    if name in cluster.admin.pools():
        cluster.admin.delete_pool(name)


@contextmanager
def _known_ports() -> Iterator[None]:
    """Have the known ports, as far as tests like these are concerned.

    An abstract socket is held by one process at a time, goes with it, and belongs to a network
    namespace, as ports do.
    """
    deadline = time.monotonic() + patience(_PORTS_PATIENCE)
    with socket.socket(socket.AF_UNIX) as lock:
        while True:
            try:
                lock.bind("\0storaged-test-ceph-known-ports")
                break
            except OSError:
                assert time.monotonic() < deadline, "other tests keep Ceph's ports"
                time.sleep(0.1)
        yield
