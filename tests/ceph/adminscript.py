"""Work on a Ceph cluster for tests: requests come in by lines of JSON, answers go out so.

It runs under the Python that has Ceph's bindings, which the tests' own has not; it therefore
imports nothing of ours. A request names an object, a method of Ceph's binding and its arguments::

    {"on": ["image", "pool", "namespace", "name", null, false], "method": "resize", "args": [4096]}

Objects are the cluster, a pool (``rados.Ioctx``), ``rbd.RBD`` for a pool (which is its methods'
first argument), an image, opened for the call, and an image that is held open. Text that is not
UTF-8 has surrogates for its bytes, as `os.fsdecode` gives them; bytes are ``{"bytes": BASE64}``.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import rados  # type: ignore[import-not-found]
import rbd  # type: ignore[import-not-found]


class Worker:
    """A connection to a cluster and the images that are held open."""

    def __init__(self, conf: str, user: str, options: dict[str, str]) -> None:
        self._cluster = rados.Rados(conffile=conf, name=user, conf=options)
        self._held: dict[int, tuple[Any, Any]] = {}
        self._handles = itertools.count(1)

    def answer(self, request: dict[str, Any]) -> Any:
        """Do what a request says; return what came of it, ready for JSON."""
        kind, *address = request["on"]
        args = [self._decoded(value) for value in request["args"]]
        named = {key: self._decoded(value) for key, value in request["kwargs"].items()}
        method = request["method"]
        if kind == "image" and method == "hold":
            return self._hold(*address)
        if kind == "held" and method == "close":
            return self._let_go(*address)
        with self._object(kind, *address) as (thing, first):
            own = OWN.get((kind, method))
            if own is not None:
                return encoded(own(thing, *first, *args, **named))
            return encoded(getattr(thing, method)(*first, *args, **named))

    @contextmanager
    def _object(self, kind: str, *address: Any) -> Iterator[tuple[Any, tuple[Any, ...]]]:
        """Find what a method is called on, and the argument that goes before the given ones."""
        if kind == "cluster":
            yield self._cluster, ()
        elif kind == "held":
            yield self._held[address[0]][1], ()
        elif kind == "image":
            pool, namespace, name, snapshot, read_only = address
            with (
                self._pool(pool, namespace) as ioctx,
                rbd.Image(ioctx, raw(name), snapshot=snapshot, read_only=read_only) as image,
            ):
                yield image, ()
        else:
            with self._pool(*address) as ioctx:
                yield (ioctx, ()) if kind == "pool" else (rbd.RBD(), (ioctx,))

    def _pool(self, pool: str, namespace: str) -> Any:
        ioctx = self._cluster.open_ioctx(pool)
        ioctx.set_namespace(namespace)
        return ioctx

    def _hold(
        self, pool: str, namespace: str, name: str, snapshot: str | None, read_only: bool
    ) -> int:
        ioctx = self._pool(pool, namespace)
        try:
            image = rbd.Image(ioctx, raw(name), snapshot=snapshot, read_only=read_only)
        except BaseException:
            ioctx.close()
            raise
        handle = next(self._handles)
        self._held[handle] = (ioctx, image)
        return handle

    def _let_go(self, handle: int) -> None:
        ioctx, image = self._held.pop(handle)
        image.close()
        ioctx.close()

    def _decoded(self, value: Any) -> Any:
        if isinstance(value, dict) and "bytes" in value:
            return base64.b64decode(value["bytes"])
        if isinstance(value, dict) and "pool" in value:
            return self._pool(*value["pool"])
        return raw(value) if isinstance(value, str) else value


def raw(text: str) -> str | bytes:
    """Return a text as Ceph's bindings take it: bytes only if it is not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return os.fsencode(text)
    return text


def encoded(value: Any) -> Any:
    """Return a result as JSON can carry it."""
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict):
        return {str(key): encoded(item) for key, item in value.items()}
    if isinstance(value, rados.Object):
        return value.key
    if isinstance(value, Iterable):
        return [encoded(item) for item in value]
    return str(value)


def image_names(binding: Any, ioctx: Any) -> list[str]:
    """List images; also those whose names are not UTF-8, at which the binding fails."""
    try:
        return list(binding.list(ioctx))
    except UnicodeDecodeError:
        pass
    request = struct.pack("<IQ", 0, 1 << 20)  # from the start, so many at most
    _, answer = ioctx.execute("rbd_directory", "rbd", "dir_list", request, 1 << 24)
    old = ioctx.read("rbd_directory", 1 << 24)  # those of format 1, after a header
    return names_of(answer) + names_of(old[4:])


def names_of(mapping: bytes) -> list[str]:
    """Return the keys of a map of strings, as Ceph encodes it."""
    if not mapping:
        return []
    (count,) = struct.unpack_from("<I", mapping)
    fields, offset = [], 4
    for _ in range(2 * count):
        (length,) = struct.unpack_from("<I", mapping, offset)
        fields.append(os.fsdecode(mapping[offset + 4 : offset + 4 + length]))
        offset += 4 + length
    return fields[::2]


def extents(image: Any, *args: Any, **named: Any) -> list[tuple[int, int, bool]]:
    """Return the changed extents: offset, length, and whether there are data."""
    found: list[tuple[int, int, bool]] = []
    if image.size() == 0:
        return found  # librbd 16.2 aborts
    image.diff_iterate(0, image.size(), None, lambda *extent: found.append(extent), *args, **named)
    return found


def parent(image: Any) -> tuple[str, str, str] | None:
    """Return the pool, image and snapshot that an image is a clone of."""
    try:
        found: tuple[str, str, str] = image.parent_info()
    except rbd.ImageNotFound:
        return None
    return found


def omap(ioctx: Any, name: str) -> list[tuple[str, bytes]]:
    """Return the key-value pairs of an object."""
    with rados.ReadOpCtx() as operation:
        pairs, _ = ioctx.get_omap_vals(operation, "", "", 1 << 16)
        ioctx.operate_read_op(operation, name)
        return list(pairs)


def set_omap(ioctx: Any, name: str, key: str, value: bytes) -> None:
    """Set one key of an object."""
    with rados.WriteOpCtx() as operation:
        ioctx.set_omap(operation, (key,), (value,))
        ioctx.operate_write_op(operation, name)


#: What the bindings do not do in one call, or not as JSON can say.
OWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("rbd", "image_names"): image_names,
    ("image", "extents"): extents,
    ("held", "extents"): extents,
    ("image", "parent"): parent,
    ("pool", "omap"): omap,
    ("pool", "set_omap"): set_omap,
}


def main(conf: str, user: str, options: str) -> None:
    """Answer requests until there are no more."""
    # librados writes to standard output and error as it likes; answers keep a descriptor apart
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker(conf, user, json.loads(options))
    for line in sys.stdin:
        try:
            answer = {"result": worker.answer(json.loads(line))}
        except Exception as err:
            number = getattr(err, "errno", None) or 0
            answer = {"error": [type(err).__name__, number, str(err)]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    os._exit(0)  # what is open ends with the process, whatever state the cluster is in


if __name__ == "__main__":
    main(*sys.argv[1:])
