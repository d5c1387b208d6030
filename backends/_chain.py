"""Following the backing chain of a volume: each file looked at once, by the same descriptor.

What an image names is opened only if it is a plain file, of a recorded format, and if nothing
speaks against the image that names it. Nothing is probed to find out what it might be.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from contextlib import ExitStack
from dataclasses import dataclass

from storaged import imagelock
from storaged.backends._image import OpensImages, format_errors
from storaged.backends._layers import HeldFile, Layer, read_layer, stacked
from storaged.backends._links import is_within, open_image, open_parent, real_path
from storaged.backends._scan import look_at
from storaged.chain import MAX_DEPTH, MAX_FILES, MAX_SECONDS, Chain, Link, Part
from storaged.concerns import Concern, Level, concerns, dangers, obstacle
from storaged.errors import OperationInvalid, StorageError, system_errors
from storaged.formats.handle import Handle
from storaged.formats.image import BackingRef, ImageInfo
from storaged.imagebackend import FollowsChains
from storaged.model import BackingStore, VolumeRecord
from storaged.references import Reference, ReferenceKind, clean, refer

#: How the kernel says that something is no file that could be read.
_NO_FILE = frozenset({errno.EINVAL, errno.EISDIR, errno.ENXIO, errno.ENODEV})


class ReadsChains(OpensImages, FollowsChains):
    """The disks of the files of a directory can be read as a guest sees them."""

    def chain(self, volume: VolumeRecord, *, format: str | None = None) -> Chain:
        with self.opened_target() as directory, ExitStack() as files:
            walk = _Walk(self, directory, files, locked=False)
            with system_errors(f"Failed to inspect volume with path '{self.path_of(volume.name)}'"):
                return self._walked(walk, directory, volume, format)

    def chain_of(self, directory: int, fd: int, volume: VolumeRecord) -> Chain:
        """Return the chain of a volume that is open, as `chain` does of its name.

        :param volume: what was just read of it.
        :raise OSError: it cannot be read.
        """
        with ExitStack() as files:
            walk = _Walk(self, directory, files, locked=False)
            return walk.run(walk.keep(os.dup(fd)), volume.name, volume.format or "raw", volume)

    def open_disk(self, volume: VolumeRecord, *, format: str | None = None) -> Handle:
        path = self.path_of(volume.name)
        with (
            self.opened_target() as directory,
            ExitStack() as files,
            system_errors(f"Failed to open storage volume with path '{path}'"),
        ):
            walk = _Walk(self, directory, files, locked=True)
            self._require_usable(volume.name, self._walked(walk, directory, volume, format))
            with format_errors(volume.name):
                disk = stacked(walk.layers)
            files.pop_all()  # they are the disk's now
            return disk

    def backing_volume(self, backing: BackingStore, directory: int) -> VolumeRecord | None:
        """Return the facts of a backing file that is to be; None if it is no volume of this pool.

        :raise OSError: it cannot be read.
        """
        place = refer(os.fsencode(backing.path), self.target).place or ""
        if clean(os.path.dirname(place)) != clean(self.target):  # noqa: PTH120
            return None
        name = os.path.basename(place)  # noqa: PTH119
        return look_at(directory, name, self.recorder())

    def _walked(
        self, walk: _Walk, directory: int, volume: VolumeRecord, format: str | None
    ) -> Chain:
        """Look at the volume itself, and at what lies below it.

        :raise OperationInvalid: it is another image than *volume* says.
        """
        fd = walk.keep(self.open_fd(directory, volume, writable=False))
        now = self.record_of(fd, volume.name)
        if format is None and now.format != volume.format:
            raise OperationInvalid(
                f"volume '{volume.name}' is of format {now.format} by now, not {volume.format}"
            )
        if format in (None, now.format):
            return walk.run(fd, volume.name, now.format or "raw", now)
        return walk.run(fd, volume.name, format or "raw", None)

    def _require_usable(self, name: str, chain: Chain) -> None:
        """Refuse a chain that must not be opened, or of which a part is missing."""
        if chain.dangers:
            raise OperationInvalid(
                f"volume '{name}' cannot be opened as a disk: {chain.dangers[0]}",
                advice="It can be downloaded and deleted.",
            )
        if chain.end is not None:
            raise OperationInvalid(
                f"the backing chain of volume '{name}' is incomplete: {chain.end.text}"
            )


class _EndError(Exception):
    """The chain ends here, before its end."""

    def __init__(self, level: Level, text: str) -> None:
        super().__init__(text)
        self.concern = Concern(level, text)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a link of the chain is.

    :param directory: descriptor of the directory that it lies in.
    """

    name: bytes
    path: str
    directory: int

    @property
    def folder(self) -> str:
        """The path of that directory."""
        return os.path.dirname(self.path)  # noqa: PTH120


class _Walk:
    """One way down a chain.

    :param pool: whose target it is.
    :param directory: the open target.
    :param files: takes over all descriptors of images.
    :param locked: keep QEMU's writers out of each, for as long as it is open.
    """

    def __init__(
        self, pool: ReadsChains, directory: int, files: ExitStack, *, locked: bool
    ) -> None:
        self.layers: list[Layer] = []
        self._target = pool.target
        self._rights = pool.rights
        self._directory = directory
        self._files = files
        self._locked = locked
        self._folders = ExitStack()
        self._seen: set[tuple[int, int]] = set()
        self._deadline = time.monotonic() + MAX_SECONDS

    def keep(self, fd: int) -> int:
        """Have a descriptor closed if the walk comes to nothing; return it."""
        self._files.callback(os.close, fd)
        return fd

    def run(self, fd: int, name: str, format: str, record: VolumeRecord | None) -> Chain:
        """Walk down from an open volume.

        :param record: what was just read of it; None if it is read as another *format*.
        """
        place = _Place(os.fsencode(name), f"{self._target}/{name}", self._directory)
        end = None
        with ExitStack() as self._folders:
            try:
                below = self._add(fd, place, format, record)
                while below is not None:
                    place, fd = self._open_next(place, below)
                    below = self._add(fd, place, below.format or "raw", None)
            except _EndError as err:
                end = err.concern
        return Chain(tuple(layer.link for layer in self.layers), end)

    def _open_next(self, place: _Place, backing: BackingRef) -> tuple[_Place, int]:
        """Open what the image at *place* has as its backing file."""
        if len(self.layers) >= MAX_DEPTH:
            raise _EndError(Level.DANGER, f"its backing chain has more than {MAX_DEPTH} images")
        if time.monotonic() > self._deadline:
            raise _EndError(
                Level.NOTE, f"its backing chain takes more than {MAX_SECONDS:.0f} s to look at"
            )
        reference = refer(backing.name, place.folder, self._target)
        why = obstacle(backing, reference, self.layers[-1].link.format)
        if why is not None:
            raise _EndError(why.level, why.text)
        found = self._place_of(reference, place)
        return found, self._open(found, f"its backing file {reference}")

    def _place_of(self, reference: Reference, place: _Place) -> _Place:
        path = reference.path or ""
        what = f"its backing file {reference}"
        try:
            if reference.is_plain:
                directory = place.directory
            elif self._is_target(os.path.dirname(path)):  # noqa: PTH120
                directory = self._directory
            else:
                directory = open_parent(os.fsdecode(reference.name), place.directory)
                self._folders.callback(os.close, directory)
        except OSError as err:
            raise _unopened(what, err) from err
        except StorageError as err:  # a link that is not to be followed
            raise _EndError(Level.DANGER, f"{what}: {err.message}") from err
        return _Place(reference.name, path, directory)

    def _is_target(self, folder: str) -> bool:
        """Tell by the words alone; of "link/.." they say nothing."""
        return ".." not in folder.split("/") and clean(folder) == clean(self._target)

    def _open(self, place: _Place, what: str) -> int:
        try:
            name = os.path.basename(place.path)  # noqa: PTH119
            fd = self.keep(open_image(place.directory, name, place.path, self._rights))
        except OSError as err:
            raise _unopened(what, err) from err
        except StorageError as err:  # a link that is not to be followed
            raise _EndError(Level.DANGER, f"{what}: {err.message}") from err
        if not is_within(fd, self._directory):
            real = refer(os.fsencode(real_path(fd)), self._target)
            if stat.S_ISBLK(os.fstat(fd).st_mode) or real.kind is not ReferenceKind.FILE:
                raise _EndError(Level.DANGER, f"{what} is a device")
        return fd

    def _add(
        self, fd: int, place: _Place, format: str, record: VolumeRecord | None
    ) -> BackingRef | None:
        """Take an open image as the next link; return what lies below it."""
        status = self._new(fd, os.fsdecode(place.name))
        first = not self.layers
        handle = self._held(fd, place.path, lock=not (first and format in ("raw", "iso")))
        image, vmdk = read_layer(handle, format, os.path.basename(place.path))  # noqa: PTH119
        if record is not None:
            image, found = record.image, record.concerns
        else:
            found = concerns(image, place.folder, self._target)
        capacity = image.capacity if image is not None else handle.size()
        link = Link(
            place.name, place.path, format, capacity, handle.size(), status.st_dev, status.st_ino,
            image, (*_mismatch(image, format, first=first), *found, *self._astray(fd, place)),
        )  # fmt: skip
        layer = Layer(link, handle, vmdk)
        self.layers.append(layer)
        if dangers(link.concerns):
            # Nothing that such an image names is touched.
            raise _EndError(Level.DANGER, dangers(link.concerns)[0])
        self._check_parent(layer)
        self._add_parts(layer, place)
        return image.backing if image is not None else None

    def _astray(self, fd: int, place: _Place) -> list[Concern]:
        """Tell of a name in the pool that leads out of it: the words alone do not."""
        if not refer(os.fsencode(place.path), self._target).inside or is_within(
            fd, self._directory
        ):
            return []
        return [Concern(Level.NOTE, f"{place.path!a} is a link that leads out of the pool")]

    def _add_parts(self, layer: Layer, place: _Place) -> None:
        """Open the files beside an image that hold its data."""
        image = layer.link.image
        if image is None:
            return
        names = image.extents if image.data_file is None else (image.data_file,)
        for name in names:
            reference = refer(name, place.folder, self._target)
            what = f"the file with its data {reference}"
            there = _Place(name, reference.path or "", place.directory)
            fd = self._open(there, what)
            status = self._new(fd, str(reference))
            layer.parts.append(self._held(fd, there.path, lock=True))
            part = Part(name, layer.parts[-1].size(), status.st_dev, status.st_ino)
            layer.add(part)

    def _new(self, fd: int, name: str) -> os.stat_result:
        """Refuse a file that the chain has already."""
        status = os.fstat(fd)
        key = status.st_dev, status.st_ino
        if key in self._seen:
            raise _EndError(Level.DANGER, f"its backing chain is a loop: it comes back to {name!a}")
        if len(self._seen) >= MAX_FILES:
            raise _EndError(Level.DANGER, f"its backing chain has more than {MAX_FILES} files")
        self._seen.add(key)
        return status

    def _held(self, fd: int, path: str, *, lock: bool) -> HeldFile:
        """Return an open file as a handle, which keeps QEMU's writers out until it is closed."""
        locks = ExitStack()
        if lock and self._locked:
            name = os.path.basename(path)  # noqa: PTH119
            locks.enter_context(imagelock.hold(fd, name, writing=False))
            self._files.callback(locks.close)
        return HeldFile(fd, locks)

    def _check_parent(self, layer: Layer) -> None:
        """Refuse the parent of a vmdk that was written to after its child was made."""
        if layer.vmdk is None or len(self.layers) < 2:
            return
        child = self.layers[-2].vmdk
        if child is not None and child.parent_cid != layer.vmdk.cid:
            raise _EndError(
                Level.DANGER, "its parent was changed after it was made: the content ids differ"
            )


def _mismatch(image: ImageInfo | None, format: str, *, first: bool) -> list[Concern]:
    if image is None or image.format == format:
        return []
    what = "it" if first else "its backing file"
    return [Concern(Level.DANGER, f"{what} is not of format {format}: {image.format}")]


def _unopened(what: str, error: OSError) -> _EndError:
    number = error.errno or errno.EIO
    if number == errno.ENOENT:
        return _EndError(Level.NOTE, f"{what} is not there")
    if number in _NO_FILE:
        return _EndError(Level.DANGER, f"{what} is no regular file")
    return _EndError(Level.NOTE, f"{what} cannot be opened: {os.strerror(number)}")
