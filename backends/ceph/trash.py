"""Images that were deleted: their names are gone at once, their objects a moment later.

An image goes to the trash of its pool first, which takes all of its name in one step. What is noted
with it tells another engine, should this process die, that it can be removed for good.
"""

from __future__ import annotations

import calendar
import errno
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from storaged.backends.ceph.connection import Connection
from storaged.backends.ceph.headers import Headers

#: The object that lists what is in the trash.
_TRASH = "rbd_trash"
#: What is noted with an image, and how exact its time is, in seconds.
_NOTE, _EXACT = "storaged.deleted", 60
#: What waits is removed when no more has come for so long, and at the latest then, in seconds.
_QUIET, _LATEST = 0.2, 2.0
#: How often to look whether another host has deleted an image, and when that one counts as dead.
_GLANCE, _DEAD = 0.02, 15.0
#: After so many seconds what could not be removed is tried again.
_AGAIN = 3.0
#: Who has an image open for so long, in seconds, has not just looked at it.
_FOREVER = 60.0
#: What snapshots are called that clones need; one without clones goes with its image.
AUTOMATIC = "storaged-"

Progress = Callable[[int, int], int]


class Trash:
    """The trash of one pool."""

    def __init__(self, connection: Connection, headers: Headers) -> None:
        self._connection = connection
        self._rados = connection.rados
        self._rbd = connection.rbd
        self._ioctx = connection.ioctx
        self._images = connection.images
        self._headers = headers
        #: ids of what is to be removed, with the time since when they wait
        self._waiting: deque[tuple[float, str]] = deque()
        #: those that something was in the way of
        self._stuck: deque[tuple[float, str]] = deque()
        #: since when that is so
        self._failed: dict[str, float] = {}
        self._changed = threading.Condition()
        self._working = False
        self._closing = False

    def move(self, name: str, number: str) -> None:
        """Move an image to the trash.

        :raise rbd.ImageBusy: somebody has it open; it stays.
        :raise rbd.ImageNotFound: it has gone; another one of its name stays.
        """
        self._claim(name, number)
        began = time.time()
        try:
            self._images.trash_move(self._ioctx, name, 0)
        except BaseException:
            with suppress(self._rados.Error):
                self._headers.remove_metadata(number, _NOTE)
            raise
        try:
            self._images.trash_get(self._ioctx, number)
        except self._rbd.ImageNotFound:
            self._take_back(name, began)
            raise

    def _claim(self, name: str, number: str) -> None:
        """Take it upon us to delete an image: librbd's moves to the trash must not be two at once.

        Who comes second waits for what becomes of the first one's try; after a while the first one
        counts as dead.

        :raise rbd.ImageNotFound: the image has gone.
        """
        old, seen, since = "", "", 0.0
        while not self._claimed(name, number, old):
            noted, now = self._headers.metadata(number, _NOTE) or "", time.monotonic()
            if noted != seen:
                seen, since = noted, now
            if _began(number, noted) is None or now - since > _DEAD:
                old = noted
                continue
            if self._headers.id_of(name) != number:
                raise self._gone(name)
            old = ""
            time.sleep(_GLANCE)

    def _claimed(self, name: str, number: str, old: str) -> bool:
        try:
            return self._headers.claim(number, _NOTE, f"{number} {time.time():.0f}", old)
        except self._rados.ObjectNotFound as err:
            raise self._gone(name) from err

    def _gone(self, name: str) -> Exception:
        gone: Exception = self._rbd.ImageNotFound(f"{name} has gone", errno=errno.ENOENT)
        return gone

    def put_back(self, name: str, number: str) -> bool:
        """Give an image that was moved there its name back.

        :returns: False if another one has that by now; it stays in the trash.
        """
        try:
            self._images.trash_restore(self._ioctx, number, name)
        except self._rbd.ImageExists:
            return False
        self.keep(number)
        return True

    def keep(self, number: str) -> None:
        """Let nobody remove an image any more that was moved there."""
        self._headers.remove_metadata(number, _NOTE)

    def _take_back(self, name: str, began: float) -> None:
        """Take back what was moved in the place of an image that others have replaced by it."""
        for found in list(self._images.trash_list(self._ioctx)):
            late = _time(found) >= began - 1
            if found["name"] == name and late and self._began(found["id"]) is None:
                with suppress(self._rbd.ImageExists, self._rbd.ImageNotFound):
                    self._images.trash_restore(self._ioctx, found["id"], name)

    def remove(self, number: str, progress: Progress | None = None) -> None:
        """Remove what was moved there; what cannot be removed now is tried again later.

        What somebody has opened at the last moment, and has open still, is never removed: it gets
        its name back, or stays there for good if that is taken and he does not let go of it.
        """
        try:
            self._remove(number, progress)
            self._failed.pop(number, None)
        except self._rbd.Error as err:
            since = self._failed.setdefault(number, time.monotonic())
            busy = isinstance(err, self._rbd.ImageBusy) and since < time.monotonic() - _AGAIN
            if busy and self._connection.is_watched(f"rbd_header.{number}"):
                with suppress(self._rbd.Error):
                    if self.put_back(self._images.trash_get(self._ioctx, number)["name"], number):
                        return
                if since < time.monotonic() - _FOREVER:
                    self.keep(number)
                    return
            self._put(self._stuck, number)

    def remove_deleted(self, number: str) -> bool:
        """Remove an image of the trash at once, if it was moved there to be removed."""
        if self._began(number) is None:
            return False
        try:
            self._remove(number, None)
        except self._rbd.Error:
            return False
        return True

    def remove_later(self, number: str) -> None:
        """Remove what was moved there soon, when this process has less to do."""
        self._put(self._waiting, number)

    def _put(self, queue: deque[tuple[float, str]], number: str) -> None:
        with self._changed:
            queue.append((time.monotonic(), number))
            self._changed.notify_all()
            if self._working or self._closing:
                return
            self._working = True
        threading.Thread(target=self._work, name="trash", daemon=True).start()

    def _began(self, number: str) -> int | None:
        """Return when somebody began to delete an image, None if nobody has."""
        return _began(number, self._headers.metadata(number, _NOTE) or "")

    def sweep(self) -> int:
        """Remove what those have left who were killed; return how many images that were.

        See to it that there is a trash, too: a cluster that is full makes none, and without it
        nothing can be removed.
        """
        with suppress(self._rados.Error), self._rados.WriteOpCtx() as change:
            change.new(0)
            self._ioctx.operate_write_op(change, _TRASH)
        count = 0
        for found in list(self._images.trash_list(self._ioctx)):
            began = self._began(found["id"])
            if began is None:
                continue
            # whoever moves an image there later, by himself, may want it back
            if abs(_time(found) - began) <= _EXACT:
                with suppress(self._rbd.Error):
                    self._remove(found["id"], None)
                    count += 1
        return count

    def close(self, patience: float) -> None:
        """Remove what still waits, for so many seconds at most."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._working, patience)

    def _work(self) -> None:
        while (number := self._next()) is not None:
            with suppress(self._rados.Error):  # the next start sweeps
                self.remove(number)

    def _next(self) -> str | None:
        """Return what is to be removed next, when it is time; None if nothing is left."""
        with self._changed:
            while not self._closing:
                queue, due = self._first()
                left = due - time.monotonic()
                if left <= 0:
                    return queue.popleft()[1]
                if math.isinf(left):
                    break
                self._changed.wait(left)
            if self._waiting:
                return self._waiting.popleft()[1]
            self._working = False
            self._changed.notify_all()
            return None

    def _first(self) -> tuple[deque[tuple[float, str]], float]:
        """Return the queue that is due first, and when that is."""
        soon = again = math.inf
        if self._waiting:
            soon = min(self._waiting[-1][0] + _QUIET, self._waiting[0][0] + _LATEST)
        if self._stuck:
            again = self._stuck[0][0] + _AGAIN
        return (self._waiting, soon) if soon <= again else (self._stuck, again)

    def _remove(self, number: str, progress: Progress | None) -> None:
        for last in (False, True):
            try:
                self._images.trash_remove(self._ioctx, number, force=True, on_progress=progress)
            except self._rbd.ImageNotFound:
                return  # somebody else was quicker
            except self._rbd.ImageHasSnapshots:
                if last:
                    raise
                self._drop_snapshots(number)

    def _drop_snapshots(self, number: str) -> None:
        """Remove the snapshots that were taken for clones that have not come about."""
        with self._rbd.Image(self._ioctx, image_id=number) as image:
            for found in list(image.list_snaps()):
                if found["name"].startswith(AUTOMATIC):
                    with suppress(self._rbd.Error):
                        if image.is_protected_snap(found["name"]):
                            image.unprotect_snap(found["name"])
                        image.remove_snap(found["name"])


def _began(number: str, note: str) -> int | None:
    """Return the time in a note; None if that is a parent's: clones inherit what is noted."""
    words = note.split()
    if len(words) != 2 or words[0] != number or not words[1].isdigit():
        return None
    return int(words[1])


def _time(found: Any) -> int:
    """Return when an image was moved, in seconds since the epoch; the binding tells it in UTC."""
    return calendar.timegm(found["deletion_time"].timetuple())
