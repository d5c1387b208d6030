"""Random sequences of calls, the same from the same seed.

They are drawn from few names and sizes, so that calls meet what earlier ones left: existing names,
stopped pools, vanished volumes. Pools lie below ``$DIR/random``.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Callable
from typing import Any

Operation = list[Any]

POOLS = ("p0", "p1", "p2")
VOLUMES = ("a", "b.qcow2", "c", "ü &<")
SIZES = (0, 1, 512, 4096, 100_000, 1 << 20, 3 << 20, (1 << 20) + 7, 8 << 20, -1)
FORMATS = ("raw", "raw", "raw", "dir")
ODD_NAMES = ("", "nobody", "a/b", "..", ".", "x" * 200, "tab\there")


class Sequence:
    """A generator of operations."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._choices: list[tuple[int, Callable[[], Operation]]] = [
            (5, self._define),
            (2, self._create_pool),
            (20, self._change_pool),
            (2, self._set_autostart),
            (8, self._look_at_pool),
            (6, self._look_at_connection),
            (6, self._look_up),
            (14, self._create_volume),
            (10, self._change_volume),
            (10, self._look_at_volume),
            (5, self._clone),
            (5, self._transfer),
        ]

    def operations(self, count: int) -> list[Operation]:
        """Return *count* operations, after some that make it likely that there is something."""
        start = [["connection.storagePoolDefineXML", _pool_xml(name, name)] for name in POOLS[:2]]
        start += [[f"pool.{method}", "p0"] for method in ("build", "create")]
        weights = [weight for weight, _ in self._choices]
        makers = [maker for _, maker in self._choices]
        drawn = self._random.choices(makers, weights, k=count)
        return start + [maker() for maker in drawn]

    def _pool(self) -> str:
        return self._rarely(ODD_NAMES) or self._random.choice(POOLS)

    def _volume(self) -> str:
        return self._rarely(ODD_NAMES) or self._random.choice(VOLUMES)

    def _rarely(self, values: tuple[Any, ...]) -> Any:
        return self._random.choice(values) if self._random.random() < 0.04 else None

    def _flags(self, *useful: int) -> int:
        return self._rarely((2, 8, 1 << 16)) or self._random.choice((0, 0, *useful))

    def _define(self) -> Operation:
        name, place = self._pool(), self._random.choice((*POOLS, "p0", "elsewhere"))
        return ["connection.storagePoolDefineXML", _pool_xml(name, place), self._flags()]

    def _create_pool(self) -> Operation:
        name = self._pool()
        flags = self._random.choice((0, 1, 1, 1 << 16))
        return ["connection.storagePoolCreateXML", _pool_xml(name, name), flags]

    def _change_pool(self) -> Operation:
        method = self._random.choice(
            ("build", "create", "create", "refresh", "destroy", "delete", "undefine")
        )
        # what overwrites is refused in a directory, by libvirt after it made that
        flags = [self._rarely((1 << 16,)) or 0] if method not in {"destroy", "undefine"} else []
        return [f"pool.{method}", self._pool(), *flags]

    def _set_autostart(self) -> Operation:
        return ["pool.setAutostart", self._pool(), self._random.choice((0, 1))]

    def _look_at_pool(self) -> Operation:
        method = self._random.choice(
            ("isActive", "isPersistent", "autostart", "numOfVolumes", "listVolumes",
             "listAllVolumes", "XMLDesc", "state")
        )  # fmt: skip
        if method == "state":
            return ["pool.isActive", self._pool()]
        return [f"pool.{method}", self._pool()]

    def _look_at_connection(self) -> Operation:
        method = self._random.choice(
            ("numOfStoragePools", "listStoragePools", "numOfDefinedStoragePools",
             "listDefinedStoragePools", "listAllStoragePools")
        )  # fmt: skip
        flags = [self._random.randrange(64)] if method == "listAllStoragePools" else []
        return [f"connection.{method}", *flags]

    def _look_up(self) -> Operation:
        path = f"$DIR/random/{self._random.choice(POOLS)}"
        if self._random.random() < 0.3:
            return ["connection.storagePoolLookupByTargetPath", path + self._slashes()]
        path = f"{path}/{self._slashes()}{self._volume()}"
        if self._random.random() < 0.3:
            return ["connection.storageVolLookupByKey", path]
        return ["owner", path]

    def _slashes(self) -> str:
        return self._random.choice(("", "", "/", "//"))

    def _size(self) -> int:
        size: int = self._random.choice(SIZES)
        return size

    def _document(self, name: str) -> str:
        allocation = self._random.choice(
            ("<allocation>0</allocation>", "<allocation>0</allocation>", "")
        )
        size, format = self._size(), self._random.choice(FORMATS)
        if name.endswith(".qcow2"):
            format, size = "qcow2", size or 512  # libvirt takes a capacity of 0 for unknown
        mode = self._rarely(("0600", "0644", "9", "")) or "0640"
        return (
            f"<volume><name>{_escaped(name)}</name><capacity>{size}</capacity>{allocation}"
            f"<target><format type='{format}'/>"
            f"<permissions><mode>{mode}</mode></permissions></target></volume>"
        )

    def _create_volume(self) -> Operation:
        return ["pool.createXML", self._pool(), self._document(self._volume()), self._flags()]

    def _clone(self) -> Operation:
        document = self._document(self._volume()).replace("'dir'", "'raw'")
        return ["clone", self._pool(), document, self._pool(), self._volume(), self._flags()]

    def _change_volume(self) -> Operation:
        pool, name = self._pool(), self._volume()
        kind = self._random.choice(("delete", "delete", "wipe", "wipePattern", "resize", "resize"))
        if kind.startswith("wipe") and name.endswith(".qcow2"):
            name = VOLUMES[0]  # a wiped image is an empty image here, and zeros with libvirt
        if kind == "resize":
            # what takes space stays small, and what is made smaller has its own tests
            return ["volume.resize", pool, name, self._random.choice((0, 5 << 20)), 0]
        if kind == "wipePattern":
            return ["volume.wipePattern", pool, name, self._random.choice((0, 0, 9, 10, 99))]
        return [f"volume.{kind}", pool, name, self._flags()]

    def _look_at_volume(self) -> Operation:
        method = self._random.choice(("info", "XMLDesc", "path", "key", "info"))
        return [f"volume.{method}", self._pool(), self._volume()]

    def _transfer(self) -> Operation:
        pool, name = self._pool(), self._volume()
        offset = self._random.choice((0, 0, 100, 70_000))
        if self._random.random() < 0.5:
            return ["download", pool, name, offset, self._random.choice((1, 4096))]
        data = self._random.randbytes(self._random.choice((0, 1, 3000)))
        return ["upload", pool, name, base64.b64encode(data).decode(), offset, 0]


def _pool_xml(name: str, place: str) -> str:
    number = POOLS.index(name) if name in POOLS else 99
    return (
        f"<pool type='dir'><name>{_escaped(name)}</name>"
        f"<uuid>00000000-0000-4000-8000-{number:012}</uuid>"
        f"<target><path>$DIR/random/{place}</path></target></pool>"
    )


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
