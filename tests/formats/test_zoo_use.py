"""Every inhabitant of the zoo in every use: the right answer, soon, in little memory, alone."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest

from storaged.concerns import Level, concerns
from storaged.formats import probe
from storaged.formats.errors import CorruptImage, FormatError, UnsupportedFormat
from storaged.formats.image import ImageState
from storaged.formats.qcow2_bitmaps import BitmapFlag, read_bitmaps
from storaged.formats.qcow2_snapshots import read_snapshots
from tests.formats.memory import MemoryHandle
from tests.formats.zoo import cases, whole
from tests.formats.zoo_case import MIB, Case
from tests.formats.zoo_deep import DeepCase, deep_cases
from tests.formats.zoo_files import populate
from tests.formats.zoo_references import ReferenceCase, disguised, reference_cases
from tests.formats.zoo_use import USES, opened

ZOO = whole()
DEEP = list(deep_cases())
REFERENCES = list(reference_cases())
DISKS = ("qcow2", "vmdk")
#: An image that a probe finds to be sound or at least readable, by what the reader cannot do.
UNREADABLE = {"q-crypt1": "encrypted", "q-ext-fde": "encrypted"}
#: Corrupt, but not where the data lie: the mark alone, or the place of a text. What the mark's
#: owner wants is up to him; the pool refuses to use them.
RESCUED = ("q-corrupt", "v-descoff", "v-descsz")
#: Sound by the header; what stands behind it was never made to be looked at.
UNSOUND = ("q-snap-ok", "q-ext-fde", "v-stream")
TOP = Path(__file__).parents[2]


def test_the_zoo_is_complete() -> None:
    """Names are unique, apart from what both ways of looking have."""
    names = [case.name for case in ZOO]
    assert len(set(names)) == len(names), sorted(n for n in names if names.count(n) > 1)
    assert len(names) >= 400


def answer(case: Case, use: str) -> str:
    try:
        return USES[use](MemoryHandle(case.data))
    except FormatError as err:
        return f"{type(err).__name__} {err}"


@pytest.mark.parametrize(
    "use",
    [pytest.param(use, marks=[pytest.mark.slow] * (use in ("check", "lists"))) for use in USES],
)
def test_bounds(use: str) -> None:
    """An answer or a FormatError, within 50 ms and 16 MiB, and the image stays as it is."""
    slow, large = [], []
    for case in ZOO:
        limit = 1.0 if isinstance(case, DeepCase) and case.big else 0.05
        taken = 0.0
        for _ in range(3):  # what disturbs once does not do so three times
            start = time.thread_time()
            answer(case, use)
            taken = time.thread_time() - start
            if taken < limit:
                break
        else:
            slow.append((case.name, taken))
        handle = MemoryHandle(case.data)
        tracemalloc.start()
        try:
            USES[use](handle)
        except FormatError:
            pass
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        if peak > 16 * MIB:
            large.append((case.name, peak))
        assert handle.data == case.data
    assert slow == []
    assert large == []


@pytest.mark.parametrize("case", [*DEEP, *REFERENCES, *disguised()], ids=lambda case: case.name)
def test_a_probe_sees_a_sound_header(case: Case) -> None:
    info = probe.probe(MemoryHandle(case.data))
    assert (info.format, info.state) == (case.format, case.state), info
    assert info.capacity == (len(case.data) if case.capacity is None else case.capacity)
    assert re.search(case.reason, "; ".join(info.reasons))


@pytest.mark.parametrize("case", DEEP, ids=lambda case: case.name)
def test_what_a_check_finds(case: DeepCase) -> None:
    found = answer(case, "check")
    assert bool(found) == bool(case.finding), found
    assert re.search(case.finding, found), found


@pytest.mark.parametrize("case", DEEP, ids=lambda case: case.name)
def test_what_a_reader_comes_upon(case: DeepCase) -> None:
    found = answer(case, "read")
    assert found.startswith("CorruptImage" if case.unreadable else "read"), found
    assert re.search(case.unreadable, found), found
    if not case.unreadable:
        assert answer(case, "map").startswith("mapped")


@pytest.mark.parametrize(
    "case", [case for case in cases() if case.format in DISKS], ids=lambda case: case.name
)
def test_a_bad_header_opens_nothing(case: Case) -> None:
    """What the probe calls corrupt or unsupported is neither mapped nor read."""
    for use in ("map", "read"):
        found = answer(case, use)
        if case.state is ImageState.UNSUPPORTED:
            assert found.startswith(UnsupportedFormat.__name__), found
        elif case.name in RESCUED:
            assert found.startswith(("mapped", "read")), found
        elif case.state is ImageState.CORRUPT:
            assert found.startswith((CorruptImage.__name__, UnsupportedFormat.__name__)) or (
                "magic" in case.reason and "Error" in found
            ), found
        elif case.name in UNREADABLE:
            assert UNREADABLE[case.name] in found
        elif case.state is ImageState.OK:
            assert found.startswith(("mapped", "read")), found
    found = answer(case, "check")
    if case.state is ImageState.OK and case.name not in UNSOUND:
        assert found == "", found
    elif case.state is not ImageState.OK and "also" not in case.reason:
        assert found


@pytest.mark.parametrize("case", REFERENCES, ids=lambda case: case.name)
def test_references_are_judged_by_their_words(case: ReferenceCase) -> None:
    info = probe.probe(MemoryHandle(case.data))
    assert info.backing is not None
    assert info.backing.name == case.backing
    found = concerns(info, "/pool/vms")
    dangers = "; ".join(one.text for one in found if one.level is Level.DANGER)
    notes = "; ".join(one.text for one in found if one.level is Level.NOTE)
    assert (bool(dangers), bool(notes)) == (bool(case.danger), bool(case.note))
    assert case.danger in dangers
    assert case.note in notes
    assert (dangers + notes).isprintable()


def test_snapshot_lists() -> None:
    found = {case.name: case for case in DEEP}
    assert len(read_snapshots(MemoryHandle(found["q-snap-many"].data))) == 65536
    with pytest.raises(CorruptImage, match="snapshot"):
        read_snapshots(MemoryHandle(found["q-snap-lie"].data))
    (bitmap,) = read_bitmaps(MemoryHandle(found["q-bm-inuse"].data))
    assert BitmapFlag.IN_USE in bitmap.flags


@pytest.mark.slow
def test_a_bomb_is_unpacked_within_bounds() -> None:
    """512 MiB out of one cluster of 100 bytes: read in pieces, it takes a few of them at a time."""
    (case,) = (case for case in DEEP if case.name == "q-bomb-comp")
    disk = opened(MemoryHandle(case.data))
    tracemalloc.start()
    try:
        for offset in range(0, 128 * MIB, 2 * MIB):
            assert disk.pread(2 * MIB, offset) == b"x" * (2 * MIB)
        assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    finally:
        tracemalloc.stop()


WATCHER = [sys.executable, "-m", "tests.formats.zoo_watch"]


@pytest.mark.slow
def test_nothing_else_is_opened_or_started(tmp_path: Path) -> None:
    """By Python's own word: a hook sees every file opened and every process started."""
    populate(tmp_path)
    done = subprocess.run([*WATCHER, str(tmp_path)], cwd=TOP, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 400


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_the_kernel_sees_nothing_else(tmp_path: Path) -> None:
    pool, log = tmp_path / "pool", tmp_path / "log"
    pool.mkdir()
    populate(pool)
    calls = "trace=open,openat,openat2,execve,fork,vfork,clone,clone3,connect,socket,unlink,rename"
    argv = ["strace", "-f", "-qq", "-s", "4096", "-o", str(log), "-e", calls, *WATCHER, str(pool)]
    done = subprocess.run(argv, cwd=TOP, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = log.read_text().splitlines()
    (begin,) = (number for number, line in enumerate(lines) if "/watch-begins" in line)
    (end,) = (number for number, line in enumerate(lines) if "/watch-ends" in line)
    seen = lines[begin + 1 : end]
    assert len(seen) == int(done.stdout)
    for line in seen:
        assert re.search(rf' openat\(AT_FDCWD, "{re.escape(str(pool))}/[^/]+", O_RDONLY\S*\)', line)
