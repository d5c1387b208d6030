"""Uploads and downloads of a pool's volumes: leased while they last, looked at when they end."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from storaged.backend import Hole, LooksAtVolumes, Sink, Source, Transfers
from storaged.errors import InvalidArgument, StorageError, system_errors
from storaged.formats.handle import Bytes
from storaged.job import Job
from storaged.model import VolumeRecord
from storaged.transfer import File, drain, feed, open_file
from storaged.units import MAX_SIZE
from storaged.volumes import Volumes


class Streams:
    """The transfers of one pool.

    An open transfer holds a shared lease: several uploads to one volume are allowed, as in libvirt,
    but nobody resizes, wipes or deletes it meanwhile. A transfer that a job runs counts as one of
    the pool's jobs; one that the caller feeds piece by piece does not.
    """

    def __init__(self, volumes: Volumes) -> None:
        self._volumes = volumes
        self._pool = volumes.pool

    def open_upload(self, name: str, offset: int, length: int) -> Sink:
        """Open a volume for writing.

        :param length: the most bytes to take; 0 is no bound.
        :raise VolumeBusy: a job changes it, or a virtual machine has it open.
        """
        record, release = self._lease(name, Job("upload", self._pool.name, name), offset, length)
        backend = self._pool.able(Transfers)
        try:
            return _LeasedSink(backend.upload(record, offset, length), self._ended(name, release))
        except BaseException:
            release()
            raise

    def open_download(self, name: str, offset: int, length: int, *, sparse: bool) -> Source:
        """Open a volume for reading; a *length* of 0 is "to the end"."""
        record, release = self._lease(name, Job("download", self._pool.name, name), offset, length)
        backend = self._pool.able(Transfers)
        try:
            return _LeasedSource(backend.download(record, offset, length, sparse=sparse), release)
        except BaseException:
            release()
            raise

    def upload_file(
        self, name: str, file: File, offset: int, length: int, *, sparse: bool
    ) -> Job[int]:
        """Write a file into a volume; the job gives the bytes moved.

        A cancel leaves what was written so far.
        """
        job: Job[int] = Job("upload", self._pool.name, name)

        def work(job: Job[int]) -> int:
            source, ours = open_file(file, "rb")
            try:
                return self._feed(
                    self.open_upload(name, offset, length), source, job, length, sparse
                )
            finally:
                if ours:
                    source.close()

        return self._counted(job, work)

    def download_file(
        self, name: str, file: File, offset: int, length: int, *, sparse: bool
    ) -> Job[int]:
        """Write a volume into a file; the job gives the bytes moved.

        A file that is given by its path appears whole or not at all.
        """
        job: Job[int] = Job("download", self._pool.name, name)

        def work(job: Job[int]) -> int:
            record = self._volumes.find(name)
            total = max(min(length or MAX_SIZE, record.physical - offset), 0)
            with closing(self.open_download(name, offset, length, sparse=sparse)) as source:
                if isinstance(file, str | os.PathLike):
                    return _drain_to_path(source, Path(file), job, total)
                return drain(source, file, job, total=total)

        return self._counted(job, work)

    def _feed(self, sink: Sink, source: Any, job: Job[int], length: int, sparse: bool) -> int:
        try:
            moved = feed(sink, source, job, length=length, sparse=sparse)
        except BaseException:
            sink.abort()
            raise
        sink.finish()
        return moved

    def _counted(self, job: Job[int], work: Callable[[Job[int]], int]) -> Job[int]:
        with self._pool.lock:
            self._pool.require_active()
            self._pool.jobs[job.id] = job
        return self._pool.run_job(job, work, lambda: None)

    def _lease(
        self, name: str, job: Job[Any], offset: int, length: int
    ) -> tuple[VolumeRecord, Callable[[], None]]:
        if offset < 0 or length < 0 or offset > MAX_SIZE - length:
            raise InvalidArgument(f"offset {offset} and length {length} are out of range")
        self._pool.able(Transfers)
        record = self._volumes.find(name)
        with self._pool.lock:
            self._pool.require_active()
            self._pool.leases.read(name, job)

        def release() -> None:
            with self._pool.lock:
                self._pool.leases.release(name, job)

        return record, release

    def _ended(self, name: str, release: Callable[[], None]) -> Callable[[], None]:
        """Return what ends an upload: give the lease back and look what the volume is now."""

        def ended() -> None:
            release()
            backend = self._pool.backend
            with suppress(StorageError):
                if isinstance(backend, LooksAtVolumes):
                    found = backend.look(name, self._pool.index.get(name))
                    with self._pool.lock:
                        if found is not None and self._pool.leases.writer(name) is None:
                            self._pool.put(found)
            self._pool.services.events.post(self._pool.ref, None)
            self._pool.services.events.deliver()

        return ended


class _LeasedSink:
    """A sink that tells when it ends."""

    def __init__(self, sink: Sink, ended: Callable[[], None]) -> None:
        self._sink = sink
        self._ended: Callable[[], None] | None = ended

    def write(self, data: Bytes) -> None:
        self._sink.write(data)

    def hole(self, length: int) -> None:
        self._sink.hole(length)

    def finish(self) -> None:
        try:
            self._sink.finish()
        finally:
            self._end()

    def abort(self) -> None:
        try:
            self._sink.abort()
        finally:
            self._end()

    def _end(self) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            ended()


class _LeasedSource:
    """A source that tells when it ends."""

    def __init__(self, source: Source, ended: Callable[[], None]) -> None:
        self._source = source
        self._ended: Callable[[], None] | None = ended

    def read(self, size: int) -> bytes | Hole:
        return self._source.read(size)

    def close(self) -> None:
        try:
            self._source.close()
        finally:
            ended, self._ended = self._ended, None
            if ended is not None:
                ended()


def _drain_to_path(source: Source, path: Path, job: Job[int], total: int) -> int:
    """Write *source* to a new file beside *path* and give it that name at the end."""
    part = path.with_name(f".{path.name[:200]}.{os.getpid()}-{job.id}.part")
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
