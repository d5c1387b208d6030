"""Uploads and downloads of a pool's volumes: leased while they last, looked at when they end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from typing import Any

from storaged.backend import Hole, LooksAtVolumes, Sink, Source, Transfers
from storaged.errors import InvalidArgument, StorageError
from storaged.flow import write_all
from storaged.formats.handle import Bytes
from storaged.job import Job
from storaged.model import VolumeRecord
from storaged.transfer import File, drain_to, feed_all, open_file
from storaged.units import MAX_SIZE
from storaged.volumes import Volumes


class Streams:
    """The transfers of one pool.

    An open transfer holds a shared lease: others may read or write beside it as far as the backend
    lets them, but nobody resizes, wipes or deletes the volume meanwhile. A transfer that a job runs
    counts as one of the pool's jobs; one that the caller feeds piece by piece does not.
    """

    def __init__(self, volumes: Volumes) -> None:
        self._volumes = volumes
        self._pool = volumes.pool

    def open_upload(self, name: str, offset: int, length: int) -> Sink:
        """Open a volume for writing.

        :param length: the most bytes to take; 0 is no bound.
        :raise VolumeBusy: a job changes it, or a virtual machine has it open.
        """
        return self._open_upload(Job("upload", self._pool.name, name), offset, length)

    def open_download(self, name: str, offset: int, length: int, *, sparse: bool) -> Source:
        """Open a volume for reading; a *length* of 0 is "to the end"."""
        job: Job[Any] = Job("download", self._pool.name, name)
        return self._open_download(job, offset, length, sparse=sparse)

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
                sink = self._open_upload(job, offset, length)
                return feed_all(sink, source, job, length=length, sparse=sparse)
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
            with closing(self._open_download(job, offset, length, sparse=sparse)) as source:
                return drain_to(source, file, job, total=total)

        return self._counted(job, work)

    def _counted(self, job: Job[int], work: Callable[[Job[int]], int]) -> Job[int]:
        with self._pool.lock:
            self._pool.require_active()
            self._pool.jobs[job.id] = job
        return self._pool.run_job(job, work, lambda: None)

    def _open_upload(self, job: Job[Any], offset: int, length: int) -> Sink:
        backend, record = self._lease(job, offset, length)
        try:
            sink = backend.upload(record, offset, length)
        except BaseException:
            self._release(job)
            raise
        return _LeasedSink(sink, self._look_and_release(job))

    def _open_download(self, job: Job[Any], offset: int, length: int, *, sparse: bool) -> Source:
        backend, record = self._lease(job, offset, length)
        try:
            source = backend.download(record, offset, length, sparse=sparse)
        except BaseException:
            self._release(job)
            raise
        return _LeasedSource(source, lambda: self._release(job))

    def _lease(self, job: Job[Any], offset: int, length: int) -> tuple[Transfers, VolumeRecord]:
        """Lease the job's volume for reading, whichever way the bytes go."""
        if offset < 0 or length < 0 or offset > MAX_SIZE - length:
            raise InvalidArgument(f"offset {offset} and length {length} are out of range")
        backend = self._pool.able(Transfers)
        record = self._volumes.find(job.volume or "")
        with self._pool.lock:
            self._pool.require_active()
            self._pool.leases.read(record.name, job)
        return backend, record

    def _release(self, job: Job[Any]) -> None:
        with self._pool.lock:
            self._pool.leases.release(job.volume or "", job)

    def _look_and_release(self, job: Job[Any]) -> Callable[[], None]:
        """Return what ends an upload: look what the volume is now, and give the lease back."""
        epoch = self._pool.epoch

        def ended() -> None:
            pool, name = self._pool, job.volume or ""
            known, found = pool.index.get(name), None
            with suppress(StorageError):
                if pool.epoch == epoch and isinstance(backend := pool.backend, LooksAtVolumes):
                    # Not compared with what it was: the upload says what it is now.
                    found = backend.look(name, None)
            with pool.lock:
                pool.leases.release(name, job)
                if pool.epoch != epoch:
                    return  # it was stopped meanwhile, which an open stream does not keep it from
                if found is not None and pool.index.get(name) is known:
                    pool.put(found)
                pool.services.events.post(pool.ref, None)
            pool.services.events.deliver()

        return ended


class _LeasedSink:
    """A sink that tells when it ends."""

    def __init__(self, sink: Sink, ended: Callable[[], None]) -> None:
        self._sink = sink
        self._ended: Callable[[], None] | None = ended

    def write(self, data: Bytes) -> None:
        self._sink.write(data)

    def write_many(self, parts: Sequence[Bytes]) -> None:
        write_all(self._sink, parts)

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
