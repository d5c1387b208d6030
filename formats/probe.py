"""What is this image? Bounded, total, and never blind to a second answer.

At most 33 280 bytes are read at the start and 1 024 at the end. A file whose magic is right is of
that format even if all else is wrong: its state says so. Where several formats match, libvirt's
first is named and the state is at least suspicious. Nothing that an image names is opened.
"""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import cast

from storaged.formats.findings import Findings
from storaged.formats.handle import Handle
from storaged.formats.image import ImageInfo, ImageState
from storaged.formats.signatures import (
    ISO_MAGIC,
    ISO_OFFSET,
    LUKS_MAGIC,
    PREFIXES,
    TRAILER_SIZE,
    TRAILERS,
    VDI_MAGIC,
    VDI_OFFSET,
    foreign_heads,
    foreign_trailers,
    matches,
)
from storaged.formats.window import HEAD_LIMIT, Window

#: Where each format's ``inspect`` is; loaded when the first such image is seen.
INSPECTORS = {
    "iso": "storaged.formats.iso",
    "vpc": "storaged.formats.vpc",
    "vdi": "storaged.formats.vdi",
    "ploop": "storaged.formats.ploop",
    "cow": "storaged.formats.cow",
    "qcow": "storaged.formats.qcow",
    "qcow2": "storaged.formats.qcow2_inspect",
    "qed": "storaged.formats.qed",
    "vmdk": "storaged.formats.vmdk",
    "luks": "storaged.formats.luks",
}

_FIRST_READ = 512
_ISO_END = ISO_OFFSET + len(ISO_MAGIC)
_VDI_END = VDI_OFFSET + len(VDI_MAGIC)
#: Magic and version of what is answered from memory.
_QCOW2 = (b"QFI\xfb\0\0\0\2", b"QFI\xfb\0\0\0\3")
_BACKING = struct.Struct(">QI")
_CACHED = 1024


def probe(handle: Handle) -> ImageInfo:
    """Say what *handle* holds; plain data are format ``raw``, state ``ok``.

    :raise OSError: if it cannot be read. Nothing else is raised, whatever the bytes are.
    """
    return inspect(Window(handle.pread, handle.size()))


def probe_fd(fd: int, size: int) -> ImageInfo | None:
    """Say what the open file is; None if it is nothing but raw data.

    :param size: the file's length in bytes.
    :raise OSError: if it cannot be read. Nothing else is raised, whatever the bytes are.
    """
    return Prober().probe_fd(fd, size)


class Prober:
    """Probes many files. Keep one for a scan: images with the same header are examined once.

    Not for use by several threads at a time.
    """

    __slots__ = ("_known",)

    def __init__(self) -> None:
        #: by the bytes that were looked at: the answer and the smallest size it was given for
        self._known: dict[bytes, tuple[ImageInfo, int]] = {}

    def probe_fd(self, fd: int, size: int) -> ImageInfo | None:
        """Say what the open file is; None if it is nothing but raw data.

        :param size: the file's length in bytes.
        :raise OSError: if it cannot be read. Nothing else is raised, whatever the bytes are.
        """
        head = os.pread(fd, _FIRST_READ, 0)
        if size < _ISO_END or os.pread(fd, 5, ISO_OFFSET) != ISO_MAGIC:
            if head[VDI_OFFSET:_VDI_END] == VDI_MAGIC:
                pass
            elif head.startswith(_QCOW2):
                return self._qcow2(fd, size, head)
            elif head[:3] not in PREFIXES and (
                size < TRAILER_SIZE or not os.pread(fd, 8, size - TRAILER_SIZE).startswith(TRAILERS)
            ):
                return None
        info = inspect(Window(_reader(fd), size, head))
        plain = info.format == "raw" and info.state is ImageState.OK and info.encryption is None
        return None if plain else info

    def _qcow2(self, fd: int, size: int, head: bytes) -> ImageInfo:
        """Answer from memory what was sound before, for a file that is no shorter."""
        if len(head) == _FIRST_READ:
            offset, length = _BACKING.unpack_from(head, 8)
            if _FIRST_READ < offset + length <= HEAD_LIMIT:
                head = os.pread(fd, offset + length, 0)
        known = self._known.get(head)
        if known is not None and size >= known[1]:
            return known[0]
        window = Window(_reader(fd), size, head)
        info = _inspect("qcow2", window)
        if info.state is ImageState.OK and window.reached <= len(head):
            if len(self._known) >= _CACHED:
                self._known.clear()
            self._known[head] = info, size
        return info


def inspect(window: Window) -> ImageInfo:
    """Say what lies in a window; see `probe`."""
    window.head(_FIRST_READ)  # one read instead of one for each signature
    found = [match.format for match in matches(window)]
    if window.head(len(LUKS_MAGIC)) == LUKS_MAGIC:
        found.append("luks")
    if not found:
        return _raw(window)
    info = _inspect(found[0], window)
    found += [other.format for other in foreign_heads(window)]
    if len(found) == 1:
        return info
    state = ImageState.SUSPICIOUS if info.state is ImageState.OK else info.state
    reason = f"the file is also {', '.join(found[1:])}"
    return replace(info, state=state, reasons=(*info.reasons, reason))


def _inspect(format: str, window: Window) -> ImageInfo:
    return _inspector(format)(window)


@functools.cache
def _inspector(format: str) -> Callable[[Window], ImageInfo]:
    return cast(Callable[[Window], ImageInfo], import_module(INSPECTORS[format]).inspect)


def _raw(window: Window) -> ImageInfo:
    findings = Findings()
    for other in (*foreign_heads(window), *foreign_trailers(window)):
        findings.suspicious(f"the data are {other.name}")
    return findings.info("raw", window.size)


def _reader(fd: int) -> Callable[[int, int], bytes]:
    return lambda length, offset: os.pread(fd, length, offset)
