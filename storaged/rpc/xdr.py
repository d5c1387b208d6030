"""XDR, as libvirt's protocol uses it: big-endian, everything a multiple of four bytes.

A `Type` writes values of one kind and reads them back. Whatever a hostile peer sends, reading takes
no more memory than the bytes that came: counts are checked against what is left before anything
is made.

Sources: RFC 4506; libvirt's rpcgen dialect, in which a char takes four bytes and any flag but 0
means that an optional value is there.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from typing import Annotated, Any, Generic, TypeAlias, TypeVar

from storaged.rpc.errors import RPCError

T = TypeVar("T")

#: The longest string of any message, in bytes.
STRING_MAX = 4 << 20

_UINT = struct.Struct(">I")
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")


class Reader:
    """Reads values from the payload of one message, from its start to its end."""

    __slots__ = ("_at", "_data", "_end")

    def __init__(self, data: bytes, at: int = 0) -> None:
        self._data = data
        self._at = at
        self._end = len(data)

    @property
    def left(self) -> int:
        """How many bytes are left."""
        return self._end - self._at

    def unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        """Read the fields of a layout.

        :raise RPCError: the message ends before.
        """
        at = self._at
        self._at = after = at + layout.size
        if after > self._end:
            raise truncated()
        return layout.unpack_from(self._data, at)

    def take(self, length: int) -> bytes:
        """Read *length* bytes and skip what pads them.

        :raise RPCError: the message ends before.
        """
        at = self._at
        self._at = after = at + length + (-length & 3)
        if after > self._end:
            raise truncated()
        return self._data[at : at + length]

    def variable(self, limit: int) -> bytes:
        """Read bytes with their number in front of them, and skip what pads them.

        :raise RPCError: they are more than *limit*, or the message ends before.
        """
        (length,) = self.unpack(_UINT)
        if length > limit:
            raise undecodable(f"It has {length} bytes where {limit} are the most.")
        return self.take(length)

    def count(self, limit: int, least: int) -> int:
        """Read how many items follow.

        :param least: how many bytes each of them takes at least.
        :raise RPCError: they are more than *limit*, or than can be in what is left.
        """
        (found,) = self.unpack(_UINT)
        if found > limit:
            raise undecodable(f"It has {found} items where {limit} are the most.")
        if found * least > self.left:
            raise truncated()
        return int(found)


def undecodable(why: str) -> RPCError:
    """Return the error for a message that breaks the rules."""
    return RPCError("Unable to decode message payload", advice=why)


def truncated() -> RPCError:
    """Return the error for a message that ends too early."""
    return undecodable("It is too short.")


def unencodable(why: str) -> RPCError:
    """Return the error for a value that cannot stand in a message."""
    return RPCError("Unable to encode message payload", advice=why)


class Type(ABC, Generic[T]):
    """How values of one kind stand in a message."""

    #: the `struct` code of a type of one fixed size, "" for all others
    code = ""
    #: how many bytes a value takes at least
    least = 4

    @abstractmethod
    def read(self, reader: Reader) -> T:
        """Return the next value.

        :raise RPCError: there is none, or it breaks the bounds of the type.
        """

    @abstractmethod
    def write(self, out: bytearray, value: T) -> None:
        """Append a value.

        :raise RPCError: it breaks the bounds of the type.
        """


class Number(Type[int]):
    """An integer: ``i`` and ``I`` take four bytes, ``q`` and ``Q`` eight."""

    def __init__(self, code: str) -> None:
        self.code = code
        self._layout = struct.Struct(">" + code)
        self.least = self._layout.size

    def read(self, reader: Reader) -> int:
        """Return the next number."""
        return reader.unpack(self._layout)[0]  # type: ignore[no-any-return]

    def write(self, out: bytearray, value: int) -> None:
        """Append a number."""
        try:
            out += self._layout.pack(value)
        except struct.error as err:
            raise unencodable(f"{value}: {err}.") from err


class Double(Type[float]):
    """A number with a point, in eight bytes."""

    code = "d"
    least = 8
    _layout = struct.Struct(">d")

    def read(self, reader: Reader) -> float:
        """Return the next number."""
        return reader.unpack(self._layout)[0]  # type: ignore[no-any-return]

    def write(self, out: bytearray, value: float) -> None:
        """Append a number."""
        try:
            out += self._layout.pack(value)
        except (struct.error, OverflowError) as err:
            raise unencodable(f"{value}: {err}.") from err


class Text(Type[str]):
    """A string. Bytes that are not UTF-8 stay what they are.

    In C a NUL ends it. So one that is read ends there, and none with a NUL is written: the other
    side would act on a different string.
    """

    def __init__(self, limit: int = STRING_MAX) -> None:
        self.limit = limit

    def read(self, reader: Reader) -> str:
        """Return the next string."""
        data = reader.variable(self.limit)
        if 0 in data:
            data = data[: data.index(0)]
        return data.decode("utf-8", "surrogateescape")

    def write(self, out: bytearray, value: str) -> None:
        """Append a string."""
        try:
            data = value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as err:
            raise unencodable(f"A string has characters that no text has: {err}.") from err
        if 0 in data:
            raise unencodable(f"The string {value[:80]!r} has a NUL.")
        _write_bytes(out, data, self.limit)


class Opaque(Type[bytes]):
    """Up to *limit* bytes with their number in front of them."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def read(self, reader: Reader) -> bytes:
        """Return the next bytes."""
        return reader.variable(self.limit)

    def write(self, out: bytearray, value: bytes) -> None:
        """Append bytes."""
        _write_bytes(out, value, self.limit)


def _write_bytes(out: bytearray, data: bytes, limit: int) -> None:
    length = len(data)
    if length > limit:
        raise unencodable(f"{length} bytes where {limit} are the most.")
    out += _UINT.pack(length)
    out += data
    out += _PADDING[length & 3]


class Fixed(Type[bytes]):
    """So many bytes, such as the 16 of an uuid."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.least = length + (-length & 3)

    def read(self, reader: Reader) -> bytes:
        """Return the next bytes."""
        return reader.take(self.length)

    def write(self, out: bytearray, value: bytes) -> None:
        """Append bytes."""
        if len(value) != self.length:
            raise unencodable(f"{len(value)} bytes instead of {self.length}.")
        out += value
        out += _PADDING[self.length & 3]


class Chars(Type[bytes]):
    """An array of char: four bytes for each, up to *limit* of them, their number in front."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def read(self, reader: Reader) -> bytes:
        """Return the next characters."""
        return reader.take(4 * reader.count(self.limit, 4))[3::4]

    def write(self, out: bytearray, value: bytes) -> None:
        """Append characters."""
        if len(value) > self.limit:
            raise unencodable(f"{len(value)} characters where {self.limit} are the most.")
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
            raise unencodable(f"{len(value)} items where {self.limit} are the most.")
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
