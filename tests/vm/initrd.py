"""The guest's initrd: busybox, the modules to reach the root by 9p, and two scripts."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

#: What the kernel needs to mount its root; those that are built in are left out.
MODULES = (
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "virtio_rng",
    "9pnet_virtio",
    "9p",
    "overlay",
    "ext4",
)
_HERE = Path(__file__).parent


class Archive:
    """A cpio archive in the "new ASCII" format, as the kernel unpacks it."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 0
        self._directories: set[PurePosixPath] = set()

    def directory(self, name: str) -> None:
        """Add a directory and those above it, unless they are there."""
        path = PurePosixPath(name)
        for each in (*reversed(path.parents), path):
            if each != PurePosixPath(".") and each not in self._directories:
                self._directories.add(each)
                self._entry(str(each), stat.S_IFDIR | 0o755)

    def file(self, name: str, content: bytes, *, executable: bool = False) -> None:
        """Add a file, and the directories above it."""
        self.directory(str(PurePosixPath(name).parent))
        self._entry(name, stat.S_IFREG | (0o755 if executable else 0o644), content)

    def device(self, name: str, major: int, minor: int) -> None:
        """Add a character device, and the directories above it."""
        self.directory(str(PurePosixPath(name).parent))
        self._entry(name, stat.S_IFCHR | 0o600, device=(major, minor))

    def close(self) -> bytes:
        """Return the archive; nothing can be added any more."""
        self._entry("TRAILER!!!", 0)
        return b"".join(self._parts)

    def _entry(
        self, name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> None:
        self._inode += 1
        raw = name.encode() + b"\0"
        # inode, mode, uid, gid, links, mtime, size, device of the file and of the node, name, sum
        numbers = (self._inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(raw), 0)
        header = b"070701" + b"".join(b"%08X" % number for number in numbers)
        for part in (header + raw, content):
            self._parts.append(part + bytes(-len(part) % 4))


def load_order(dependencies: str, wanted: Iterable[str]) -> list[str]:
    """Return the files of modules in the order to load them, by the text of modules.dep."""
    needs: dict[str, list[str]] = {}
    for line in dependencies.splitlines():
        file, _, others = line.partition(":")
        needs[_module(file)] = [*reversed(others.split()), file]
    order: list[str] = []
    for name in wanted:
        order += [file for file in needs.get(name.replace("-", "_"), []) if file not in order]
    return order


def _module(file: str) -> str:
    return PurePosixPath(file).name.split(".ko")[0].replace("-", "_")


def build(modules: Path, busybox: Path) -> bytes:
    """Return an initrd with the modules below *modules*, such as /lib/modules/6.1.0-38-amd64."""
    archive = Archive()
    for name in ("dev", "proc", "sys", "mnt", "newroot"):
        archive.directory(name)
    archive.device("dev/console", 5, 1)
    archive.file("bin/busybox", busybox.read_bytes(), executable=True)
    order = load_order((modules / "modules.dep").read_text(), MODULES)
    for file in order:
        archive.file(f"modules/{PurePosixPath(file).name}", (modules / file).read_bytes())
    names = "".join(f"{PurePosixPath(file).name}\n" for file in order)
    archive.file("modules/order", names.encode())
    for script, name in (("init.sh", "init"), ("guest.sh", "guest.sh")):
        archive.file(name, (_HERE / script).read_bytes(), executable=True)
    return archive.close()
