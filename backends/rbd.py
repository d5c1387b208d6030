"""Pool type rbd: the images of a pool of a Ceph cluster.

libvirt's behaviour, but: one connection a pool is kept; librbd, which aborts its process where it
finds itself in a state that it did not expect, runs in one of its own; details are asked of the
headers of all images at once; a clone never touches an image that is there already; volumes can be
read, written and made smaller; and what other hosts do is seen.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any, ClassVar, Final

from storaged.backend import (
    Descriptor,
    HasSnapshots,
    Resizes,
    Shared,
    Sink,
    Source,
    StopsByForce,
    Transfers,
    WipeAlgorithm,
    Wipes,
)
from storaged.backends._passes import PASSES, Pass, run_pass
from storaged.backends._rbdhandle import RbdHandle
from storaged.backends._rbdlook import finished
from storaged.backends._rbdmake import MakesImages
from storaged.errors import (
    InvalidArgument,
    NoSuchVolume,
    OperationInvalid,
    OperationUnsupported,
    Unsupported,
    system_errors,
)
from storaged.formats.handle import Handle
from storaged.handleflow import HandleSink, HandleSource
from storaged.imagebackend import RewritesImages
from storaged.imaging import ConvertOptions
from storaged.job import Job
from storaged.model import VolumeRecord

#: Bytes that are wiped between two looks whether to go on.
_STRETCH: Final = 64 << 20


class Rbd(
    MakesImages,
    HasSnapshots,
    Resizes,
    Wipes,
    Transfers,
    RewritesImages,
    StopsByForce,
    Shared,
):
    """The images of a Ceph pool, or of one of its namespaces."""

    descriptor: ClassVar[Descriptor] = Descriptor("rbd", volume_formats=("raw",), counts=False)

    # The pool

    def start(self, job: Job[Any]) -> None:
        self.link.close()
        self.link.ask("check", "failed to list the namespaces")
        session = self.link.session()
        session.begin("sweep", {})
        _, names = self.link.ask("names", "Unable to list RBD images")
        for name in self.leftovers(names):
            session.begin("discard_unfinished", {"name": name})

    def stop(self, job: Job[Any]) -> None:
        self.link.close()

    def stop_by_force(self, job: Job[Any]) -> None:
        self.link.kill()

    def release(self) -> None:
        self.link.close()

    def watch(self) -> None:
        """See `Watched.watch`: it also sees what those have changed who do not tell."""
        doing = "the RADOS cluster does not answer"
        version = self.link.ask("version", doing, again=True, listen=True)
        if self._read:
            with self._lock:
                self._once_more, self._read = self._read, set()
            self._changed()
        if version == self._version:
            return
        version, names = self.link.ask("names", doing, again=True)
        names = finished(names)
        with self._lock:
            # a pool that was not read yet will be
            same = self._version < 0 or names == self._ids
            if self._version >= 0:
                self._version = version
        if not same:
            self._changed()

    def listen(self, changed: Callable[[], None]) -> None:
        self._changed = changed

    # Volumes

    def delete(
        self, volume: VolumeRecord, job: Job[Any], *, force: bool = False, snapshots: bool = False
    ) -> None:
        """See `HasSnapshots.delete`; force is of no help against clones and other clients.

        :raise VolumeBusy: clones need it, or another client has it open.
        """
        job.checkpoint()
        # what another host has made in its place meanwhile has its name, and is meant as well
        found = volume if volume.stamp else self.look(volume.name, None)
        while found is not None:
            try:
                self._remove(found, job, snapshots=snapshots)
                break
            except NoSuchVolume:
                gone, found = found, self.look(volume.name, None)
                if found is not None and found.stamp == gone.stamp:
                    raise
        with self._lock:
            self._ids.pop(volume.name, None)

    def _remove(self, volume: VolumeRecord, job: Job[Any], *, snapshots: bool) -> None:
        self.link.ask(
            "remove",
            f"failed to remove volume '{volume.path}'",
            volume=volume.name,
            job=job,
            name=volume.name,
            id=volume.stamp.decode(),
            snapshots=snapshots,
        )

    def resize(
        self,
        volume: VolumeRecord,
        capacity: int,
        job: Job[Any],
        *,
        allocate: bool = False,
        shrink: bool = False,
        force: bool = False,
        secret: bytes | None = None,
    ) -> VolumeRecord:
        if allocate:
            raise InvalidArgument(
                "unsupported flags (0x1) in function virStorageBackendRBDResizeVol"
            )
        job.checkpoint()
        if capacity != volume.capacity:
            self.link.ask(
                "resize",
                f"failed to resize the RBD image '{volume.name}'",
                volume=volume.name,
                name=volume.name,
                id=volume.stamp.decode(),
                size=capacity,
                alone=capacity < volume.capacity and not force,
            )
        return self.made(volume.name)

    def wipe(
        self,
        volume: VolumeRecord,
        algorithm: WipeAlgorithm,
        job: Job[Any],
        *,
        force: bool = False,
    ) -> VolumeRecord:
        doing = f"failed to wipe RBD image '{volume.name}'"
        if not force:
            id = volume.stamp.decode()
            kept = self.link.ask(
                "spare_snapshots", doing, volume=volume.name, name=volume.name, id=id
            )
            if kept:
                raise OperationInvalid(
                    f"volume '{volume.name}' has snapshots, which keep what it holds: "
                    + ", ".join(kept),
                    advice="They go with their image, or with the clones that need them.",
                )
        with (
            system_errors(doing),
            closing(self._image(volume, writable=True, alone=not force)) as image,
        ):
            size, passes = image.size(), PASSES.get(algorithm, (Pass(b"\0"),))
            total, done = size * len(passes), 0
            job.checkpoint(0, total)

            def moved(length: int) -> None:
                nonlocal done
                done += length
                job.checkpoint(done, total)

            for one in passes:
                for start in range(0, size, _STRETCH):
                    length = min(_STRETCH, size - start)
                    trims = algorithm is WipeAlgorithm.TRIM
                    if trims or (one.pattern == b"\0" and not one.verify):
                        image.write_zeroes(start, length, unmap=trims)
                        moved(length)
                    else:
                        run_pass(image, [(start, length)], one, moved)
            image.flush()
        return self.made(volume.name)

    # Bytes

    def open_image(self, volume: VolumeRecord, *, writable: bool = False) -> Handle:
        """See `Transfers.open_image`; it is opened when its bytes are first asked for."""
        return self._image(volume, writable=writable)

    def open_disk(self, volume: VolumeRecord, *, format: str | None = None) -> Handle:
        if format not in (None, "raw"):
            raise OperationUnsupported(
                f"volume '{volume.name}' would be read as {format}: rbd images are raw"
            )
        image = self._image(volume, alone=True)
        image.open()
        return image

    def upload(self, volume: VolumeRecord, offset: int, length: int) -> Sink:
        image = self._image(volume, writable=True, alone=True)
        image.open()
        end = min(image.size(), offset + length) if length else image.size()
        return HandleSink(image, offset, end, durable=True)  # the flush tells what has failed

    def download(
        self, volume: VolumeRecord, offset: int, length: int, *, sparse: bool = False
    ) -> Source:
        image = self._image(volume)
        image.open()
        end = max(image.size(), offset)
        if length:
            end = min(end, offset + length)
        return HandleSource(image, offset, end, sparse=sparse)

    def rewrite(
        self, volume: VolumeRecord, options: ConvertOptions, job: Job[Any], *, force: bool = False
    ) -> VolumeRecord:
        """Make a clone independent of its parent, which is all that there is to an rbd image.

        :raise Unsupported: something else is asked for.
        """
        if options not in (
            ConvertOptions(flatten=True, format=format, durability=options.durability)
            for format in (None, "raw")
        ):
            raise Unsupported("rbd images are raw: all that can be done is to flatten a clone")
        job.checkpoint()
        self.link.ask(
            "flatten",
            f"failed to flatten the RBD image '{volume.name}'",
            volume=volume.name,
            job=job,
            name=volume.name,
            id=volume.stamp.decode(),
        )
        return self.made(volume.name)

    def _image(
        self, volume: VolumeRecord, *, writable: bool = False, alone: bool = False
    ) -> RbdHandle:
        id = volume.stamp.decode()
        return RbdHandle(self.link, volume.name, id, writable=writable, alone=alone)
