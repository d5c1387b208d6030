"""The image formats in this process, beside qemu-img in the same run."""

from __future__ import annotations

import os
import statistics
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from storaged.formats import qcow2_check, qcow2_create, vmdk_create
from storaged.formats.convert import convert
from storaged.formats.file import FileHandle
from storaged.formats.handle import Handle
from storaged.formats.probe import probe_fd
from storaged.formats.qcow2 import CompressionType
from storaged.formats.qcow2_create import CreateOptions, Preallocation
from storaged.formats.qcow2_read import Qcow2Disk
from storaged.formats.qcow2_writer import Qcow2Writer
from storaged.formats.raw_writer import RawWriter
from storaged.formats.syscalls import ficlonerange
from tests.bench.measure import Report, each, milliseconds, repeat

CREATE_SIZE = 10 << 30
CREATES = 40
PROBES = 400
CHECK_SIZE = 100 << 30
CONVERT_SIZE = 1 << 30
COMPRESSED_SIZE = 256 << 20
ROUNDS = 5
_XFS_SIZE = 3 << 30


def run(report: Report, directory: Path) -> None:
    """Measure creates, probes, checks and conversions, each beside qemu-img's."""
    _creates(report, directory)
    _check(report, directory)
    _conversions(report, directory, "", 1.0)
    _compressed(report, directory)
    with _xfs(directory) as mount:
        if mount is not None:
            _conversions(report, mount, " on XFS", 0.05)
            _large(report, mount)


def _pairs(
    report: Report,
    name: str,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    *,
    rounds: int,
    share: float | None = None,
    goal: float | None = None,
) -> None:
    """Measure both in turn, so that what else the machine does falls on both.

    :param share: the goal is this share of what qemu-img takes.
    """
    times, others = [], []
    for _ in range(rounds):
        times.append(milliseconds(ours))
        others.append(milliseconds(theirs))
    reference = sorted(others)[len(others) // 2]
    if share is not None:
        goal = reference * share
    report.samples(name, times, durability="none", reference=round(reference, 3), goal=goal)


def _creates(report: Report, directory: Path) -> None:
    """Measure what takes less than a process to start: ours many times on end, then qemu-img."""
    place = directory / "create"
    rows = (
        ("qcow2", "", _qcow2(Preallocation.OFF), ()),
        (
            "qcow2",
            ", metadata preallocated",
            _qcow2(Preallocation.METADATA),
            ("-o", "preallocation=metadata"),
        ),
        ("vmdk", "", _vmdk, ()),
    )
    for kind, how, write, options in rows:
        ours = [_fresh(place, write) for _ in range(CREATES)]
        theirs = [
            milliseconds(
                partial(_qemu_img, "create", "-f", kind, *options, place, str(CREATE_SIZE))
            )
            for _ in range(ROUNDS)
        ]
        reference = statistics.median(theirs)
        goal: float | None = reference if how or kind == "vmdk" else 0.1
        name = f"create {kind}{how}, 10 GiB, in process"
        report.samples(name, ours, durability="none", reference=round(reference, 3), goal=goal)
        probes = each([partial(_probe, place)] * PROBES)
        theirs = repeat(ROUNDS, partial(_qemu_img, "info", place))
        goal = 0.02 if kind == "qcow2" else None
        reference = round(statistics.median(theirs), 3)
        report.samples(f"probe {kind}{how}", probes, reference=reference, goal=goal)


def _qcow2(preallocation: Preallocation) -> Callable[[Handle], None]:
    options = CreateOptions(CREATE_SIZE, preallocation=preallocation)
    return lambda handle: qcow2_create.create(handle, options)


def _vmdk(handle: Handle) -> None:
    vmdk_create.create(handle, CREATE_SIZE)


def _fresh(path: Path, write: Callable[[Handle], object]) -> float:
    """Write a new file; return how long the writing took, in milliseconds."""
    path.unlink(missing_ok=True)
    with FileHandle(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)) as handle:
        return milliseconds(partial(write, handle))


def _probe(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        assert probe_fd(fd, os.fstat(fd).st_size) is not None
    finally:
        os.close(fd)


def _check(report: Report, directory: Path) -> None:
    """A tenth of the image's clusters are there, as a guest that fills its disk leaves them."""
    raw, image = directory / "tenth.raw", directory / "tenth.qcow2"
    with raw.open("wb") as file:
        file.truncate(CHECK_SIZE)
    _fresh(image, partial(_tenth, raw))

    def ours() -> None:
        with FileHandle(os.open(image, os.O_RDONLY)) as handle:
            assert qcow2_check.check(handle).clean

    theirs = partial(_qemu_img, "check", image)
    _pairs(report, "check qcow2, 10 of 100 GiB", ours, theirs, rounds=ROUNDS, share=3.0)


def _tenth(raw: Path, handle: Handle) -> None:
    writer = Qcow2Writer(handle, CreateOptions(CHECK_SIZE))
    step = CHECK_SIZE // 100
    unit = writer.unit
    for number in range(100):
        start = -(-number * step // unit) * unit
        assert writer.place(start, step // 10 // unit * unit) is not None
    writer.finish()


def _sample(path: Path, size: int, pieces: int, *, text: bool = False) -> None:
    """Write a raw image, a quarter of which are data, in some pieces."""
    step = size // pieces
    with path.open("wb") as file:
        file.truncate(size)
        for offset in range(0, size, step):
            file.seek(offset)
            data = os.urandom(step // 16)
            # Text compresses by half about, as the files of a guest do.
            file.write(data.hex().encode() * 2 if text else data * 4)


def _raw_to_raw(source: Handle, target: Handle) -> None:
    convert(source, RawWriter(target, source.size()))


def _to_qcow2(source: Handle, target: Handle) -> None:
    convert(source, Qcow2Writer(target, CreateOptions(source.size())))


def _conversion(
    source: Path, kind: str, target: Path, work: Callable[[Handle, Handle], None]
) -> None:
    with ExitStack() as stack:
        handle: Handle = FileHandle(os.open(source, os.O_RDONLY))
        if kind == "qcow2":
            handle = Qcow2Disk(handle)
        stack.callback(handle.close)
        _fresh(target, partial(work, handle))


def _conversions(report: Report, directory: Path, where: str, share: float) -> None:
    raw, image, target = (directory / name for name in ("source.raw", "source.qcow2", "target"))
    for pieces, how in ((1, ""), (256, " in 256 pieces")):
        _sample(raw, CONVERT_SIZE, pieces)
        _qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, image)
        os.sync()
        for source, kind, wanted, work in (
            (raw, "raw", "qcow2", _to_qcow2),
            (image, "qcow2", "raw", _raw_to_raw),
            (image, "qcow2", "qcow2", _to_qcow2),
            (raw, "raw", "raw", _raw_to_raw),
        ):
            _pairs(
                report,
                f"{kind} to {wanted}, 1 GiB{where}{how}",
                partial(_conversion, source, kind, target, work),
                partial(_qemu_img, "convert", "-f", kind, "-O", wanted, source, target),
                rounds=ROUNDS,
                share=share,
            )
    for path in (raw, image, target):
        path.unlink()


def _compressed(report: Report, directory: Path) -> None:
    raw, target = directory / "text.raw", directory / "target"
    _sample(raw, COMPRESSED_SIZE, 64, text=True)
    for kind, name in ((CompressionType.DEFLATE, "zlib"), (CompressionType.ZSTD, "zstd")):

        def work(source: Handle, target: Handle, kind: CompressionType = kind) -> None:
            options = CreateOptions(source.size())
            convert(source, Qcow2Writer(target, options, compression=kind))

        options = ("-c", "-o", f"compression_type={name}", "-f", "raw", "-O", "qcow2")
        _pairs(
            report,
            f"raw to qcow2, 256 MiB, {name}",
            partial(_conversion, raw, "raw", target, work),
            partial(_qemu_img, "convert", *options, raw, target),
            rounds=ROUNDS,
            share=1.0,
        )


def _large(report: Report, mount: Path) -> None:
    """A disk that is full of data, which all lie in the same few blocks."""
    raw = mount / "full.raw"
    block = 64 << 20
    with raw.open("w+b") as file:
        file.write(os.urandom(block))
        file.flush()
        fd, size = file.fileno(), block
        while size < CHECK_SIZE:
            length = min(size, CHECK_SIZE - size)
            ficlonerange(fd, size, fd, 0, length)
            size += length
    target = mount / "target"
    times = [
        milliseconds(partial(_conversion, raw, "raw", target, _to_qcow2)) for _ in range(ROUNDS)
    ]
    report.samples("raw to qcow2, 100 GiB full of data on XFS", times, durability="none")


@contextmanager
def _xfs(directory: Path) -> Iterator[Path | None]:
    """Mount a new XFS; None where that cannot be done."""
    image, mount = directory / "xfs.image", directory / "xfs"
    with image.open("wb") as file:
        file.truncate(_XFS_SIZE)
    mount.mkdir()
    try:
        _run("mkfs.xfs", "-q", "-m", "reflink=1", image)
        _run("mount", "-o", "loop", image, mount)
    except (OSError, subprocess.CalledProcessError):
        yield None
        return
    try:
        yield mount
    finally:
        _run("umount", mount)
        with suppress(OSError):
            image.unlink()


def _qemu_img(*words: str | Path) -> None:
    _run("qemu-img", words[0], *(() if words[0] in ("info", "check") else ("-q",)), *words[1:])


def _run(*argv: str | Path) -> None:
    subprocess.run([os.fspath(word) for word in argv], check=True, capture_output=True)
