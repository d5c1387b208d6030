"""A directory full of the zoo as a pool: listed at once, each with its problem, none of use."""

from __future__ import annotations

import hashlib
import io
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

import storaged
from storaged import Pool, Storage, Volume
from storaged.backend import Durability, Host
from storaged.backends.dir import Dir
from storaged.concerns import Level, concerns
from storaged.errors import OperationInvalid, StorageError
from storaged.formats import probe
from storaged.model import PoolDef, PoolType, VolumeRecord
from tests.formats.memory import MemoryHandle
from tests.formats.zoo import whole
from tests.formats.zoo_case import Case
from tests.formats.zoo_files import NAMES, UNLISTED, populate, populate_specials, write_sparse
from tests.formats.zoo_qcow2 import sound
from tests.formats.zoo_references import ReferenceCase, reference_cases

ZOO = whole()
#: Who nobody is on every Linux.
NOBODY = 65534
#: Names that are listed, as in libvirt, but not given to a new volume.
CONTROL = {"vol\nnl", "tab\tbed", "\x7f"}
#: What is no volume: pipes, sockets, devices and the kernel's files behind links, links that lead
#: nowhere.
NO_VOLUMES = {"fifo", "sock", "link-fifo", "link-zero", "link-proc", "link-dangling", "link-loop"}


def document(name: str, path: Path) -> str:
    return f"<pool type='dir'><name>{name}</name><target><path>{path}</path></target></pool>"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("zoo")
    populate(path)
    populate_specials(path)
    return path


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storage]:
    with storaged.open(tmp_path_factory.mktemp("root"), durability="none") as opened:
        yield opened


@pytest.fixture(scope="module")
def zoo(storage: Storage, directory: Path) -> Pool:
    pool = storage.define_pool(document("zoo", directory))
    pool.start()
    return pool


@pytest.fixture(scope="module")
def other(storage: Storage, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Where clones would go."""
    pool = storage.define_pool(document("other", tmp_path_factory.mktemp("other")))
    pool.start()
    return pool


def judged(case: Case) -> tuple[list[str], list[str]]:
    """Return dangers and notes of an image as its header alone has them."""
    info = probe.probe(MemoryHandle(case.data))
    found = concerns(info, "/pool/vms")
    return (
        [one.text for one in found if one.level is Level.DANGER],
        [one.text for one in found if one.level is Level.NOTE],
    )


DANGEROUS = [case for case in ZOO if judged(case)[0]]


def test_lists_what_it_should_in_no_time(zoo: Pool, directory: Path) -> None:
    start = time.perf_counter()
    zoo.refresh()
    assert time.perf_counter() - start < 10
    there = {path.name for path in directory.iterdir()}
    hidden = {os.fsdecode(name) for name in UNLISTED}
    assert set(zoo.names()) == there - hidden - NO_VOLUMES
    assert zoo.active
    assert zoo.problems == ()


def test_each_has_its_problem(zoo: Pool) -> None:
    volumes = {volume.name: volume for volume in zoo.volumes()}
    for case in ZOO:
        dangers, notes = judged(case)
        problem = volumes[case.name].problem
        # whether a name lies outside the pool depends on where the pool is
        texts = [text.partition(": ")[0] for text in dangers + notes]
        assert bool(problem) == bool(texts), (case.name, problem)
        if problem is not None:
            assert texts[0] in problem, (case.name, problem)
            assert problem.isprintable()
    for name in NAMES:
        assert volumes[os.fsdecode(name)].problem is None


def test_every_document_can_be_made(zoo: Pool) -> None:
    for volume in zoo.volumes():
        assert volume.xml().startswith("<volume")
        assert volume.info().capacity >= 0


@pytest.mark.slow
def test_dangers_are_of_no_use(zoo: Pool, other: Pool, directory: Path) -> None:
    """Not cloned, converted, resized or used as a backing file; the file stays as it is."""
    assert len(DANGEROUS) > 250
    before = digest(directory)
    for case in DANGEROUS:
        volume = zoo.volume(case.name)
        refuses(lambda: other.clone(volume, "copy"), case.name)  # noqa: B023
        refuses(lambda: other.clone(volume, "copy", format="qcow2"), case.name)  # noqa: B023
        refuses(lambda: other.clone(volume, "copy", backing="linked"), case.name)  # noqa: B023
        refuses(lambda: volume.convert(format="qcow2", force=True), case.name)  # noqa: B023
        refuses(lambda: volume.resize("5 GiB"), case.name)  # noqa: B023
        refuses(lambda: volume.resize(512, shrink=True), case.name)  # noqa: B023
        if volume.info().format != "raw":  # who says that it is raw wants nothing in it interpreted
            refuses(lambda: over(other, directory / case.name, case.format), case.name)  # noqa: B023
    assert other.names() == []
    assert digest(directory) == before


def over(pool: Pool, path: Path, format: str) -> None:
    pool.create("over", "10 GiB", format="qcow2", backing=path, backing_format=format)


def refuses(call: Callable[[], object], name: str) -> None:
    with pytest.raises(StorageError) as caught:
        call()
    assert caught.value.code == OperationInvalid("").code == 55, (name, caught.value)


def digest(directory: Path) -> dict[str, str]:
    """Return what the small files of the zoo hold."""
    names = (case.name for case in ZOO)
    return {n: hashlib.sha256((directory / n).read_bytes()).hexdigest() for n in names}


@pytest.fixture(scope="module")
def backend(directory: Path) -> Dir:
    host = Host(id="testhost", durability=Durability.NONE)
    return Dir(PoolDef(PoolType.DIR, "zoo", target=str(directory)), host)


#: Their backing file is a regular file, and its format is recorded.
FOLLOWED = ("q-bk-passwd", "q-bk-dots", "q-bk-colon")
BAD_CHAINS = [case for case in reference_cases() if case.name not in FOLLOWED]


@pytest.mark.parametrize("case", BAD_CHAINS, ids=lambda case: case.name)
def test_nothing_comes_of_a_bad_chain(
    zoo: Pool, other: Pool, backend: Dir, case: ReferenceCase
) -> None:
    """A disk with a part that is missing, untold or no file at all is not read, nor cloned."""
    refuses(lambda: backend.open_disk(record(backend, case.name)), case.name)
    with pytest.raises(StorageError):
        other.clone(zoo.volume(case.name), "copy")
    assert other.names() == []


def record(backend: Dir, name: str) -> VolumeRecord:
    found = backend.look(name, None)
    assert found is not None
    return found


@pytest.mark.slow
def test_what_remains(storage: Storage, tmp_path: Path) -> None:
    """All of them can be downloaded as they are, and deleted."""
    for case in DANGEROUS:
        write_sparse(tmp_path / case.name, case.data)
    pool = storage.define_pool(document("rest", tmp_path))
    pool.start()
    for case in DANGEROUS:
        volume: Volume = pool.volume(case.name)
        out = io.BytesIO()
        volume.download(out)
        assert out.getvalue() == case.data, case.name
        volume.delete()
    assert list(tmp_path.iterdir()) == []
    pool.stop()
    pool.undefine()


@pytest.mark.parametrize("name", sorted(set(map(os.fsdecode, NAMES)) - CONTROL - {"a" * 255}))
def test_odd_names_are_names(zoo: Pool, other: Pool, name: str) -> None:
    """What a tool would take for an option, a protocol or a command is a file here."""
    clone = other.clone(zoo.volume(name), name)
    try:
        assert clone.info().capacity == 1 << 20
        clone.resize("2 MiB")
        overlay = other.clone(clone, "overlay", backing="linked")
        assert overlay.check().clean
        assert len(overlay.inspect().chain) == 2
    finally:
        for volume in reversed(other.volumes()):
            volume.delete(force=True)
    assert other.names() == []


def test_names_of_255_bytes(zoo: Pool, other: Pool) -> None:
    """The longest names there are: also what is under construction has one."""
    name = "a" * 255
    clone = other.clone(zoo.volume(name), name)
    assert other.names() == [name]
    clone.resize("2 MiB")
    clone.delete()
    longer = "a" * 256
    with pytest.raises(StorageError):
        other.create(longer, "1 MiB")
    assert other.names() == []
    assert list(Path(other.definition().target or "").iterdir()) == []


def test_a_chain_of_300(backend: Dir) -> None:
    refuses(lambda: backend.open_disk(record(backend, "q-chain300")), "q-chain300")
    with closing(backend.open_disk(record(backend, "q-chain50"))) as disk:
        assert disk.pread(512, (1 << 20) - 512) == bytes(512)


@pytest.mark.parametrize("name", [b"/etc/passwd", b"neighbour"])
def test_a_guest_writes_a_header(storage: Storage, tmp_path: Path, name: bytes) -> None:
    """A guest's raw disk that becomes a qcow2 must not hand it what the header names."""
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    (tmp_path / "neighbour").write_bytes(b"root: secret".ljust(1 << 20, b"\0"))
    pool = storage.define_pool(document(f"guest{len(name)}", tmp_path))
    pool.start()
    volume = pool.volume("disk")
    assert volume.info().format == "raw"
    with (tmp_path / "disk").open("r+b") as file:
        file.write(sound(1 << 20, backing=name, backing_format="raw"))
    out = io.BytesIO()
    try:
        with suppress(StorageError):
            pool.clone(volume, "copy", format="raw").download(out)
    finally:
        pool.stop()
        pool.undefine()
    assert b"root:" not in out.getvalue()


@pytest.mark.skipif(os.geteuid() != 0, reason="making other users' links needs root")
@pytest.mark.parametrize("name", [b"disk-link", b"folder-link/secret", b"folder-link/../secret"])
def test_a_strangers_links_are_not_followed(storage: Storage, tmp_path: Path, name: bytes) -> None:
    """Who may write to the directory must not turn the daemon upon files of others."""
    (tmp_path / "vms").mkdir()
    (tmp_path / "secret").write_bytes(b"root: secret".ljust(1 << 20, b"\0"))
    for link, goal in (("disk-link", "../secret"), ("folder-link", "..")):
        (tmp_path / "vms" / link).symlink_to(goal)
        os.lchown(tmp_path / "vms" / link, NOBODY, NOBODY)
    image = sound(1 << 20, backing=name, backing_format="raw")
    (tmp_path / "vms/disk").write_bytes(image)
    pool = storage.define_pool(document(f"links{len(name)}", tmp_path / "vms"))
    pool.start()
    try:
        with pytest.raises(StorageError):
            pool.clone(pool.volume("disk"), "copy", format="raw")
    finally:
        pool.stop()
        pool.undefine()
