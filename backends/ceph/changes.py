"""How images come to be, change, and go.

Source: Ceph's librbd, by its Python binding; libvirt's behaviour where clones are concerned.
"""

from __future__ import annotations

import errno
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from storaged.backends.ceph.connection import Connection
from storaged.backends.ceph.headers import Headers, State
from storaged.backends.ceph.trash import AUTOMATIC, Trash

#: Features that a clone can take over from its parent: all that are not about one image alone.
_INHERITED = 0b111_1111
#: An image with so few objects is removed while nobody waits for it.
_FEW = 64
#: How often a clone is tried whose snapshot another client takes away at the same moment.
_TRIES = 5
_USER_SNAPSHOT = 0


class HasClones(Exception):
    """Other images need this one's data; the text names them."""


class HasSnapshots(Exception):
    """There are snapshots that were not made for clones; the text names them."""


class ImageInUse(Exception):
    """Other clients have the image open; the text names them."""


class NotCloneable(Exception):
    """There can be no clones of an image: it lacks the feature, or its size is 0."""


Checkpoint = Callable[[int, int], None]


class Changes:
    """What is done to the images of one pool."""

    def __init__(self, connection: Connection, headers: Headers, trash: Trash) -> None:
        self._connection = connection
        self._headers = headers
        self._trash = trash
        self._rbd = connection.rbd
        self._ioctx = connection.ioctx
        self._images = connection.images

    @contextmanager
    def opened(self, name: str, number: str = "", *, writable: bool = True) -> Iterator[Any]:
        """Open an image for the length of a context; one for reading is watched by nobody.

        :param number: the id that it must have still; "": any.
        :raise rbd.ImageNotFound: it has gone, or another one has its name.
        """
        image = self._rbd.Image(self._ioctx, name, read_only=not writable)
        try:
            if number and image.id() != number:
                raise self._rbd.ImageNotFound(f"{name} is another image", errno=errno.ENOENT)
            yield image
        finally:
            image.close()

    def create(self, name: str, size: int) -> None:
        """Make an empty image as the client's options say: features, size of objects, striping."""
        try:
            self._images.create(self._ioctx, name, size, old_format=False)
        except self._rbd.ImageNotFound:
            self._connection.require_pool()
            raise

    def clone(self, parent: str, parent_id: str, name: str, size: int, part: str) -> None:
        """Make a copy-on-write clone.

        An image that has not changed since the last one was made needs no further snapshot.

        :param size: it is made larger where the parent is smaller.
        :param part: what it is called until it is.
        :raise rbd.ImageExists: the name is taken.
        :raise NotCloneable: there can be none of that image.
        """
        state = self._state(parent, parent_id)
        if not (state.features & self._rbd.RBD_FEATURE_LAYERING and state.facts.size):
            raise NotCloneable(parent)
        if state.facts.size >= size:
            self._clone(state, parent, name)
            return
        try:
            self._clone(state, parent, part)
            with self.opened(part) as image:
                image.resize(size)
            self.rename(part, name)
        except BaseException:
            self.discard(part)
            raise

    def discard(self, part: str) -> None:
        """Remove an image that was being made, if there is one."""
        with suppress(self._rbd.Error):
            number = self._headers.id_of(part)
            if number is None:  # it may be half removed
                self._images.remove(self._ioctx, part)
            else:
                self._trash.move(part, number)
                self._trash.remove_later(number)

    def _clone(self, state: State, parent: str, name: str) -> None:
        number = state.facts.id
        for left in reversed(range(_TRIES)):
            snapshot, made = self._headers.snapshot_to_clone(state), None
            try:
                if snapshot is None:
                    snapshot = made = AUTOMATIC + secrets.token_hex(8)
                    self._take_snapshot(parent, number, made)
                    self._headers.note_snapshot(number, made)
                features = state.features & _INHERITED
                self._images.clone(
                    self._ioctx, parent, snapshot, self._ioctx, name, features=features
                )
                return
            except BaseException as err:
                if made is not None:
                    self._drop_snapshot(parent, number, made)
                # maybe somebody has just taken the snapshot away
                if not isinstance(err, (self._rbd.ImageNotFound, self._rbd.InvalidArgument)):
                    raise
                if self._headers.id_of(parent) != number:
                    raise self._gone(parent) from err
                if not left:
                    self._connection.require_space()
                    raise ImageInUse("others clone or delete it") from err
            state = self._state(parent, number)

    def _state(self, name: str, number: str) -> State:
        found = self._headers.state(number)
        if found is None:
            raise self._gone(name)
        return found

    def _gone(self, name: str) -> Exception:
        gone: Exception = self._rbd.ImageNotFound(f"{name} has gone", errno=errno.ENOENT)
        return gone

    def _take_snapshot(self, name: str, number: str, snapshot: str) -> None:
        """Take a snapshot that clones can be made of."""
        with self.opened(name, number) as image:
            image.create_snap(snapshot)
            image.protect_snap(snapshot)

    def _drop_snapshot(self, name: str, number: str, snapshot: str) -> None:
        with suppress(self._rbd.Error), self.opened(name, number) as image:
            image.unprotect_snap(snapshot)
            image.remove_snap(snapshot)

    def rename(self, name: str, new: str) -> None:
        """Give an image that nobody else knows of another name.

        librbd's own way does not tell when another image gets that name at the same moment.

        :raise rbd.ImageExists: there is one of that name.
        """
        number = self._headers.id_of(name)
        if number is None:
            raise self._gone(name)
        try:
            self._headers.rename(number, name, new)
        except self._connection.rados.ObjectExists as err:
            raise self._rbd.ImageExists(f"{new} exists", errno=errno.EEXIST) from err

    def resize(self, name: str, number: str, size: int) -> None:
        """Set the size of an image; what is cut off is gone."""
        with self.opened(name, number) as image:
            image.resize(size, allow_shrink=True)

    def flatten(self, name: str, number: str, checkpoint: Checkpoint) -> None:
        """Copy what a clone has of its parent into it, and let the two be strangers."""
        with self.opened(name, number) as image:
            image.flatten(on_progress=_progress(checkpoint))

    def remove(self, name: str, number: str, *, snapshots: bool, checkpoint: Checkpoint) -> None:
        """Remove an image, by way of the trash: so its name is gone at once and as a whole.

        :param number: its id; "" for an image of the old format.
        :param snapshots: also its snapshots.
        :raise HasClones, HasSnapshots, ImageInUse: that is in the way; nothing was removed.
        :raise rbd.ImageNotFound: it has gone; another one of its name stays.
        """
        if not number:
            self._images.remove(self._ioctx, name, on_progress=_progress(checkpoint))
            return
        state = self._state(name, number)
        self.require_unused(name, number)  # the trash takes also what is in use
        if state.snapshots:
            self._remove_snapshots(name, number, all_of_them=snapshots)
        try:
            self._trash.move(name, number)
        except self._rbd.ImageBusy as err:
            raise ImageInUse(", ".join(self.watchers(name, number)) or str(err)) from err
        facts = state.facts
        if facts.used is not None and facts.used >> facts.order <= _FEW:
            self._trash.remove_later(number)
        else:
            self._trash.remove(number, _progress(checkpoint))

    def _remove_snapshots(self, name: str, number: str, *, all_of_them: bool) -> None:
        with self.opened(name, number) as image:
            taken = list(image.list_snaps())
            self._require_no_clones(image)
            kept = [
                found["name"]
                for found in taken
                if found["namespace"] == _USER_SNAPSHOT and not found["name"].startswith(AUTOMATIC)
            ]
            if kept and not all_of_them:
                raise HasSnapshots(", ".join(kept))
            for found in taken:
                if found["namespace"] == _USER_SNAPSHOT:
                    self._remove_snapshot(image, found["name"])

    def spare_snapshots(self, name: str, number: str) -> list[str]:
        """Remove the automatic snapshots whose clones have gone; return the others' names."""
        left = []
        with self.opened(name, number) as image:
            with suppress(HasClones):
                self._require_no_clones(image)
            for found in list(image.list_snaps()):
                try:
                    if found["name"].startswith(AUTOMATIC):
                        self._remove_snapshot(image, found["name"])
                        continue
                except (HasClones, self._rbd.ImageBusy):
                    pass
                left.append(found["name"])
        return left

    def _remove_snapshot(self, image: Any, snapshot: str) -> None:
        with suppress(self._rbd.ImageNotFound):  # others delete the same image
            try:
                if image.is_protected_snap(snapshot):
                    with suppress(self._rbd.InvalidArgument):  # not protected any more
                        image.unprotect_snap(snapshot)
                image.remove_snap(snapshot)
            except self._rbd.ImageBusy:
                self._require_no_clones(image)  # one has come meanwhile
                raise

    def _require_no_clones(self, image: Any) -> None:
        """Raise if there are clones; those that were deleted and are only to be removed, are now.

        :raise HasClones: naming them.
        """
        here = self._connection.pool, self._connection.namespace
        users = []
        for child in list(image.list_children2()):
            near = (child["pool"], child["pool_namespace"]) == here
            if not (child["trash"] and near and self._trash.remove_deleted(child["id"])):
                users.append(f"{child['pool']}/{child['image']}")
        if users:
            raise HasClones(", ".join(sorted(users)))

    def watchers(self, name: str, number: str = "") -> list[str]:
        """Return the addresses of other clients that have an image open for writing.

        :param number: its id, by which it is found in the trash too.
        """
        which = {"image_id": number} if number else {"name": name}
        with self._rbd.Image(self._ioctx, read_only=True, **which) as image:
            own = self._connection.own
            return sorted({found["addr"] for found in image.watchers_list() if found["id"] != own})

    def require_unused(self, name: str, number: str = "") -> None:
        """Raise if another client has an image open for writing.

        :raise ImageInUse: naming it.
        """
        if number and not self._connection.is_watched(f"rbd_header.{number}"):
            return  # that is asked much quicker than who it is
        if found := self.watchers(name, number):
            raise ImageInUse(", ".join(found))


def _progress(checkpoint: Checkpoint) -> Callable[[int, int], int]:
    """Return what librbd tells of its progress; it goes on whatever that raises."""

    def tell(done: int, total: int) -> int:
        with suppress(Exception):
            checkpoint(done, total)
        return 0

    return tell
