"""Typed parameters: a name with a value of one of seven types.

Source: libvirt's protocol.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Final

from storaged.rpc.record import Record
from storaged.rpc.xdr import (
    HYPER,
    INT,
    STRING,
    UHYPER,
    UINT,
    Double,
    Reader,
    String,
    Type,
    undecodable,
)

Value = int | float | bool | str


class ParamType(IntEnum):
    """What a parameter's value is."""

    INT = 1
    UINT = 2
    LLONG = 3
    ULLONG = 4
    DOUBLE = 5
    BOOLEAN = 6
    STRING = 7


_TYPES: Final[dict[int, Type[int] | Type[float] | Type[str]]] = {
    ParamType.INT: INT,
    ParamType.UINT: UINT,
    ParamType.LLONG: HYPER,
    ParamType.ULLONG: UHYPER,
    ParamType.DOUBLE: Double(),
    ParamType.BOOLEAN: INT,
    ParamType.STRING: STRING,
}


class Typed(Type[tuple[ParamType, Value]]):
    """A value with its type in front of it."""

    least = 8

    def read(self, reader: Reader) -> tuple[ParamType, Value]:
        """Return the next value and its type."""
        number = INT.read(reader)
        kind = _TYPES.get(number)
        if kind is None:
            raise undecodable(f"It has a parameter of type {number}.")
        value = kind.read(reader)
        return ParamType(number), bool(value) if number == ParamType.BOOLEAN else value

    def write(self, out: bytearray, value: tuple[ParamType, Value]) -> None:
        """Append a type and a value."""
        number, content = value
        INT.write(out, number)
        kind: Type[Value] = _TYPES[number]  # type: ignore[assignment]
        kind.write(out, content)


class TypedParam(Record):
    """One parameter."""

    field: String
    value: Annotated[tuple[ParamType, Value], Typed()]
