"""What images are, asked of their headers directly: many at once, none opened.

To open an image takes librbd several round trips and a watch; its size alone takes one. What is
asked here is what the kernel's client asks too.

Source: Ceph's RBD image format 2 and the methods of its object class ``rbd``.
"""

from __future__ import annotations

import errno
import itertools
import os
import struct
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from storaged.backends.ceph.connection import DIRECTORY, Connection
from storaged.backends.ceph.objectmap import has_changed, states_of, used_of

#: The image itself, and not one of its snapshots.
HEAD = 2**64 - 2
FAST_DIFF = 1 << 4
#: Flags of an image whose map of objects, or what is told by it, is not to be trusted.
_STALE = 1 << 0 | 1 << 1
_PROTECTED = 2
#: Reads a map of objects, as the method object_map_load does. Of what a method returns, librados
#: writes all into memory that was thought to be enough; so nothing is asked together with others
#: of which nobody knows how long it is.
_READ = "read"
#: Lists the ids of an image's snapshots.
_SNAPSHOTS = "get_snapcontext"
#: How librados makes an object: it must not be there.
_EXCLUSIVE = 1
#: How librados compares a value of an object: it must be equal.
_EQUAL = 1
#: What is noted with an image: id and name of a snapshot, and the version of the map since then.
_CLONED = "storaged.cloned"
#: Longer than any time-out of the client's own, in seconds.
_LONG = 3600.0
#: So many questions are under way at once.
_MANY = 128
#: Bytes of a map of objects (16 TiB), and of a list of names or snapshots, at most.
_LARGEST = 1 << 20
_ROOM = 1 << 13

_Call = tuple[str, str, bytes]
if TYPE_CHECKING:
    #: What an object's method has returned, the number of an error (negative), None: nothing yet.
    _Answer = bytes | int | None  # not for Python 3.9, which this runs under as well
#: So many names are asked for at once.
_PAGE = 1024
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_SIZE = struct.Struct("<BQ")


@dataclass(frozen=True)
class Facts:
    """What a header says. *used* is the bytes of all objects there are, None: not asked."""

    id: str
    size: int
    order: int
    used: int | None = None


@dataclass(frozen=True)
class State:
    """What an image is before it is changed.

    :param snapshots: their ids, the newest first.
    :param objects: the states of its objects, None where they are not known for sure.
    :param version: of the map of objects.
    """

    facts: Facts
    features: int
    snapshots: list[int]
    objects: bytes | None
    version: int


class Headers:
    """The headers of one pool's images."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._ioctx = connection.ioctx
        self._images = connection.images
        self._rados = connection.rados

    def names(self) -> dict[str, str]:
        """Return the ids of all images by name; an image of the old format has none ("").

        A name that is no UTF-8 has lone surrogates in it.
        """
        names: dict[str, str] = {}
        try:
            for found in self._images.list2(self._ioctx):
                # after those that are there come some that are just being removed
                names.setdefault(found["name"], found["id"])
        except UnicodeDecodeError:
            return self._page_by_page()
        return names

    def _page_by_page(self) -> dict[str, str]:
        names: dict[str, str] = {}
        last = b""
        while True:
            _, reply = self._ioctx.execute(
                DIRECTORY, "rbd", "dir_list", _text(last) + _U64.pack(_PAGE), _LARGEST
            )
            (count,) = _U32.unpack_from(reply)
            texts = _texts(reply[4:])
            for place in range(0, len(texts) - 1, 2):
                last = texts[place]
                names[last.decode(errors="surrogateescape")] = texts[place + 1].decode()
            if count < _PAGE:
                return names

    def id_of(self, name: str) -> str | None:
        """Return the id of an image, None if there is none of that name in the new format."""
        try:
            _, reply = self._ioctx.execute(f"rbd_id.{name}", "rbd", "get_id", b"")
        except self._rados.ObjectNotFound:
            return None
        return _texts(reply)[0].decode()

    def facts(self, number: str, *, used: bool = False) -> Facts | None:
        """Return what one header says, None if it is not there."""
        return self.all_facts([number], _LONG, used=used).get(number)

    def all_facts(
        self, numbers: Iterable[str], patience: float, *, used: bool = False
    ) -> dict[str, Facts | None]:
        """Return what many headers say, by id; None for one that is not there.

        Those that have not answered when the last answer is *patience* seconds ago are missing.

        :param used: ask for what is used too.
        """
        asked = list(numbers)
        methods = ["get_size", "get_features", "get_flags"] if used else ["get_size"]
        calls = [(f"rbd_header.{n}", m, _arguments(m)) for n in asked for m in methods]
        if used:
            calls += [(f"rbd_object_map.{n}", _READ, b"") for n in asked]
        replies = self._all(calls, patience)
        found: dict[str, Facts | None] = {}
        for place, number in enumerate(asked):
            said = replies[place * len(methods) : (place + 1) * len(methods)]
            state = replies[len(asked) * len(methods) + place] if used else None
            if any(reply is None for reply in said):
                continue
            if any(isinstance(reply, int) for reply in said):
                failed = next(reply for reply in said if isinstance(reply, int))
                if failed == -2:
                    found[number] = None
                continue
            found[number] = _facts(number, said, state)  # type: ignore[arg-type]
        return found

    def rename(self, number: str, name: str, new: str) -> None:
        """Give an image another name, in the order in which new images get theirs.

        :raise rados.ObjectExists: an image of that name is there, or is being made.
        """
        with self._rados.WriteOpCtx() as change:
            change.new(_EXCLUSIVE)
            change.execute("rbd", "set_id", _text(number.encode()))
            self._ioctx.operate_write_op(change, f"rbd_id.{new}")
        names = b"".join(_text(os.fsencode(text)) for text in (name, new, number))
        try:
            self._ioctx.execute(DIRECTORY, "rbd", "dir_rename_image", names)
        except BaseException:
            self._ioctx.remove_object(f"rbd_id.{new}")
            raise
        self._ioctx.remove_object(f"rbd_id.{name}")

    def is_old(self, name: str) -> bool:
        """Tell whether there is an image of that name in the old format."""
        try:
            self._ioctx.stat(f"{name}.rbd")
        except self._rados.ObjectNotFound:
            return False
        return True

    def snapshots(self, number: str) -> list[int]:
        """Return the ids of an image's snapshots, the newest first."""
        header = f"rbd_header.{number}"
        _, reply = self._ioctx.execute(header, "rbd", _SNAPSHOTS, b"", _LARGEST)
        return _ids(reply)

    def state(self, number: str) -> State | None:
        """Return what an image is at this moment, None if it is not there.

        :raise OSError: it cannot be read.
        """
        header = f"rbd_header.{number}"
        methods = ("get_size", "get_features", "get_flags", _SNAPSHOTS)
        answers = self._begin([(header, each, _arguments(each)) for each in methods], _LONG)
        objects, version = None, 0
        with suppress(self._rados.Error):
            objects, version = self._connection.read_versioned(f"rbd_object_map.{number}", _LARGEST)
        found: list[bytes] = []
        for reply in answers(_LONG):
            if reply == -errno.ENOENT:
                return None
            if not isinstance(reply, bytes):
                raise _failure(reply)
            found.append(reply)
        features, flags = _U64.unpack_from(found[1])[0], _U64.unpack_from(found[2])[0]
        if not features & FAST_DIFF or flags & _STALE:
            objects = None
        facts = _facts(number, found, objects)
        states = states_of(objects) if objects is not None else None
        return State(facts, features, _ids(found[3]), states, version)

    def snapshot_to_clone(self, state: State) -> str | None:
        """Return the name of the snapshot that was noted, if it is still what the image is.

        The map of objects has another version after each first write to an object, after each
        discard, snapshot and rollback, and when another client begins to write. What it says of
        changes is not enough: after a rollback it tells of none.
        """
        if not state.snapshots or state.objects is None:
            return None
        number = state.facts.id
        words = (self.metadata(number, _CLONED) or "").split(" ", 2)
        if len(words) < 3 or not (words[0].isdigit() and words[1] == str(state.version)):
            return None
        snapshot = int(words[0])
        if snapshot not in state.snapshots:
            return None
        methods = ("get_size", "get_protection_status")
        calls = [(f"rbd_header.{number}", each, _U64.pack(snapshot)) for each in methods]
        size, status = self._all(calls, _LONG)
        if not (isinstance(size, bytes) and isinstance(status, bytes)):
            return None
        if _SIZE.unpack_from(size)[1] != state.facts.size or status[0] != _PROTECTED:
            return None
        return words[2]

    def note_snapshot(self, number: str, name: str) -> None:
        """Note that the newest snapshot is what the image is, unless it is not any more.

        It is for `snapshot_to_clone`, which need not find anything.
        """
        state = self.state(number)
        if state is None or not state.snapshots or state.objects is None:
            return
        if not has_changed(state.objects):
            self.set_metadata(number, _CLONED, f"{state.snapshots[0]} {state.version} {name}")

    def set_metadata(self, number: str, key: str, value: str) -> None:
        """Note something with an image, as ``rbd image-meta set`` does.

        :raise rados.ObjectNotFound: it has gone.
        """
        with self._rados.WriteOpCtx() as change:
            # the second alone would make a header where there is none
            change.execute("rbd", "get_size", _arguments("get_size"))
            change.execute("rbd", "metadata_set", _pair(key, value))
            self._ioctx.operate_write_op(change, f"rbd_header.{number}")

    def claim(self, number: str, key: str, value: str, old: str) -> bool:
        """Note something with an image if what is noted under *key* is *old* ("": nothing).

        :returns: whether it was; of many who try it at once, one succeeds.
        :raise rados.ObjectNotFound: the image has gone.
        """
        with self._rados.WriteOpCtx() as change:
            change.execute("rbd", "get_size", _arguments("get_size"))
            change.omap_cmp(f"metadata_{key}", old, _EQUAL)
            change.execute("rbd", "metadata_set", _pair(key, value))
            try:
                self._ioctx.operate_write_op(change, f"rbd_header.{number}")
            except self._rados.Error as err:
                if abs(err.errno or 0) != errno.ECANCELED:
                    raise
                return False
        return True

    def remove_metadata(self, number: str, key: str) -> None:
        """Remove a note; one that is not there is no error."""
        with suppress(self._rados.ObjectNotFound):
            self._ioctx.execute(
                f"rbd_header.{number}", "rbd", "metadata_remove", _text(key.encode())
            )

    def metadata(self, number: str, key: str) -> str | None:
        """Return what was noted with an image, None if nothing was."""
        with suppress(self._rados.ObjectNotFound):
            given = _text(key.encode())
            _, reply = self._ioctx.execute(f"rbd_header.{number}", "rbd", "metadata_get", given)
            return _texts(reply)[0].decode()
        return None

    def _all(self, calls: Sequence[_Call], patience: float) -> list[_Answer]:
        """Ask many things at once; see `_begin`."""
        return self._begin(calls, patience)(patience)

    def _begin(self, calls: Sequence[_Call], patience: float) -> Callable[[float], list[_Answer]]:
        """Ask many things at once; return what waits for the answers.

        librados puts an answer that is longer than its room behind that: nothing may be asked for
        whose length is not bounded, but by `_READ`, which keeps to it.
        """
        replies: list[_Answer] = [None] * len(calls)
        free = threading.Semaphore(_MANY)
        heard = [time.monotonic()]
        count = itertools.count(1)
        over = threading.Event()

        def answered(place: int) -> Any:
            def take(completion: Any, data: bytes) -> None:
                status = completion.get_return_value()
                replies[place] = data if status >= 0 else status
                heard[0] = time.monotonic()
                free.release()
                if next(count) == len(calls):
                    over.set()

            return take

        def wait(patience: float) -> list[_Answer]:
            while calls and not over.wait(max(heard[0] + patience - time.monotonic(), 0)):
                if time.monotonic() >= heard[0] + patience:
                    break
            return replies

        for place, (name, method, given) in enumerate(calls):
            if not free.acquire(timeout=patience):
                return lambda _: replies
            if method == _READ:
                self._ioctx.aio_read(name, _LARGEST, 0, answered(place))
            else:
                room = _LARGEST if method == _SNAPSHOTS else _ROOM
                self._ioctx.aio_execute(name, "rbd", method, given, room, answered(place))
        return wait


def _arguments(method: str) -> bytes:
    if method == _SNAPSHOTS:
        return b""
    return _U64.pack(HEAD) + (b"\1" if method == "get_features" else b"")


def _ids(reply: bytes) -> list[int]:
    """Return the ids of snapshots, the newest first."""
    (count,) = _U32.unpack_from(reply, 8)
    return [_U64.unpack_from(reply, 12 + 8 * place)[0] for place in range(count)]


def _facts(number: str, said: Sequence[bytes], state: bytes | int | None) -> Facts:
    order, size = _SIZE.unpack_from(said[0])
    if len(said) == 1:
        return Facts(number, size, order)
    features, flags = _U64.unpack_from(said[1])[0], _U64.unpack_from(said[2])[0]
    if size == 0:
        return Facts(number, size, order, 0)
    known = features & FAST_DIFF and not flags & _STALE and isinstance(state, bytes)
    states = states_of(state) if known else None  # type: ignore[arg-type]
    return Facts(number, size, order, None if states is None else used_of(states, size, order))


def _failure(reply: int | None) -> OSError:
    number = errno.ETIMEDOUT if reply is None else -reply
    return OSError(number, os.strerror(number))


def _pair(key: str, value: str) -> bytes:
    """Return a key and its value as they are set."""
    return _U32.pack(1) + _text(key.encode()) + _text(value.encode())


def _text(data: bytes) -> bytes:
    return _U32.pack(len(data)) + data


def _texts(data: bytes) -> list[bytes]:
    """Return the texts that a reply is made of, each after its length."""
    texts, place = [], 0
    while place + 4 <= len(data):
        (length,) = _U32.unpack_from(data, place)
        texts.append(data[place + 4 : place + 4 + length])
        place += 4 + length
    return texts
