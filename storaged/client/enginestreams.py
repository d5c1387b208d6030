"""Bytes in and out of volumes behind a connection."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing, suppress
from typing import TypeVar

from storaged.client.enginevalues import failures
from storaged.client.link import RemoteFailure, StreamLink
from storaged.errors import SystemFailure
from storaged.flow import Hole, Sink, Source
from storaged.formats.handle import Bytes
from storaged.job import Job
from storaged.transfer import File, drain_to, feed_all, open_file

T = TypeVar("T")

#: Zeros that are sent at a time, in bytes.
_ZEROS = 1 << 18


class StreamSink:
    """An upload: a `storaged.flow.Sink` over a stream.

    :param holes: send holes as such; else as zeros.
    """

    def __init__(self, stream: StreamLink, *, holes: bool) -> None:
        self._stream = stream
        self._holes = holes
        self._over = False

    def write(self, data: Bytes) -> None:
        """Send the next bytes."""
        with failures():
            self._stream.send(data)

    def hole(self, length: int) -> None:
        """Send a hole, or what reads as one."""
        if self._holes:
            with failures():
                self._stream.send_hole(length)
            return
        zeros = memoryview(bytes(min(length, _ZEROS)))
        while length > 0:
            self.write(zeros[:length])
            length -= min(length, _ZEROS)

    def finish(self) -> None:
        """End the upload as complete; the bytes are in the volume when this returns."""
        self._over = True
        with failures():
            self._stream.finish()

    def abort(self) -> None:
        """End the upload; bytes that arrived stay."""
        if not self._over:
            self._over = True
            with suppress(RemoteFailure):
                self._stream.abort()


class StreamSource:
    """A download: a `storaged.flow.Source` over a stream."""

    def __init__(self, stream: StreamLink, *, sparse: bool) -> None:
        self._stream = stream
        self._sparse = sparse
        self._at_end = False
        self._over = False

    def read(self, size: int) -> bytes | Hole:
        """Return the next piece; ``b""`` at the end."""
        if self._at_end:
            return b""
        with failures():
            piece = self._stream.receive(size, stop_at_hole=self._sparse)
        self._at_end = piece == b""
        return piece

    def close(self) -> None:
        """End the download."""
        if self._over:
            return
        self._over = True
        with suppress(RemoteFailure):
            if self._at_end:
                self._stream.finish()
            else:
                self._stream.abort()


def upload(
    job: Job[int], file: File, connect: Callable[[], Sink], *, length: int, sparse: bool
) -> Job[int]:
    """Write a file into a volume; the job, which is returned, gives the bytes moved.

    :param connect: opens the stream.
    """

    def work(job: Job[int]) -> int:
        source, ours = open_file(file, "rb")
        try:
            return feed_all(connect(), source, job, length=length, sparse=sparse)
        finally:
            if ours:
                source.close()

    return run(job, work)


def download(
    job: Job[int], file: File, connect: Callable[[], Source], measure: Callable[[], int]
) -> Job[int]:
    """Write a volume into a file; the job, which is returned, gives the bytes moved.

    :param measure: tells how many bytes will come, as far as that is known.
    """

    def work(job: Job[int]) -> int:
        total = measure()
        with closing(connect()) as source:
            return drain_to(source, file, job, total=total)

    return run(job, work)


def run(job: Job[T], work: Callable[[Job[T]], T]) -> Job[T]:
    """Have work done on a thread of its own, which does not keep the process alive."""

    def body() -> None:
        try:
            job.finish(work(job))
        except OSError as err:
            job.fail(SystemFailure(f"{job.kind} failed", err.errno or 0))
        except BaseException as err:
            job.fail(err)

    threading.Thread(target=body, name=f"storaged-{job.kind}", daemon=True).start()
    return job
