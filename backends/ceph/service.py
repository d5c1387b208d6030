"""What the process with librbd is asked: each method ``do_X`` answers the request X.

Requests and replies are what JSON can say; see `storaged.isolatescript`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from storaged.backends.ceph.changes import Changes
from storaged.backends.ceph.connection import Connection
from storaged.backends.ceph.data import Data
from storaged.backends.ceph.headers import Facts, Headers
from storaged.backends.ceph.trash import Trash

#: How long the trash may take to be emptied at the end, in seconds.
_EMPTYING = 10.0


class Service:
    """One connection to one pool of a cluster.

    :param hear: is told "changed" when another client has changed something.
    """

    def __init__(self, hear: Callable[[str, Any], None]) -> None:
        self._hear = hear
        self._connection: Connection
        self._headers: Headers
        self._trash: Trash
        self._changes: Changes
        self._data: Data
        #: images that are being filled, and go with us
        self._unfinished: set[str] = set()

    def close(self) -> None:
        """Leave nothing half made, and nothing open, which others would take to be in use."""
        with suppress(AttributeError):  # it may have ended before it was connected
            self._data.close_all()
        for name in tuple(self._unfinished):
            with suppress(Exception):
                self._changes.discard(name)
        with suppress(AttributeError):
            self._connection.close()
            self._trash.close(_EMPTYING)

    # The pool

    def do_connect(
        self,
        _task: Any,
        hosts: list[list[Any]],
        user: str | None,
        key: str | None,
        options: list[list[str]],
        pool: str,
        namespace: str,
        dead: str | None,
    ) -> list[Any]:
        """Connect; return what tells the pool from all others, and our address.

        :param dead: the address of a client that has died, and may still seem to have images open.
        """
        connection = Connection(
            [(name, port) for name, port in hosts],
            user,
            key,
            [(name, value) for name, value in options],
            pool,
            namespace,
            self._hear,
        )
        self._connection = connection
        self._headers = Headers(connection)
        self._trash = Trash(connection, self._headers)
        self._changes = Changes(connection, self._headers, self._trash)
        self._data = Data(connection, self._changes)
        if dead is not None:
            connection.shut_out(dead)
        return [connection.identity(), connection.address]

    def do_check(self, _task: Any) -> None:
        """Raise if the namespace is not there."""
        self._connection.require_namespace()

    def do_version(self, _task: Any, listen: bool) -> int:
        """Return the version of the list of images, and go on listening to those who change it."""
        if listen:  # first: what is changed after the version was read must be heard of
            self._connection.listen()
        return self._connection.version()

    def do_names(self, _task: Any) -> list[Any]:
        """Return version, and names and ids of all images."""
        return [self._connection.version(), self._headers.names()]

    def do_space(self, _task: Any) -> list[int]:
        """Return capacity, use and free space in bytes."""
        return self._connection.space()

    def do_facts(
        self, _task: Any, ids: list[str], patience: float, used: bool
    ) -> dict[str, list[int | None] | None]:
        """Return size, order of the objects' size, and use of images by id; see `Headers`."""
        found = self._headers.all_facts(ids, patience, used=used)
        return {number: _told(facts) for number, facts in found.items()}

    def do_look(self, _task: Any, name: str, used: bool) -> list[Any] | None:
        """Return id, size, order and use of one image, None if there is none of that name."""
        number = self._headers.id_of(name)
        if number is not None:
            facts = self._headers.facts(number, used=used)
            return None if facts is None else [number, facts.size, facts.order, facts.used]
        return self.do_look_old(_task, name) if self._headers.is_old(name) else None

    def do_look_old(self, _task: Any, name: str) -> list[Any] | None:
        """As `do_look`, by opening the image: one of the old format has no id."""
        with (
            suppress(self._connection.rbd.ImageNotFound),
            self._changes.opened(name, writable=False) as image,
        ):
            facts = image.stat()
            return ["", facts["size"], facts["order"], None]
        return None

    def do_sweep(self, _task: Any) -> int:
        """Remove what is left in the trash of deletes; return how many images that were."""
        return self._trash.sweep()

    def do_spare_snapshots(self, _task: Any, name: str, id: str) -> list[str]:
        """Remove the snapshots that nobody needs any more; return the others' names."""
        if id and not self._headers.snapshots(id):
            return []
        return self._changes.spare_snapshots(name, id)

    # Images

    def do_create(
        self, task: Any, name: str, size: int, used: bool = False, unfinished: bool = False
    ) -> list[Any] | None:
        """Make an empty image and return what `do_look` does.

        :param unfinished: remove it at the end, unless it is renamed until then.
        """
        if unfinished:
            self._unfinished.add(name)
        try:
            self._changes.create(name, size)
        except BaseException:
            self._unfinished.discard(name)
            raise
        if unfinished:
            return None
        self._connection.tell(name)
        return self.do_look(task, name, used)

    def do_finish(self, _task: Any, name: str, new: str) -> None:
        """Give an image its name that was made as unfinished."""
        self._changes.rename(name, new)
        self._unfinished.discard(name)
        self._connection.tell(new)

    def do_discard_unfinished(self, _task: Any, name: str) -> None:
        """Remove an image that was made as unfinished."""
        self._changes.discard(name)
        self._unfinished.discard(name)

    def do_clone(
        self, task: Any, parent: str, parent_id: str, name: str, size: int, part: str, used: bool
    ) -> list[Any] | None:
        """Make a copy-on-write clone and return what `do_look` does.

        :param part: what it is called until it is as large as it should be.
        """
        self._unfinished.add(part)
        try:
            self._changes.clone(parent, parent_id, name, size, part)
        finally:
            self._unfinished.discard(part)
        self._connection.tell(name)
        return self.do_look(task, name, used)

    def do_remove(self, task: Any, name: str, id: str, snapshots: bool) -> None:
        """Remove an image."""
        self._changes.remove(name, id, snapshots=snapshots, checkpoint=task.checkpoint)
        self._connection.tell(name)

    def do_resize(self, _task: Any, name: str, id: str, size: int, alone: bool) -> None:
        """Set the size of an image.

        :param alone: not if another client has it open for writing.
        """
        if alone:
            self._changes.require_unused(name, id)
        self._changes.resize(name, id, size)
        self._connection.tell(name)

    def do_flatten(self, task: Any, name: str, id: str) -> None:
        """Copy what an image has of its parent into it."""
        self._changes.flatten(name, id, task.checkpoint)

    # Bytes

    def do_open(self, task: Any, name: str, id: str, writable: bool, alone: bool) -> list[int]:
        """Open an image; see `Data.open`."""
        found = self._data.open(name, id, task.fd, writable=writable, alone=alone)
        try:
            task.checkpoint()
        except BaseException:  # nobody waits for it any more
            self._data.close(found[0])
            raise
        return found

    def do_close(self, _task: Any, handle: int) -> None:
        """Close one."""
        self._data.close(handle)

    def do_read(self, _task: Any, handle: int, offset: int, length: int, place: int) -> int:
        """Read into the memory."""
        return self._data.read(handle, offset, length, place)

    def do_write(self, _task: Any, handle: int, offset: int, length: int, place: int) -> None:
        """Write from the memory."""
        self._data.write(handle, offset, length, place)

    def do_zero(self, _task: Any, handle: int, offset: int, length: int, thick: bool) -> None:
        """Make a stretch read as zeros."""
        self._data.zero(handle, offset, length, thick=thick)

    def do_extents(self, _task: Any, handle: int, offset: int, length: int) -> list[list[int]]:
        """Return where data are."""
        return self._data.extents(handle, offset, length)

    def do_truncate(self, _task: Any, handle: int, size: int) -> None:
        """Set the size of an open image."""
        self._data.resize(handle, size)

    def do_size(self, _task: Any, handle: int) -> int:
        """Return the size of an open image."""
        return self._data.size(handle)

    def do_flush(self, _task: Any, handle: int) -> None:
        """Return when all is safe that was written."""
        self._data.flush(handle)


def _told(facts: Facts | None) -> list[int | None] | None:
    return None if facts is None else [facts.size, facts.order, facts.used]
