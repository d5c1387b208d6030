"""Declared binary records: one frozen dataclass is the layout for reading and for writing.

A field is an int or bytes annotated with its `struct` code; its name is the specification's::

    @dataclass(frozen=True)
    class Marker(Record):
        ORDER: ClassVar[str] = "<"
        lba: U64
        size: U32

There is no padding but what is declared.
"""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass, fields
from typing import Annotated, ClassVar, Self, TypeAlias, get_type_hints

from storaged.formats.errors import FormatError

U8: TypeAlias = Annotated[int, "B"]
U16: TypeAlias = Annotated[int, "H"]
U32: TypeAlias = Annotated[int, "I"]
U64: TypeAlias = Annotated[int, "Q"]
Bytes4: TypeAlias = Annotated[bytes, "4s"]
Bytes8: TypeAlias = Annotated[bytes, "8s"]
Bytes16: TypeAlias = Annotated[bytes, "16s"]
Bytes32: TypeAlias = Annotated[bytes, "32s"]


@dataclass(frozen=True)
class Record:
    """Base of all records. A subclass of a record appends its fields to those of its base."""

    #: byte order, as `struct` writes it: ``>`` big-endian, ``<`` little-endian
    ORDER: ClassVar[str] = ">"

    @classmethod
    @functools.cache
    def layout(cls) -> struct.Struct:
        """Return the compiled layout."""
        hints = get_type_hints(cls, include_extras=True)
        codes = "".join(hints[field.name].__metadata__[0] for field in fields(cls))
        return struct.Struct(cls.ORDER + codes)

    @classmethod
    def length(cls) -> int:
        """Return the length of the record in bytes."""
        return cls.layout().size

    @classmethod
    def unpack(cls, data: bytes | bytearray | memoryview, offset: int = 0) -> Self:
        """Read a record from *data* at *offset*.

        :raise FormatError: if *data* ends before the record does.
        """
        layout = cls.layout()
        if len(data) - offset < layout.size:
            there = max(len(data) - offset, 0)
            raise FormatError(f"{cls.__name__} is {layout.size} bytes, only {there} are there")
        # What a frozen dataclass does in __init__ takes twice as long.
        record = object.__new__(cls)
        values = layout.unpack_from(data, offset)
        record.__dict__.update(zip(cls.__match_args__, values, strict=True))
        return record

    def pack(self) -> bytes:
        """Return the record's bytes.

        :raise FormatError: if a value does not fit its field.
        """
        try:
            # A dataclass without slots keeps its fields in __dict__, in the declared order.
            return self.layout().pack(*self.__dict__.values())
        except struct.error as err:
            raise FormatError(f"{self!r}: {err}") from err
