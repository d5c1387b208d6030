"""Several hosts on one Ceph pool: what one changes the others see at once, and are told of."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

import storaged
from storaged.errors import NoSuchVolume, StorageError
from tests.backends import rbdpools
from tests.ceph.cluster import Cluster
from tests.ceph.fixtures import CephPools
from tests.ceph.images import Pool
from tests.daemon.running import storaged_daemon
from tests.kernel.programs import eventually, patience

MIB = 1 << 20
#: What is told must be seen within so many seconds; it takes some 0.06.
SOON = 1.0
#: What nobody tells is seen at a look at the version of the list, every 2 s.
POLLED = 4.0
#: The user who may only read.
READER = "client.reader"


class Site:
    """A host: its daemon, a client of it, the pool, and the events of it."""

    def __init__(self, root: Path, cluster: Cluster, source: Pool, user: str, stack: ExitStack):
        self.daemon = stack.enter_context(storaged_daemon(root))
        self.storage = stack.enter_context(storaged.connect(self.daemon.uri()))
        rbdpools.set_key(self.storage, cluster, user)
        name = user.removeprefix("client.")
        self.pool = rbdpools.start(self.storage, cluster, source, user=name)
        #: when each refresh was told
        self.refreshed: list[float] = []
        self._heard = threading.Event()
        self.storage.subscribe(self._hear)

    def _hear(self, event: storaged.Event) -> None:
        if event.lifecycle is None:
            self.refreshed.append(time.monotonic())
            self._heard.set()

    def sees(self, holds: Callable[[], object], within: float = SOON, told: bool = True) -> None:
        """Wait until something holds; the event of it comes then too."""
        eventually(lambda: holds() or None, within, "what another host has changed")
        assert not told or self._heard.wait(patience(within)), "nobody was told"
        self._heard.clear()

    def is_quiet(self) -> None:
        """Wait until what was told has been looked at."""
        count = -1
        while count != len(self.refreshed):
            count = len(self.refreshed)
            time.sleep(0.4)
        self._heard.clear()

    def sizes(self) -> dict[str, int]:
        """Return the capacities of all volumes as listed: no storage is asked."""
        return {info.ref.name: info.capacity for info in self.pool.infos()}

    def lacks(self, name: str) -> bool:
        """Tell whether a volume is not listed and cannot be found."""
        try:
            self.pool.volume(name)
        except NoSuchVolume:
            return name not in self.pool.names()
        return False


Sites = Callable[..., Site]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Sites]:
    """A function: ``site(cluster, pool)`` starts one more host's daemon, with the pool active."""
    with ExitStack() as stack:
        numbers = iter(range(100))

        def make(cluster: Cluster, source: Pool, user: str = "client.libvirt") -> Site:
            return Site(tmp_path / f"host{next(numbers)}", cluster, source, user, stack)

        yield make


@pytest.fixture
def pair(site: Sites, ceph_cluster: Cluster, ceph_pool: Pool) -> tuple[Site, Site]:
    """Two hosts that share a pool, and listen."""
    one, other = site(ceph_cluster, ceph_pool), site(ceph_cluster, ceph_pool)
    await_listeners(ceph_cluster, ceph_pool, 2)
    for both in (one, other):
        both.is_quiet()
    return one, other


def listeners(cluster: Cluster, pool: Pool) -> list[str]:
    """Return the addresses of those who listen."""
    told = cluster.run(
        "rados", "-p", pool.name, "listwatchers", "rbd_directory", user="client.admin"
    )
    return re.findall(r"watcher=(\S+)", told)


def await_listeners(
    cluster: Cluster, pool: Pool, count: int, besides: Sequence[str] = ()
) -> list[str]:
    """Return when so many listen, with their addresses.

    :param besides: those of the dead, who are taken for alive for a while.
    """

    def ask() -> list[str] | None:
        try:
            found = [one for one in listeners(cluster, pool) if one not in besides]
        except AssertionError:  # the object is not there yet
            return None
        return found if len(found) == count else None

    return eventually(ask, 15, f"{count} listeners")


def test_what_one_host_does_the_other_sees(pair: tuple[Site, Site], ceph_pool: Pool) -> None:
    one, other = pair
    made = one.pool.create("new", 8 * MIB)
    other.sees(lambda: "new" in other.pool.names())
    seen = other.pool.volume("new")
    path = f"{ceph_pool.name}/new"
    assert (seen.key, seen.path) == (path, path) == (made.key, made.path)
    assert other.storage.volume_by_key(path).name == "new"
    assert other.storage.volume_by_path(path).name == "new"
    assert other.sizes() == {"new": 8 * MIB}

    seen.resize(24 * MIB)
    one.sees(lambda: one.sizes() == {"new": 24 * MIB})
    made.resize(4 * MIB, shrink=True)
    other.sees(lambda: other.sizes() == {"new": 4 * MIB})

    other.pool.volume("new").clone_to("copy", capacity=16 * MIB)
    one.sees(lambda: one.sizes() == {"new": 4 * MIB, "copy": 16 * MIB})

    one.pool.volume("copy").delete()
    other.sees(lambda: other.lacks("copy"))
    seen.delete()
    one.sees(lambda: one.lacks("new"))
    eventually(lambda: not ceph_pool.trash(), 10, "an empty trash")


def test_a_copy_is_seen_when_it_gets_its_name(pair: tuple[Site, Site], tmp_path: Path) -> None:
    one, other = pair
    files = one.storage.ensure_dir_pool("files", tmp_path / "files")
    (tmp_path / "files/image").write_bytes(b"content" * MIB)
    files.refresh()
    seen: list[list[str]] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(0.005):
            seen.append(other.pool.names())

    looking = threading.Thread(target=look)
    looking.start()
    try:
        files.volume("image").clone_to("copy", pool=one.pool)
        other.sees(lambda: other.pool.names() == ["copy"])
    finally:
        stop.set()
        looking.join()
    assert all(names in ([], ["copy"]) for names in seen)
    assert other.sizes() == {"copy": 7 * MIB}
    other.pool.volume("copy").download(tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"content" * MIB


def test_many_changes_are_few_events(pair: tuple[Site, Site]) -> None:
    one, other = pair
    other.refreshed.clear()
    one.refreshed.clear()
    began = time.monotonic()
    names = [f"volume-{number}" for number in range(50)]
    for name in names:
        one.pool.create(name, MIB)
    other.sees(lambda: sorted(other.pool.names()) == sorted(names))
    other.is_quiet()
    took = other.refreshed[-1] - began
    assert len(other.refreshed) <= 4 * took + 2
    assert one.refreshed == []  # its own doing is no news
    other.refreshed.clear()
    time.sleep(2.5)  # a look at the version of the list comes in between
    assert other.refreshed == []


def test_a_stopped_pool_does_not_hear(
    pair: tuple[Site, Site], ceph_cluster: Cluster, ceph_pool: Pool
) -> None:
    one, other = pair
    other.pool.stop()
    await_listeners(ceph_cluster, ceph_pool, 1)
    one.pool.create("first", MIB)
    other.pool.start()
    assert other.pool.names() == ["first"]
    await_listeners(ceph_cluster, ceph_pool, 2)
    other.is_quiet()
    one.pool.create("second", MIB)
    other.sees(lambda: "second" in other.pool.names())


def test_what_cephs_own_tool_does_is_seen(
    pair: tuple[Site, Site], ceph_cluster: Cluster, ceph_pool: Pool
) -> None:
    one, other = pair
    ceph_cluster.run("rbd", "create", "--size", "8M", f"{ceph_pool.name}/by hand")
    for both in pair:
        both.sees(lambda both=both: both.sizes() == {"by hand": 8 * MIB}, POLLED)  # type: ignore[misc]
    ceph_cluster.run("rbd", "rename", f"{ceph_pool.name}/by hand", f"{ceph_pool.name}/renamed")
    for both in pair:
        both.sees(lambda both=both: both.pool.names() == ["renamed"], POLLED)  # type: ignore[misc]
    ceph_cluster.run("rbd", "rm", "--no-progress", f"{ceph_pool.name}/renamed")
    one.sees(lambda: one.lacks("renamed"), POLLED)
    other.sees(lambda: other.lacks("renamed"), POLLED)


def test_names_that_are_no_text_do_not_cause_scans(
    pair: tuple[Site, Site], ceph_pool: Pool
) -> None:
    _, other = pair
    ceph_pool.create("odd\udcff", MIB)
    eventually(lambda: other.pool.problems or None, POLLED, "a problem of the pool")
    other.is_quiet()
    other.refreshed.clear()
    ceph_pool.create(".storaged-elsewhere-1-1.part", MIB)
    time.sleep(2.5)
    assert other.refreshed == []
    assert other.pool.names() == []


def test_a_listener_that_was_thrown_out_hears_again(
    pair: tuple[Site, Site], ceph_cluster: Cluster, ceph_pool: Pool
) -> None:
    one, other = pair
    for address in listeners(ceph_cluster, ceph_pool):
        ceph_cluster.admin.mon_command("osd blocklist", blocklistop="add", addr=address)
    ceph_pool.create("meanwhile", MIB)
    for both in pair:
        both.sees(lambda both=both: "meanwhile" in both.pool.names(), 20)  # type: ignore[misc]
    eventually(lambda: hears(one, other) or None, 30, "what the other changes")
    eventually(lambda: hears(other, one) or None, 30, "what the one changes")


def test_the_watch_outlives_the_osd(
    site: Sites, ceph_bluestore: Cluster, ceph_pools: CephPools
) -> None:
    pool = ceph_pools(ceph_bluestore)
    one, other = site(ceph_bluestore, pool), site(ceph_bluestore, pool)
    await_listeners(ceph_bluestore, pool, 2)
    ceph_bluestore.osd.kill()
    time.sleep(0.5)
    ceph_bluestore.heal()
    eventually(lambda: hears(one, other) or None, 40, "what the other changes")
    eventually(lambda: hears(other, one) or None, 40, "what the one changes")


def hears(one: Site, other: Site) -> bool:
    """Tell whether *one* sees at once what *other* makes."""
    name = f"probe-{time.monotonic_ns()}"
    try:
        other.pool.create(name, MIB)
        one.sees(lambda: name in one.pool.names())
    except (StorageError, AssertionError):
        return False
    return True


def test_who_may_only_read_sees_changes(
    site: Sites, ceph_cluster: Cluster, ceph_pool: Pool
) -> None:
    caps = {"mon": "profile rbd", "osd": "profile rbd-read-only"}
    ceph_cluster.add_user(READER, caps)
    ceph_pool.create("first", MIB)
    reader = site(ceph_cluster, ceph_pool, READER)
    writer = site(ceph_cluster, ceph_pool)
    assert reader.pool.names() == ["first"]
    assert reader.pool.problems == ()
    writer.pool.create("second", MIB)
    reader.sees(lambda: sorted(reader.pool.names()) == ["first", "second"], POLLED)
    writer.pool.volume("first").delete()
    reader.sees(lambda: reader.lacks("first"), POLLED)
    assert reader.pool.problems == ()


def test_each_host_has_its_namespace(site: Sites, ceph_cluster: Cluster, ceph_pool: Pool) -> None:
    spaces = [ceph_pool.create_namespace(name) for name in ("left", "right")]
    left, right = (site(ceph_cluster, space) for space in spaces)
    beside = site(ceph_cluster, spaces[0])
    left.pool.create("mine", MIB)
    beside.sees(lambda: beside.pool.names() == ["mine"], POLLED)
    right.is_quiet()
    right.refreshed.clear()
    left.pool.create("mine too", MIB)
    beside.sees(lambda: "mine too" in beside.pool.names())
    time.sleep(0.5)
    assert (right.pool.names(), right.refreshed) == ([], [])


def test_a_daemon_that_starts_anew_listens_again(
    pair: tuple[Site, Site], site: Sites, ceph_cluster: Cluster, ceph_pool: Pool
) -> None:
    one, other = pair
    root = other.daemon.root
    before = listeners(ceph_cluster, ceph_pool)
    other.daemon.kill()
    other.storage.close()
    one.pool.create("meanwhile", MIB)
    with storaged_daemon(root) as daemon, storaged.connect(daemon.uri()) as storage:
        pool = storage.pool(rbdpools.NAME)
        assert pool.active
        assert pool.names() == ["meanwhile"]
        await_listeners(ceph_cluster, ceph_pool, 1, besides=before)
        one.pool.create("later", MIB)
        eventually(partial(_is_seen, pool, "later"), SOON)


def _is_seen(pool: storaged.Pool, name: str) -> bool:
    return name in pool.names()
