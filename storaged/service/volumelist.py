"""Long lists of volumes as replies: packed without an object for each volume.

Ten thousand volumes as records take three times as long, and all the while the thread that makes
them keeps the others waiting.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

from storaged.rpc.storage import ListVolsRet, StorageVol

#: What brings a string to a multiple of four bytes, by the rest of its length.
_PADDING: Final = (b"", b"\0\0\0", b"\0\0", b"\0")
_UINT: Final = struct.Struct(">I")


class VolumeList(ListVolsRet):
    """The volumes of one pool, as names and keys. Its `vols` are made if somebody reads them.

    :param pool: name of the pool.
    :param entries: name and key of each volume.
    """

    if TYPE_CHECKING:
        _pool: str
        _entries: list[tuple[str, str]]

    def __init__(self, pool: str, entries: list[tuple[str, str]]) -> None:
        self.__dict__.update(_pool=pool, _entries=entries, ret=len(entries))

    def __getattr__(self, name: str) -> Any:
        if name != "vols":
            raise AttributeError(name)
        pool = self._pool
        made = tuple([StorageVol(pool, volume, key) for volume, key in self._entries])
        self.__dict__["vols"] = made
        return made

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ListVolsRet):
            return NotImplemented
        return bool(self.vols == other.vols and self.ret == other.ret)

    def __hash__(self) -> int:
        return hash((self.vols, self.ret))

    def write(self, out: bytearray) -> None:
        """Append the reply to a message."""
        pool = _packed(self._pool)
        count = _UINT.pack(self.ret)
        packed = [pool + _packed(name) + _packed(key) for name, key in self._entries]
        out += count
        out += b"".join(packed)
        out += count


def _packed(text: str) -> bytes:
    """Return a string as it stands in a message."""
    data = text.encode("utf-8", "surrogateescape")
    length = len(data)
    return _UINT.pack(length) + data + _PADDING[length & 3]
