"""Uploads and downloads: leased, counted, cancelled, and what they do to the file outside."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storaged.backend import Hole
from storaged.job import Job
from storaged.poolhandle import Pool
from storaged.transfer import drain
from storaged.volumehandle import Volume
from tests.doubles import Control, eventually, refused
from tests.storaged.conftest import Engine, idle

DATA = bytes(range(256)) * 4096


@pytest.fixture
def volume(pool: Pool) -> Volume:
    return pool.create("v", 4096)


def content(volume: Volume) -> bytes:
    return Path(volume.path).read_bytes()


def test_there_and_back(volume: Volume, tmp_path: Path, events: list[str]) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    there.write_bytes(DATA)
    assert volume.upload(there) == len(DATA)
    assert events == ["REFRESH"]
    assert volume.info().capacity == len(DATA)
    assert volume.download(back) == len(DATA)
    assert back.read_bytes() == content(volume) == DATA
    assert sorted(entry.name for entry in tmp_path.iterdir() if entry.is_file()) == [
        "back",
        "there",
    ]
    assert idle(volume.pool)


def test_parts(volume: Volume) -> None:
    volume.upload(io.BytesIO(DATA))
    assert volume.upload(io.BytesIO(b"abcdef"), offset=10, length=3) == 3
    assert content(volume)[8:16] == DATA[8:10] + b"abc" + DATA[13:16]
    out = io.BytesIO()
    assert volume.download(out, offset=9, length=5) == 5
    assert out.getvalue() == DATA[9:10] + b"abc" + DATA[13:14]


@pytest.mark.parametrize(("offset", "length"), [(-1, 0), (0, -1), (2**63 - 1, 1)])
def test_what_is_out_of_range(volume: Volume, offset: int, length: int) -> None:
    with refused(8):
        volume.open_upload(offset, length)
    with refused(8):
        volume.download(io.BytesIO(), offset=offset, length=length)
    assert idle(volume.pool)


def test_more_than_was_announced_is_refused(volume: Volume) -> None:
    sink = volume.open_upload(0, 4)
    sink.write(b"abcd")
    with refused(38, "cannot write to stream: No space left on device"):
        sink.write(b"e")
    sink.abort()
    assert content(volume)[:5] == b"abcd\0"


def test_piece_by_piece(volume: Volume, events: list[str]) -> None:
    sink = volume.open_upload(2048)
    sink.write(b"two")
    with refused(55, "Requested operation is not valid: volume 'v' is still in use."):
        volume.delete()
    sink.finish()
    sink.abort()
    assert events == ["REFRESH"]
    source = volume.open_download(2048, 3)
    assert (source.read(100), source.read(100)) == (b"two", b"")
    source.close()
    source.close()
    assert idle(volume.pool)


def test_an_upload_is_known_as_soon_as_it_ends(pool: Pool, volume: Volume) -> None:
    sink = volume.open_upload()
    sink.write(b"x" * 65536)
    sink.finish()
    assert [info.capacity for info in pool.infos()] == [65536]


def test_an_upload_that_outlives_its_pool(pool: Pool, volume: Volume, events: list[str]) -> None:
    sink = volume.open_upload()
    pool.stop()
    sink.write(b"x" * 8192)
    sink.finish()
    assert events == ["STOPPED"]
    pool.start()
    sink = volume.open_upload()
    pool.stop()
    Path(volume.key).unlink()
    pool.start()
    sink.abort()
    assert pool.names() == []


def test_a_failed_opening_leaves_no_lease(pool: Pool, volume: Volume, tmp_path: Path) -> None:
    works: tuple[Callable[[], object], ...] = (
        lambda: volume.upload(tmp_path / "nowhere"),
        lambda: volume.download(tmp_path / "no/such/directory"),
        lambda: volume.download("/"),
    )
    for work in works:
        with refused(38):
            work()
        assert idle(pool)
    Path(volume.path).unlink()
    with refused(38):
        volume.open_download()
    with refused(38):
        volume.open_upload()
    assert idle(pool)


def test_a_cancelled_upload_leaves_what_was_written(volume: Volume) -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb", buffering=0) as source:
        job = volume.upload(source, wait=False)
        os.write(writer, b"first")
        eventually(lambda: job.done == 5)
        job.cancel()
        os.write(writer, b"second")
        with refused(78):
            job.result()
        os.close(writer)
    assert content(volume)[:5] == b"first"
    assert idle(volume.pool)


def test_a_cancelled_download_leaves_no_file(
    volume: Volume, control: Control, tmp_path: Path
) -> None:
    volume.upload(io.BytesIO(DATA))
    target = tmp_path / "out"
    target.write_bytes(b"what was there")
    control.hold("download")
    job = volume.download(target, wait=False)
    control.wait_for("download")
    job.cancel()
    control.release("download")
    with refused(78):
        job.result()
    assert target.read_bytes() == b"what was there"
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_file()] == ["out"]


def test_the_job_of_a_transfer_is_the_one_that_advice_names(
    volume: Volume, control: Control, pool: Pool
) -> None:
    control.hold("upload")
    job = volume.upload(io.BytesIO(DATA), wait=False)
    control.wait_for("upload")
    with refused(55) as caught:
        volume.delete()
    assert f"Job {job.id} (upload" in str(caught.value.advice)
    with refused(1) as caught:
        pool.stop()
    assert f"job {job.id}: upload v" in str(caught.value.advice)
    control.release("upload")
    assert job.result() == len(DATA)


def test_holes_stay_holes(pool: Pool, tmp_path: Path) -> None:
    source, back = tmp_path / "source", tmp_path / "back"
    with source.open("wb") as file:
        file.seek(4 << 20)
        file.write(b"middle")
        file.truncate(32 << 20)
    volume = pool.create("sparse", 32 << 20)
    assert volume.upload(source, sparse=True) == 32 << 20
    assert volume.info().allocation < 1 << 16
    assert volume.download(back, sparse=True) == 32 << 20
    assert back.read_bytes() == source.read_bytes()
    assert back.stat().st_blocks * 512 < 1 << 16


class Pieces:
    """A download in pieces."""

    def __init__(self, *pieces: bytes | int) -> None:
        self._left = [Hole(piece) if isinstance(piece, int) else piece for piece in pieces]

    def read(self, _size: int) -> bytes | Hole:
        return self._left.pop(0) if self._left else b""

    def close(self) -> None:
        pass


pieces = st.lists(
    st.one_of(st.integers(1, 5000), st.binary(min_size=1, max_size=5000)), max_size=6
)  # fmt: skip


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(pieces, st.binary(max_size=8000), st.integers(0, 3000))
def test_a_hole_is_zeros_whatever_the_file_held(
    tmp_path: Path, given_pieces: list[bytes | int], old: bytes, start: int
) -> None:
    expected = b"".join(bytes(p) if isinstance(p, int) else p for p in given_pieces)
    path = tmp_path / "file"
    path.write_bytes(old)
    with path.open("r+b") as file:
        file.seek(start)
        assert drain(Pieces(*given_pieces), file, Job("download"), total=0) == len(expected)
    found = path.read_bytes()
    assert found[start : start + len(expected)] == expected
    assert found[:start] == old[:start].ljust(start if expected else min(start, len(old)), b"\0")
    assert found[start + len(expected) :] == old[start + len(expected) :]
    memory = io.BytesIO()
    drain(Pieces(*given_pieces), memory, Job("download"), total=0)
    assert memory.getvalue() == expected


def test_a_pipe_is_written_to_and_not_replaced(volume: Volume, tmp_path: Path) -> None:
    volume.upload(io.BytesIO(b"through the pipe"))
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(fifo.read_bytes()))
    reader.start()
    volume.download(fifo, length=16)
    reader.join()
    assert got == [b"through the pipe"]
    assert fifo.is_fifo()


def test_of_a_link_what_it_leads_to_is_replaced(volume: Volume, tmp_path: Path) -> None:
    volume.upload(io.BytesIO(b"new"))
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to("file")
    volume.download(tmp_path / "link", length=3)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"new"


def test_uploads_of_different_volumes_run_side_by_side(pool: Pool, engine: Engine) -> None:
    volumes = [pool.create(f"v{number}", 4096) for number in range(8)]
    jobs = [volume.upload(io.BytesIO(DATA), wait=False) for volume in volumes]
    assert [job.result() for job in jobs] == [len(DATA)] * 8
    assert all(content(volume) == DATA for volume in volumes)
    assert idle(pool)
