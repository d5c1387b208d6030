"""Declared messages: a class says what is in one, and serves for writing and for reading it.

::

    class StoragePool(Record):
        name: String
        uuid: UuidBytes

    class PoolCreateArgs(Record):
        pool: StoragePool
        flags: UInt = 0

A field is annotated with an `xdr` type, with another record, or with ``Annotated[..., TYPE]`` for
what is special, such as ``Annotated[tuple[StoragePool, ...], Array(Nested(StoragePool), 16384)]``.
Records are values: they cannot be changed, and two with equal fields are equal.

They are no dataclasses because the making of a hundred dataclasses takes longer than a command
of the client may; the layouts here are made when a record is first written or read.
"""

from __future__ import annotations

import struct
import sys
from typing import (
    Annotated,
    Any,
    ClassVar,
    Generic,
    Self,
    TypeVar,
    dataclass_transform,
    get_args,
    get_origin,
)

from storaged.rpc.xdr import Reader, Type, unencodable


@dataclass_transform(frozen_default=True)
class Record:
    """Base of all records. A subclass of a record appends its fields to those of its base."""

    _fields: ClassVar[tuple[str, ...]] = ()
    _steps: ClassVar[tuple[_Step, ...] | None] = None

    def __init_subclass__(cls) -> None:
        own = cls.__dict__.get("__annotations__", {})  # noqa: RUF063 -- inspect is slow to import
        cls._fields = (*cls._fields, *own)
        cls._steps = None

    def __init__(self, *values: Any, **named: Any) -> None:
        fields = self._fields
        if named or len(values) != len(fields):
            values = _completed(type(self), values, named)
        # as many of one as of the other; to have zip check that takes a quarter of all this
        self.__dict__.update(zip(fields, values))  # noqa: B905

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be changed")

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self._fields)

    def __hash__(self) -> int:
        return hash(tuple(getattr(self, name) for name in self._fields))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._fields)
        return f"{type(self).__name__}({shown})"

    def pack(self) -> bytes:
        """Return the record as it stands in a message.

        :raise RPCError: a value does not fit its field.
        """
        out = bytearray()
        self.write(out)
        return bytes(out)

    def write(self, out: bytearray) -> None:
        """Append the record to a message."""
        steps = self._steps
        for step in self._plan() if steps is None else steps:
            step.write(out, self)

    @classmethod
    def unpack(cls, data: bytes, at: int = 0) -> Self:
        """Read a record from the payload of a message; bytes behind it are ignored.

        :raise RPCError: the payload is too short, or breaks the bounds of a field.
        """
        return cls.read(Reader(data, at))

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read a record from where *reader* stands."""
        self = cls.__new__(cls)
        state = self.__dict__
        steps = cls._steps
        for step in cls._plan() if steps is None else steps:
            step.read(reader, state)
        return self

    @classmethod
    def field_types(cls) -> dict[str, Type[Any]]:
        """Return the type of each field, in the order of the fields."""
        found = {}
        for base in reversed(cls.__mro__):
            module = vars(sys.modules[base.__module__])
            annotations = base.__dict__.get("__annotations__", {})  # noqa: RUF063 -- as above
            for name, annotation in annotations.items():
                if name in cls._fields:
                    found[name] = _type(annotation, module)
        return found

    @classmethod
    def _plan(cls) -> tuple[_Step, ...]:
        """Make the layout, when a record of this class is first written or read."""
        steps = cls._steps = tuple(_planned(cls.field_types()))
        return steps


def _completed(
    kind: type[Record], values: tuple[Any, ...], named: dict[str, Any]
) -> tuple[Any, ...]:
    """Return the values of all fields, from what a caller gave and the defaults.

    :raise TypeError: one is missing, given twice, or of no field.
    """
    fields = kind._fields
    further = fields[len(values) :]
    wrong = named.keys() - set(further)
    if wrong or len(values) > len(fields):
        raise TypeError(f"{kind.__name__} takes {', '.join(fields)} once each")
    found = list(values)
    for name in further:
        if name not in named and not hasattr(kind, name):
            raise TypeError(f"{kind.__name__} lacks {name}")
        found.append(named[name] if name in named else getattr(kind, name))
    return tuple(found)


class Secretive(Record):
    """A record with a passphrase in it: its text shows none of its fields."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(...)"


class Void(Record):
    """Nothing: what a procedure takes that has no arguments, or gives that returns nothing."""


R = TypeVar("R", bound=Record)


class Nested(Type[R], Generic[R]):
    """A record within a record."""

    def __init__(self, kind: type[R]) -> None:
        self.kind = kind
        self._least = 0

    @property
    def least(self) -> int:  # type: ignore[override]
        """How many bytes it takes at least; known once all records are declared.

        A record without fields counts as one byte, so that even of these there cannot be more than
        there are bytes.
        """
        if not self._least:
            types = self.kind.field_types().values()
            self._least = max(sum(item.least for item in types), 1)
        return self._least

    def read(self, reader: Reader) -> R:
        """Return the next record."""
        return self.kind.read(reader)

    def write(self, out: bytearray, value: R) -> None:
        """Append a record."""
        value.write(out)


class _Numbers:
    """Neighbouring numbers, written and read in one go."""

    def __init__(self, names: tuple[str, ...], codes: str) -> None:
        self._names = names
        self._layout = struct.Struct(">" + codes)

    def read(self, reader: Reader, state: dict[str, Any]) -> None:
        state.update(zip(self._names, reader.unpack(self._layout)))  # noqa: B905 -- as above

    def write(self, out: bytearray, record: Record) -> None:
        state = record.__dict__
        try:
            out += self._layout.pack(*[state[name] for name in self._names])
        except (struct.error, OverflowError) as err:
            raise unencodable(f"{type(record).__name__}: {err}.") from err


class _One:
    """One field that is more than a number."""

    def __init__(self, name: str, kind: Type[Any]) -> None:
        self._name = name
        self._kind = kind

    def read(self, reader: Reader, state: dict[str, Any]) -> None:
        state[self._name] = self._kind.read(reader)

    def write(self, out: bytearray, record: Record) -> None:
        self._kind.write(out, record.__dict__[self._name])


_Step = _Numbers | _One


def _planned(types: dict[str, Type[Any]]) -> list[_Step]:
    steps: list[_Step] = []
    names: list[str] = []
    codes = ""
    for name, kind in types.items():
        if kind.code:
            names.append(name)
            codes += kind.code
            continue
        if names:
            steps.append(_Numbers(tuple(names), codes))
            names, codes = [], ""
        steps.append(_One(name, kind))
    if names:
        steps.append(_Numbers(tuple(names), codes))
    return steps


def _type(annotation: Any, module: dict[str, Any]) -> Type[Any]:
    """Return what an annotation says of how its field stands in a message."""
    if isinstance(annotation, str):
        annotation = eval(annotation, module)  # noqa: S307 -- the text of our own source
    if get_origin(annotation) is Annotated:
        kind = get_args(annotation)[1]
        if isinstance(kind, Type):
            return kind
    if isinstance(annotation, type) and issubclass(annotation, Record):
        return Nested(annotation)
    raise TypeError(f"{annotation!r} does not say how it stands in a message")
