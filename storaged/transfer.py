"""Moving bytes between a volume and a file of the caller's: the loops of upload and download."""

from __future__ import annotations

import os
import stat
from contextlib import closing, suppress
from pathlib import Path
from typing import BinaryIO, TypeAlias

from storaged.errors import system_errors
from storaged.flow import Hole, Sink, Source
from storaged.job import Job
from storaged.units import MAX_SIZE

#: A file by its path, or one that is open in binary mode.
File: TypeAlias = str | os.PathLike[str] | BinaryIO

#: Bytes moved at a time.
CHUNK = 1 << 20


def open_file(file: File, mode: str) -> tuple[BinaryIO, bool]:
    """Return *file* as an open one, and whether the caller has to close it.

    :raise SystemFailure: it cannot be opened.
    """
    if isinstance(file, str | os.PathLike):
        with system_errors(f"cannot open file '{os.fspath(file)}'"):
            return Path(file).open(mode, buffering=0), True  # type: ignore[return-value]
    return file, False


def feed(sink: Sink, file: BinaryIO, job: Job[int], *, length: int, sparse: bool) -> int:
    """Write *file* to *sink*, from where it stands to its end; return the bytes moved.

    :param length: stop after so many bytes; 0 is "to the end".
    :param sparse: leave the holes of a regular file holes.
    """
    total = _remaining(file)
    total = min(total, length) if length and total else total or length
    job.checkpoint(0, total)
    with closing(_Holes(file)) as holes:
        done = 0
        while not length or done < length:
            left = length - done if length else MAX_SIZE
            skip = min(holes.at(done), left) if sparse else 0
            if skip:
                sink.hole(skip)
                file.seek(skip, os.SEEK_CUR)
            else:
                with system_errors("cannot read the file to upload"):
                    piece = file.read(min(CHUNK, left, holes.data_at(done) if sparse else CHUNK))
                if not piece:
                    break
                sink.write(piece)
            done += skip or len(piece)
            job.checkpoint(done)
        return done


def feed_all(sink: Sink, file: BinaryIO, job: Job[int], *, length: int, sparse: bool) -> int:
    """Write *file* to *sink* as `feed` does, and end the sink: as complete, or aborted."""
    try:
        moved = feed(sink, file, job, length=length, sparse=sparse)
    except BaseException:
        sink.abort()
        raise
    sink.finish()
    return moved


def drain(source: Source, file: BinaryIO, job: Job[int], *, total: int) -> int:
    """Write all of *source* to *file*; return the bytes moved, holes included.

    Holes become holes of *file* if it can seek, and zeros if it cannot.
    """
    job.checkpoint(0, total)
    old_end = _end(file)
    done = 0
    hole_at_end = False
    while piece := source.read(CHUNK):
        with system_errors("cannot write the downloaded file"):
            if isinstance(piece, Hole):
                _skip(file, piece.length, old_end)
                done += piece.length
            else:
                _write_all(file, piece)
                done += len(piece)
        hole_at_end = isinstance(piece, Hole)
        job.checkpoint(done)
    if hole_at_end and old_end is not None:
        with system_errors("cannot write the downloaded file"):
            end = file.tell()
            if end > old_end:
                file.truncate(end)
    return done


def drain_to(source: Source, file: File, job: Job[int], *, total: int) -> int:
    """Write all of *source* to *file* as `drain` does.

    A file that is given by its path appears whole or not at all.
    """
    if isinstance(file, str | os.PathLike):
        return _drain_to_path(source, Path(file), job, total=total)
    return drain(source, file, job, total=total)


def _drain_to_path(source: Source, path: Path, job: Job[int], *, total: int) -> int:
    """Write *source* to a new file beside *path* and give it that name at the end.

    A device or a pipe is written to, not replaced; of a link, what it leads to is replaced.
    """
    if path.exists() and not path.is_file():
        file, _ = open_file(path, "wb")
        with file:
            return drain(source, file, job, total=total)
    path = Path(os.path.realpath(path))
    part = path.with_name(f".{path.name[:50]}.{os.getpid()}-{job.id}.part")
    try:
        file, _ = open_file(part, "xb")
        with file:
            moved = drain(source, file, job, total=total)
        with system_errors(f"cannot write file '{path}'"):
            part.rename(path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
    return moved


class _Holes:
    """The holes of a regular file, from where it stands; none in anything else.

    The file is opened a second time, because seeking in it would confuse the buffer of *file*.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._fd = -1
        self._base = self._end = self._data_until = 0
        with suppress(OSError, ValueError, AttributeError):
            self._fd = os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY | os.O_CLOEXEC)
            self._base = file.tell()
            self._end = os.fstat(self._fd).st_size

    def at(self, done: int) -> int:
        """Return the length of the hole that begins *done* bytes in; 0 if there are data."""
        position = self._base + done
        if position < self._data_until or position >= self._end:
            return 0
        data = self._seek(position, os.SEEK_DATA)
        if data > position:
            return data - position
        self._data_until = self._seek(position, os.SEEK_HOLE)
        return 0

    def data_at(self, done: int) -> int:
        """Return how much may be read *done* bytes in, where `at` has found no hole."""
        left = self._data_until - (self._base + done)
        return left if left > 0 else CHUNK

    def close(self) -> None:
        """Close the second descriptor."""
        if self._fd >= 0:
            os.close(self._fd)

    def _seek(self, position: int, what: int) -> int:
        try:
            return os.lseek(self._fd, position, what)
        except OSError:
            return self._end  # ENXIO: nothing of it from here on


def _remaining(file: BinaryIO) -> int:
    """Return the bytes from where a regular file stands to its end; 0 for anything else."""
    try:
        return max(os.fstat(file.fileno()).st_size - file.tell(), 0)
    except (OSError, ValueError, AttributeError):
        return 0


def _end(file: BinaryIO) -> int | None:
    """Return where a regular file ends; None for anything else: holes are written there."""
    try:
        status = os.fstat(file.fileno())
        regular = file.seekable() and stat.S_ISREG(status.st_mode)
    except (OSError, ValueError, AttributeError):
        return None
    return max(status.st_size, file.tell()) if regular else None


def _skip(file: BinaryIO, length: int, old_end: int | None) -> None:
    """Have the next *length* bytes read as zeros: beyond the old end of the file by seeking."""
    left = length if old_end is None else min(max(old_end - file.tell(), 0), length)
    beyond = length - left
    zeros = bytes(min(left, CHUNK))
    while left:
        piece = min(left, CHUNK)
        _write_all(file, zeros[:piece])
        left -= piece
    if beyond:
        file.seek(beyond, os.SEEK_CUR)


def _write_all(file: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) or 0 :]
