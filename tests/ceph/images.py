"""RADOS pools, their namespaces and their images, as an admin's process sees them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.ceph.admin import Admin


class Pool:
    """A RADOS pool, or a namespace of one."""

    def __init__(self, admin: Admin, name: str, namespace: str = "") -> None:
        self.admin = admin
        self.name = name
        self.namespace = namespace

    def call(self, method: str, *args: Any, **named: Any) -> Any:
        """Call a method of ``rados.Ioctx``, such as ``write_full``, ``read`` or ``execute``."""
        return self.admin.call(["pool", self.name, self.namespace], method, *args, **named)

    def rbd(self, method: str, *args: Any, **named: Any) -> Any:
        """Call a method of ``rbd.RBD`` for this pool, such as ``trash_list``."""
        return self.admin.call(["rbd", self.name, self.namespace], method, *args, **named)

    def stats(self) -> dict[str, int]:
        """Return what is known of the pool's use, such as ``num_bytes``."""
        answer: dict[str, int] = self.call("get_stats")
        return answer

    # namespaces

    def create_namespace(self, name: str) -> Pool:
        """Create a namespace of the pool."""
        self.rbd("namespace_create", name)
        return Pool(self.admin, self.name, name)

    def remove_namespace(self, name: str) -> None:
        """Remove a namespace, which has to be empty."""
        self.rbd("namespace_remove", name)

    def namespaces(self) -> list[str]:
        """Return the names of the pool's namespaces."""
        names: list[str] = self.rbd("namespace_list")
        return names

    # images

    def image(self, name: str, snapshot: str | None = None) -> Image:
        """Return an image that is there (nobody looks), or a snapshot of it."""
        return Image(self, name, snapshot)

    def create(self, name: str, size: int, **options: Any) -> Image:
        """Create an image of *size* bytes.

        :param options: ``features`` (a sum of bits), ``order`` (objects have 2**order bytes),
            ``stripe_unit`` and ``stripe_count``, ``data_pool`` (a pool's name).
        """
        self.rbd("create", name, size, **{"old_format": False, **options})
        return self.image(name)

    def create_format_1(self, name: str, size: int) -> Image:
        """Create an image of format 1, as nobody does any more."""
        self.admin.call(["cluster"], "conf_set", "rbd_default_format", "1")
        try:
            self.rbd("create", name, size, old_format=True)
        finally:
            self.admin.call(["cluster"], "conf_set", "rbd_default_format", "2")
        return self.image(name)

    def clone(self, parent: Image, snapshot: str, name: str, **options: Any) -> Image:
        """Create an image here on a protected snapshot of another, anywhere in the cluster."""
        there = ["rbd", parent.pool.name, parent.pool.namespace]
        self.admin.call(there, "clone", parent.name, snapshot, self, name, **options)
        return self.image(name)

    def images(self) -> list[str]:
        """Return the names of the images, sorted."""
        return sorted(self.rbd("image_names"))

    def rename(self, old: str, new: str) -> None:
        """Give an image another name."""
        self.rbd("rename", old, new)

    def remove(self, name: str) -> None:
        """Remove an image, which has no snapshot and no watcher."""
        self.rbd("remove", name)

    def trash(self) -> list[str]:
        """Return the names of the images in the trash."""
        return sorted(entry["name"] for entry in self.rbd("trash_list"))

    # objects

    def objects(self) -> list[str]:
        """Return the names of the RADOS objects."""
        return sorted(self.call("list_objects"))

    def omap(self, name: str) -> dict[str, bytes]:
        """Return the key-value pairs of an object."""
        return dict(self.call("omap", name))

    def set_omap(self, name: str, key: str, value: bytes) -> None:
        """Set one key of an object."""
        self.call("set_omap", name, key, value)


class Image:
    """An image, or a snapshot of one; each call opens it and closes it."""

    def __init__(self, pool: Pool, name: str, snapshot: str | None = None) -> None:
        self.pool = pool
        self.name = name
        self.snapshot = snapshot

    def call(self, method: str, *args: Any, **named: Any) -> Any:
        """Call a method of ``rbd.Image`` on it, such as ``metadata_set`` or ``lock_exclusive``."""
        return self.pool.admin.call(self._address(read_only=False), method, *args, **named)

    def query(self, method: str, *args: Any, **named: Any) -> Any:
        """Call a method that changes nothing; that works also where nothing can be written."""
        return self.pool.admin.call(self._address(read_only=True), method, *args, **named)

    @contextmanager
    def held(self, *, read_only: bool = False) -> Iterator[Held]:
        """Have it open for the length of a block: the process watches it, unless *read_only*."""
        held = Held(self, self.pool.admin.call(self._address(read_only=read_only), "hold"))
        try:
            yield held
        finally:
            if self.pool.admin.child.running:
                held.close()

    def size(self) -> int:
        """Return its size in bytes."""
        return int(self.query("size"))

    def write(self, offset: int, data: bytes) -> None:
        """Write at a byte's offset."""
        self.call("write", data, offset)

    def read(self, offset: int, length: int) -> bytes:
        """Read that many bytes."""
        return bytes(self.query("read", offset, length))

    def resize(self, size: int) -> None:
        """Make it larger or smaller; what is cut off is lost."""
        self.call("resize", size)

    def extents(self) -> list[tuple[int, int]]:
        """Return offset and length of what is allocated, its parent's included."""
        return [(offset, length) for offset, length, there in self.query("extents") if there]

    def features(self) -> int:
        """Return the bits of its features."""
        return int(self.query("features"))

    def stat(self) -> dict[str, Any]:
        """Return ``size``, ``order``, ``num_objs`` and their like."""
        answer: dict[str, Any] = self.query("stat")
        return answer

    def create_snap(self, name: str, *, protect: bool = False) -> None:
        """Take a snapshot."""
        self.call("create_snap", name)
        if protect:
            self.protect_snap(name)

    def remove_snap(self, name: str) -> None:
        """Remove a snapshot, which is not protected."""
        self.call("remove_snap", name)

    def protect_snap(self, name: str) -> None:
        """Protect a snapshot, so that it can be cloned."""
        self.call("protect_snap", name)

    def unprotect_snap(self, name: str) -> None:
        """End a snapshot's protection; it has no clones."""
        self.call("unprotect_snap", name)

    def snaps(self) -> list[str]:
        """Return the names of its snapshots, the oldest first."""
        return [snap["name"] for snap in self.query("list_snaps")]

    def children(self) -> list[tuple[str, str]]:
        """Return pool and name of the clones of this snapshot (or of any, without one)."""
        return [(child["pool"], child["image"]) for child in self.query("list_children2")]

    def parent(self) -> tuple[str, str, str] | None:
        """Return pool, image and snapshot that it is a clone of, None if of nothing."""
        parent = self.query("parent")
        return None if parent is None else tuple(parent)

    def flatten(self) -> None:
        """Copy what it shares with its parent; it is no clone then."""
        self.call("flatten")

    def watchers(self) -> list[str]:
        """Return the addresses of who has it open to write, the asking process left out."""
        with self.held(read_only=True) as held:
            return [watcher["addr"] for watcher in held.call("watchers_list")]

    def rename(self, new: str) -> Image:
        """Give it another name; return it by that."""
        self.pool.rename(self.name, new)
        return self.pool.image(new)

    def remove(self) -> None:
        """Remove it; it has no snapshot and no watcher."""
        self.pool.remove(self.name)

    def _address(self, *, read_only: bool) -> list[Any]:
        read_only = read_only or self.snapshot is not None
        return ["image", self.pool.name, self.pool.namespace, self.name, self.snapshot, read_only]


class Held:
    """An image that an admin's process has open."""

    def __init__(self, image: Image, handle: int) -> None:
        self.image = image
        self._handle: int | None = handle

    def call(self, method: str, *args: Any, **named: Any) -> Any:
        """Call a method of ``rbd.Image`` on it."""
        return self.image.pool.admin.call(["held", self._handle], method, *args, **named)

    def write(self, offset: int, data: bytes) -> None:
        """Write at a byte's offset; the process then has the image's exclusive lock."""
        self.call("write", data, offset)
        self.call("flush")

    def close(self) -> None:
        """Close it; a second time does nothing."""
        if self._handle is not None:
            self.call("close")
            self._handle = None
