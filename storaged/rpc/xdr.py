"""XDR, as libvirt's protocol uses it: big-endian, everything a multiple of four bytes.

A `Type` writes values of one kind and reads them back. Whatever a hostile peer sends, reading takes
no more memory than the bytes that came: counts are checked against what is left before anything
is made.

Sources: RFC 4506; libvirt's rpcgen dialect, in which a char takes four bytes and any flag but 0
means that an optional value is there.
"""

from __future__ import annotations

import struct
from typing import Annotated, Any, Generic, TypeAlias, TypeVar

from storaged.rpc.errors import RPCError

T = TypeVar("T")

#: The longest string of any message, in bytes.
STRING_MAX = 4 << 20

_UINT = struct.Struct(">I")
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")


class Reader:
    """Reads values from the payload of one message, from its start to its end."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes, at: int = 0) -> None:
        self._data = data
        self._at = at

    @property
    def left(self) -> int:
        """How many bytes are left."""
        return len(self._data) - self._at

    def unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        """Read the fields of a layout.

        :raise RPCError: the message ends before.
        """
        try:
            values = layout.unpack_from(self._data, self._at)
        except struct.error as err:
            raise truncated() from err
        self._at += layout.size
        return values

    def take(self, length: int) -> bytes:
        """Read *length* bytes and skip what pads them.

        :raise RPCError: the message ends before.
        """
        end = self._at + length
        after = end + (-length & 3)
        if after > len(self._data):
            raise truncated()
        found = self._data[self._at : end]
        self._at = after
        return found

    def count(self, limit: int, least: int = 0) -> int:
        """Read the length of something variable.

        :param least: how many bytes each item takes at least.
        :raise RPCError: it is above *limit*, or so many items cannot be in what is left.
        """
        (found,) = self.unpack(_UINT)
        if found > limit:
            raise RPCError(f"unable to decode message payload: length {found} is above {limit}")
        if found * least > self.left:
            raise truncated()
        return int(found)


def truncated() -> RPCError:
    """Return the error for a message that ends too early."""
    return RPCError("unable to decode message payload: it is too short")


class Type(Generic[T]):
    """How values of one kind stand in a message."""

    #: the `struct` code of a type of one fixed size, "" for all others
    code = ""
    #: how many bytes a value takes at least
    least = 4

    def read(self, reader: Reader) -> T:
        """Return the next value.

        :raise RPCError: there is none, or it breaks the bounds of the type.
        """
        raise NotImplementedError

    def write(self, out: bytearray, value: T) -> None:
        """Append a value.

        :raise RPCError: it breaks the bounds of the type.
        """
        raise NotImplementedError


class Number(Type[int]):
    """An integer: ``i`` and ``I`` take four bytes, ``q`` and ``Q`` eight."""

    def __init__(self, code: str) -> None:
        self.code = code
        self._layout = struct.Struct(">" + code)
        self.least = self._layout.size

    def read(self, reader: Reader) -> int:
        """Return the next number."""
        return int(reader.unpack(self._layout)[0])

    def write(self, out: bytearray, value: int) -> None:
        """Append a number."""
        try:
            out += self._layout.pack(value)
        except struct.error as err:
            raise RPCError(f"unable to encode message payload: {value} ({err})") from err


class Double(Type[float]):
    """A number with a point, in eight bytes."""

    code = "d"
    least = 8
    _layout = struct.Struct(">d")

    def read(self, reader: Reader) -> float:
        """Return the next number."""
        return float(reader.unpack(self._layout)[0])

    def write(self, out: bytearray, value: float) -> None:
        """Append a number."""
        out += self._layout.pack(value)


class Text(Type[str]):
    """A string. Bytes that are not UTF-8 stay what they are; a NUL ends it, as in C."""

    def __init__(self, limit: int = STRING_MAX) -> None:
        self.limit = limit

    def read(self, reader: Reader) -> str:
        """Return the next string."""
        data = reader.take(reader.count(self.limit, 1))
        end = data.find(0)
        return (data if end < 0 else data[:end]).decode(errors="surrogateescape")

    def write(self, out: bytearray, value: str) -> None:
        """Append a string."""
        data = value.encode(errors="surrogateescape")
        length = len(data)
        if length > self.limit:
            raise RPCError(f"unable to encode message payload: a string of {length} bytes")
        out += _UINT.pack(length)
        out += data
        out += _PADDING[length & 3]


class Opaque(Type[bytes]):
    """Bytes with their length in front of them."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def read(self, reader: Reader) -> bytes:
        """Return the next bytes."""
        return reader.take(reader.count(self.limit, 1))

    def write(self, out: bytearray, value: bytes) -> None:
        """Append bytes."""
        length = len(value)
        if length > self.limit:
            raise RPCError(f"unable to encode message payload: {length} bytes")
        out += _UINT.pack(length)
        out += value
        out += _PADDING[length & 3]


class Fixed(Type[bytes]):
    """So many bytes, such as the 16 of an uuid."""

    def __init__(self, length: int) -> None:
        self.length = self.least = length

    def read(self, reader: Reader) -> bytes:
        """Return the next bytes."""
        return reader.take(self.length)

    def write(self, out: bytearray, value: bytes) -> None:
        """Append bytes."""
        if len(value) != self.length:
            raise RPCError(f"unable to encode message payload: {len(value)} bytes")
        out += value
        out += _PADDING[self.length & 3]


class Chars(Type[bytes]):
    """An array of char: four bytes for each, up to *limit* of them, their number in front."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def read(self, reader: Reader) -> bytes:
        """Return the next characters."""
        count = reader.count(self.limit, 4)
        return reader.take(4 * count)[3::4]

    def write(self, out: bytearray, value: bytes) -> None:
        """Append characters."""
        if len(value) > self.limit:
            raise RPCError(f"unable to encode message payload: {len(value)} characters")
        out += _UINT.pack(len(value))
        spread = bytearray(4 * len(value))
        spread[3::4] = value
        out += spread


class Maybe(Type[T | None]):
    """A value that may be missing. Any flag but 0 means that it is there; 1 is written."""

    def __init__(self, item: Type[T]) -> None:
        self.item = item

    def read(self, reader: Reader) -> T | None:
        """Return the next value, None if it is missing."""
        return self.item.read(reader) if reader.unpack(_UINT)[0] else None

    def write(self, out: bytearray, value: T | None) -> None:
        """Append a value or its lack."""
        if value is None:
            out += b"\0\0\0\0"
        else:
            out += b"\0\0\0\1"
            self.item.write(out, value)


class Array(Type[tuple[T, ...]]):
    """Up to *limit* values of one type, their number in front."""

    def __init__(self, item: Type[T], limit: int) -> None:
        self.item = item
        self.limit = limit

    def read(self, reader: Reader) -> tuple[T, ...]:
        """Return the next values."""
        read = self.item.read
        return tuple([read(reader) for _ in range(reader.count(self.limit, self.item.least))])

    def write(self, out: bytearray, value: tuple[T, ...]) -> None:
        """Append values."""
        if len(value) > self.limit:
            raise RPCError(f"unable to encode message payload: {len(value)} items")
        out += _UINT.pack(len(value))
        write = self.item.write
        for each in value:
            write(out, each)


INT = Number("i")
UINT = Number("I")
HYPER = Number("q")
UHYPER = Number("Q")
STRING = Text()
UUID = Fixed(16)

#: For the fields of records. A char, a bool and an enum are an int of four bytes too.
Int: TypeAlias = Annotated[int, INT]
UInt: TypeAlias = Annotated[int, UINT]
Hyper: TypeAlias = Annotated[int, HYPER]
UHyper: TypeAlias = Annotated[int, UHYPER]
Real: TypeAlias = Annotated[float, Double()]
String: TypeAlias = Annotated[str, STRING]
#: a string that may be missing
MaybeString: TypeAlias = Annotated[str | None, Maybe(STRING)]
#: the 16 bytes of an uuid
UuidBytes: TypeAlias = Annotated[bytes, UUID]
