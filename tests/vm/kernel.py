"""The guest's kernel, its modules, and the layer of packages: prepared once a state of the host."""

from __future__ import annotations

import lzma
import os
import shutil
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.vm import packages
from tests.vm.cache import locked, remove_unused
from tests.vm.packages import PreparationError, run

#: What must be installed here for the guest to be made and to run.
HERE_TOO = ("qemu-system-x86", "kmod", "e2fsprogs")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A kernel and a layer, ready to boot; not changed while a guest uses it."""

    place: Path

    @property
    def layer(self) -> Path:
        """The packages, unpacked."""
        return self.place / "layer"

    @property
    def vmlinux(self) -> Path:
        """The kernel."""
        return self.place / "vmlinux"

    @property
    def modules(self) -> Path:
        """The directory of the kernel's modules."""
        return next((self.layer / "usr/lib/modules").iterdir())


@contextmanager
def prepared(cache: Path) -> Iterator[Prepared]:
    """Give kernel and layer for this machine as it is now; they are made if need be.

    :raise PreparationError: they cannot be made.
    """
    names = packages.parse_list((Path(__file__).parent / "packages.txt").read_text())
    place = cache / f"vm-{packages.fingerprint(names)}"
    with locked(cache):
        if not (place / "complete").exists():
            _prepare(place, cache / "debs", names)
        remove_unused(cache, "vm-*", keep=place)
        # the lock of the cache is held until we have this one: nobody removes it in between
        holding = locked(place, shared=True)
        holding.__enter__()
    try:
        yield Prepared(place)
    finally:
        holding.__exit__(None, None, None)


def _prepare(place: Path, debs: Path, names: tuple[str, ...]) -> None:
    print("test-vm: preparing kernel and packages (some 110 MB, once) ...", flush=True)
    shutil.rmtree(place, ignore_errors=True)
    layer = place / "layer"
    layer.mkdir(parents=True)
    wanted = packages.missing(names)
    # the kernel is never taken from this machine; busybox goes into the initrd
    for name in (packages.kernel_package(), "busybox-static"):
        wanted[name] = packages.candidate(name)
    files = packages.fetch(wanted, debs)
    for old in set(debs.glob("*.deb")) - set(files):
        old.unlink()
    packages.unpack(files, layer)
    images = sorted(layer.glob("boot/vmlinuz-*"))
    if not images:
        raise PreparationError("the kernel's package has no boot/vmlinuz-*")
    (place / "vmlinux").write_bytes(unpack_image(images[-1].read_bytes()))
    _index_modules(layer, images[-1].name.removeprefix("vmlinuz-"))
    (place / "complete").touch()


def _index_modules(layer: Path, version: str) -> None:
    """Let depmod, which looks below lib only, index the modules below usr/lib."""
    link = layer / "lib"
    link.symlink_to("usr/lib")
    try:
        run(
            shutil.which("depmod", path=f"{os.defpath}:/usr/sbin:/sbin") or "depmod",
            "-b",
            layer,
            version,
        )
    finally:
        link.unlink()


def unpack_image(image: bytes) -> bytes:
    """Return the ELF file inside a bzImage; QEMU boots it without unpacking it under emulation.

    The places are those of the x86 boot protocol, 2.08: setup_sects, payload_offset and
    payload_length. What is packed in another way than xz or gzip is returned as it is: then the
    guest unpacks it.
    """
    if image[0x202:0x206] != b"HdrS":
        raise PreparationError("the kernel is no bzImage")
    sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<2I", image, 0x248)
    start = (sectors + 1) * 512 + offset
    payload = image[start : start + length]
    if payload.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMADecompressor().decompress(payload)
    if payload.startswith(b"\x1f\x8b"):
        return zlib.decompressobj(31).decompress(payload)
    return image
