"""Two hosts whose users make, change and delete images of the same few names at the same time."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import storaged
from storaged.backends.rbd import Rbd
from storaged.errors import (
    InternalError,
    InvalidArgument,
    NameTaken,
    NoSuchVolume,
    StorageError,
    VolumeBusy,
    VolumeExists,
)
from storaged.job import Job
from tests.backends import rbdpools
from tests.ceph.cluster import Cluster
from tests.ceph.images import Pool
from tests.daemon.running import storaged_daemon
from tests.kernel.programs import eventually, patience

MIB = 1 << 20
BASE = "base"
NAMES = [f"name{number}" for number in range(5)]
THREADS = 4
SECONDS = 6.0
#: No call may take longer: the images are small, and none is kept open for long.
LONGEST = 30.0
MARK = 64

#: What somebody must expect whom another one anticipates.
EXPECTED = (VolumeExists, NameTaken, NoSuchVolume, VolumeBusy, InvalidArgument)


@dataclass
class Deed:
    """Something that was tried, and what became of it; times by `time.monotonic`."""

    number: int
    verb: str
    name: str
    source: str = ""
    began: float = 0.0
    ended: float = 0.0
    error: Exception | None = None

    @property
    def size(self) -> int:
        """The size that it gives, which no other gives."""
        return (self.number + 1) * MIB

    @property
    def mark(self) -> bytes:
        """What it writes into what it has made."""
        return f"{self.number} {self.name}".encode().ljust(MARK)

    @property
    def done(self) -> bool:
        """Tell whether it said that it has succeeded."""
        return self.error is None

    @property
    def makes(self) -> bool:
        """Tell whether an image is there after it."""
        return self.verb in ("create", "clone")

    @property
    def maybe(self) -> bool:
        """Tell whether it was done, or may have been: another one took it away at once."""
        return self.done or isinstance(self.error, NoSuchVolume)


@dataclass
class Diary:
    """What all have tried."""

    deeds: list[Deed] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, verb: str, name: str, source: str = "") -> Deed:
        """Return a new entry."""
        with self.lock:
            deed = Deed(len(self.deeds) + 1, verb, name, source, time.monotonic())
            self.deeds.append(deed)
        return deed

    @contextmanager
    def entry(self, verb: str, name: str, source: str = "") -> Iterator[Deed]:
        """Note what is done in a block, and what comes of it."""
        deed = self.begin(verb, name, source)
        try:
            yield deed
        except StorageError as err:
            deed.error = err
        finally:
            deed.ended = time.monotonic()

    def of(self, name: str) -> list[Deed]:
        """Return what was tried with a name."""
        return [deed for deed in self.deeds if deed.name == name]


class User:
    """A thread that does one thing after the other on one host, as dice say."""

    def __init__(self, uri: str, diary: Diary, seed: int, until: float) -> None:
        self._uri = uri
        self._diary = diary
        self._dice = random.Random(seed)
        self._until = until
        self.failed: BaseException | None = None

    def run(self) -> None:
        """Do it until the time is up."""
        try:
            with storaged.connect(self._uri) as storage:
                pool = storage.pool(rbdpools.NAME)
                while time.monotonic() < self._until:
                    self._do_something(pool)
        except BaseException as err:
            self.failed = err

    def _do_something(self, pool: storaged.Pool) -> None:
        name = self._dice.choice(NAMES)
        odds = (1, 1, 6, 4) if name in pool.names() else (5, 7, 1, 0)
        verb = self._dice.choices(("create", "clone", "delete", "resize"), odds)[0]
        source = self._dice.choice([BASE, *NAMES]) if verb == "clone" else ""
        with self._diary.entry(verb, name, source) as deed:
            if verb == "create":
                pool.create(name, deed.size)
            elif verb == "clone":
                pool.volume(source).clone_to(name, capacity=deed.size)
            elif verb == "resize":
                pool.volume(name).resize(deed.size, shrink=True)
            else:
                pool.volume(name).delete()
        if deed.makes and deed.done:
            self._mark(pool, deed)

    def _mark(self, pool: storaged.Pool, deed: Deed) -> None:
        try:
            sink = pool.volume(deed.name).open_upload(0, MARK)
            sink.write(deed.mark)
            sink.finish()
        except StorageError as err:  # it is another's by now; a stream tells no classes
            known = any(
                words in str(err)
                for words in ("in use", "being allocated", "no storage vol", "another")
            )
            assert known, repr(err)  # noqa: PT017


@dataclass
class Hosts:
    """Two daemons with one pool."""

    uris: list[str]
    pools: list[storaged.Pool]


@pytest.fixture
def hosts(tmp_path: Path, ceph_cluster: Cluster, ceph_pool: Pool) -> Iterator[Hosts]:
    """Two hosts, and an image with a mark."""
    base = ceph_pool.create(BASE, MIB)
    base.write(0, f"0 {BASE}".encode().ljust(MARK))
    with ExitStack() as stack:
        found = Hosts([], [])
        for name in ("one", "other"):
            daemon = stack.enter_context(storaged_daemon(tmp_path / name))
            storage = stack.enter_context(storaged.connect(daemon.uri()))
            rbdpools.set_key(storage, ceph_cluster)
            found.uris.append(daemon.uri())
            found.pools.append(rbdpools.start(storage, ceph_cluster, ceph_pool))
        yield found


# Under this load a call of librbd's fails now and then: its process aborts, or does not answer in
# time. No image is lost then, but the user is told something else than what is expected here.
@pytest.mark.xfail(strict=False, reason="an open fault: rare errors of librbd under this load")
@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_nobody_loses_or_doubles_an_image(hosts: Hosts, ceph_pool: Pool, seed: int) -> None:
    diary = Diary()
    until = time.monotonic() + patience(SECONDS)
    users = [
        User(uri, diary, seed * 100 + number, until)
        for number, uri in enumerate(hosts.uris * THREADS)
    ]
    threads = [threading.Thread(target=user.run) for user in users]
    for thread in threads:
        thread.start()
    while time.monotonic() < until:
        look_whole(ceph_pool)
        time.sleep(0.2)
    for thread in threads:
        thread.join(patience(LONGEST) + 10)
        assert not thread.is_alive(), "a call hangs"
    assert [user.failed for user in users if user.failed is not None] == []

    check_errors(diary)
    images = {name: ceph_pool.image(name).size() for name in ceph_pool.images()}
    check_images(diary, images)
    check_marks(diary, ceph_pool, images)
    for pool in hosts.pools:
        eventually(lambda pool=pool: sizes(pool) == images or None, 10)  # type: ignore[misc]
    eventually(lambda: not ceph_pool.trash() or None, 30, "an empty trash")
    check_objects(ceph_pool)
    clear(hosts)
    eventually(lambda: not ceph_pool.trash() or None, 30, "an empty trash")
    assert ceph_pool.images() == []
    check_objects(ceph_pool)


@pytest.fixture
def backends(ceph_cluster: Cluster, ceph_pool: Pool) -> Iterator[tuple[Rbd, Rbd]]:
    """The backends of two hosts, without engines: nothing is known but what they are told."""
    one, other = (rbdpools.made(ceph_cluster, ceph_pool, host=name) for name in ("one", "other"))
    yield one, other
    for backend in (one, other):
        backend.stop(Job("stop"))


def ask(backend: Rbd, verb: str, name: str, **words: Any) -> Any:
    return backend.link.ask(verb, f"cannot {verb}", volume=name, name=name, **words)


def create(backend: Rbd, name: str, size: int = MIB) -> str:
    """Make an image and return its id."""
    return str(ask(backend, "create", name, size=size)[0])


def clone(backend: Rbd, name: str, parent: tuple[str, str], size: int = MIB) -> str:
    """Make a clone of an image, given by name and id, and return its id."""
    words = {"parent": parent[0], "parent_id": parent[1], "part": f".storaged-{name}-1-1.part"}
    return str(ask(backend, "clone", name, size=size, used=False, **words)[0])


def test_a_parent_goes_right_after_its_clones(backends: tuple[Rbd, Rbd], ceph_pool: Pool) -> None:
    one, other = backends
    parent = create(one, "parent")
    clones = {f"clone{number}": "" for number in range(3)}
    for name in clones:
        clones[name] = clone(one, name, ("parent", parent))
    with pytest.raises(VolumeBusy, match=r"clones that need its data: .*/clone0"):
        ask(other, "remove", "parent", id=parent, snapshots=True)
    for name, number in clones.items():
        ask(one, "remove", name, id=number, snapshots=False)
    ask(other, "remove", "parent", id=parent, snapshots=False)
    assert ceph_pool.images() == []
    eventually(lambda: not ceph_pool.trash() or None, 10, "an empty trash")
    check_objects(ceph_pool)


def test_an_image_in_the_place_of_another_is_not_taken_for_it(
    backends: tuple[Rbd, Rbd], ceph_pool: Pool
) -> None:
    one, other = backends
    old = create(one, "name")
    ask(other, "remove", "name", id=old, snapshots=False)
    new = create(other, "name", 2 * MIB)
    gone: list[Callable[[], Any]] = [
        lambda: ask(one, "remove", "name", id=old, snapshots=True),
        lambda: ask(one, "resize", "name", id=old, size=MIB, alone=True),
        lambda: ask(one, "flatten", "name", id=old),
        lambda: clone(one, "copy", ("name", old)),
    ]
    for attempt in gone:
        with pytest.raises(NoSuchVolume):
            attempt()
    assert ceph_pool.images() == ["name"]
    assert ceph_pool.image("name").size() == 2 * MIB
    assert ceph_pool.image("name").snaps() == []
    ask(one, "remove", "name", id=new, snapshots=False)
    assert ceph_pool.images() == []


def test_what_is_made_touches_nothing_that_has_its_name(
    backends: tuple[Rbd, Rbd], ceph_pool: Pool
) -> None:
    one, other = backends
    parent = create(one, "parent")
    create(other, "taken", 4 * MIB)
    ceph_pool.image("taken").write(0, b"kept")
    for size in (MIB, 8 * MIB):
        with pytest.raises(VolumeExists):
            clone(one, "taken", ("parent", parent), size)
    ask(one, "create", ".storaged-x-1-1.part", size=MIB, unfinished=True)
    with pytest.raises(VolumeExists):
        one.link.ask("finish", "", volume="taken", name=".storaged-x-1-1.part", new="taken")
    ask(one, "discard_unfinished", ".storaged-x-1-1.part")
    assert ceph_pool.images() == ["parent", "taken"]
    assert ceph_pool.image("taken").read(0, 4) == b"kept"
    assert clone(one, "larger", ("parent", parent), 8 * MIB)
    assert ceph_pool.image("larger").size() == 8 * MIB
    eventually(lambda: not ceph_pool.trash() or None, 10, "an empty trash")
    check_objects(ceph_pool)


def test_two_deletes_of_one_image(backends: tuple[Rbd, Rbd], ceph_pool: Pool) -> None:
    for _ in range(5):
        number = create(backends[0], "name")
        start = threading.Barrier(2)
        outcomes: list[str] = []

        def remove(backend: Rbd, start: threading.Barrier = start, number: str = number) -> None:
            start.wait()
            try:
                ask(backend, "remove", "name", id=number, snapshots=False)
                outcomes.append("removed")  # noqa: B023 -- they end in this turn
            except NoSuchVolume:
                outcomes.append("gone")  # noqa: B023

        threads = [threading.Thread(target=remove, args=(backend,)) for backend in backends]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(patience(30))
        assert sorted(outcomes) == ["gone", "removed"]
        assert ceph_pool.images() == []
    eventually(lambda: not ceph_pool.trash() or None, 10, "an empty trash")
    check_objects(ceph_pool)


def test_a_clone_does_not_inherit_its_parents_deletion(
    backends: tuple[Rbd, Rbd], ceph_pool: Pool
) -> None:
    number = create(backends[0], "name")
    ceph_pool.image("name").call("metadata_set", "storaged.deleted", f"parent {time.time():.0f}")
    began = time.monotonic()
    ask(backends[1], "remove", "name", id=number, snapshots=False)
    assert time.monotonic() - began < patience(5)  # else its claim is waited for
    assert ceph_pool.images() == []


def sizes(pool: storaged.Pool) -> dict[str, int]:
    return {info.ref.name: info.capacity for info in pool.infos()}


def look_whole(pool: Pool) -> None:
    """Check what must hold at any time: no name is there twice, and the base is."""
    listed = [entry["name"] for entry in pool.rbd("list2")]
    names = [name for name in listed if not name.startswith(".storaged-")]  # some are being removed
    assert len(names) == len(set(names)), names
    assert BASE in names


def check_errors(diary: Diary) -> None:
    """Check that whoever failed was told what was in his way, soon."""
    for deed in diary.deeds:
        used = isinstance(deed.error, InternalError) and "already in use" in str(deed.error)
        assert deed.done or used or isinstance(deed.error, EXPECTED), repr(deed)
        assert deed.ended - deed.began < patience(LONGEST), repr(deed)
    for verb in ("create", "clone", "delete", "resize"):
        count = sum(deed.done for deed in diary.deeds if deed.verb == verb)
        assert count > 3, f"hardly any {verb} has succeeded"


def check_images(diary: Diary, images: dict[str, int]) -> None:
    """Check that what is there is what was made and not deleted."""
    assert set(images) <= {BASE, *NAMES}, "something half made is left"
    assert images[BASE] == MIB
    for name in NAMES:
        deeds = diary.of(name)
        removed = [deed for deed in deeds if deed.verb == "delete" and deed.maybe]
        made = [deed for deed in deeds if deed.makes and deed.done]
        surely = [deed for deed in made if all(other.ended < deed.began for other in removed)]
        if surely:
            assert name in images, f"lost: {surely[-1]!r}"
        if name not in images:
            continue
        gave = [
            deed
            for deed in deeds
            if deed.verb != "delete" and deed.maybe and deed.size == images[name]
        ]
        assert gave, f"nobody has made {name} of {images[name] // MIB} MiB"
        later = [
            deed
            for deed in deeds
            if deed.done and deed.began > gave[0].ended and deed.verb in ("delete", "resize")
        ]
        remade = [deed for deed in deeds if deed.makes and deed.maybe and deed is not gave[0]]
        for deed in later:
            # it must have been done to one that was there before
            assert any(one.ended < deed.ended for one in remade), f"{deed!r} after {gave[0]!r}"


def check_marks(diary: Diary, pool: Pool, images: dict[str, int]) -> None:
    """Check that images hold what was written to them, or to what they are clones of."""
    by_number = {deed.number: deed for deed in diary.deeds}
    for name in images:
        data = pool.image(name).read(0, MARK)
        if not data.strip(b"\0"):
            continue
        number, _, owner = data.decode().strip().partition(" ")
        if int(number) == 0:
            assert owner == BASE
            continue
        writer = by_number[int(number)]
        assert (writer.name, writer.done, writer.makes) == (owner, True, True)
        if owner != name:
            parents = {deed.source for deed in diary.of(name) if deed.verb == "clone"}
            assert parents - {BASE}, f"{name} holds what is {owner}'s"


def check_objects(pool: Pool) -> None:
    """Check that nothing is left of images that are gone."""
    ids = {entry["id"] for entry in pool.rbd("list2")}
    left = []
    for name in pool.objects():
        kind, _, rest = name.partition(".")
        if kind in ("rbd_header", "rbd_object_map", "rbd_data") and rest.split(".")[0] not in ids:
            left.append(name)
        if kind == "rbd_id" and rest not in pool.images():
            left.append(name)
    assert left == []


def clear(hosts: Hosts) -> None:
    """Delete all images: nothing that only storaged made is in the way of that."""
    for attempt in range(20):
        for pool in hosts.pools:
            for name in pool.names():
                try:
                    pool.volume(name).delete()
                except (VolumeBusy, NoSuchVolume):  # a clone's turn comes first
                    assert attempt < 19
        if not any(pool.names() for pool in hosts.pools):
            return
