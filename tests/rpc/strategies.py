"""Values for every record of every program, derived from what the records say of themselves."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from hypothesis import strategies as st

from storaged.rpc import (
    admin,
    extension,
    images,
    remote,
    remoteerror,
    storage,
    streams,
    typedparam,
)
from storaged.rpc.record import Nested, Record
from storaged.rpc.typedparam import ParamType, Typed
from storaged.rpc.xdr import Array, Chars, Double, Fixed, Maybe, Number, Opaque, Text, Type

MODULES: tuple[ModuleType, ...] = (
    admin,
    extension,
    images,
    remote,
    remoteerror,
    storage,
    streams,
    typedparam,
)
RECORDS: tuple[type[Record], ...] = tuple(
    found
    for module in MODULES
    for found in vars(module).values()
    if isinstance(found, type) and issubclass(found, Record) and found.__module__ == module.__name__
)

_BOUNDS = {"i": (-(2**31), 2**31 - 1), "I": (0, 2**32 - 1)}
_BOUNDS |= {"q": (-(2**63), 2**63 - 1), "Q": (0, 2**64 - 1)}
#: what any C program may send: also bytes that are no UTF-8, but no NUL
TEXTS = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=20) | st.binary(
    max_size=20
).map(lambda data: data.replace(b"\0", b"").decode("utf-8", "surrogateescape"))
FLOATS = st.floats(allow_nan=False)


def numbers(code: str) -> st.SearchStrategy[int]:
    return st.integers(*_BOUNDS[code])


def values(kind: Type[Any]) -> st.SearchStrategy[Any]:
    """Return the values that can stand where *kind* stands."""
    match kind:
        case Number():
            return numbers(kind.code)
        case Double():
            return FLOATS
        case Text():
            return TEXTS
        case Opaque() | Chars():
            return st.binary(max_size=20)
        case Fixed():
            return st.binary(min_size=kind.length, max_size=kind.length)
        case Maybe():
            return st.none() | values(kind.item)
        case Array():
            return st.lists(values(kind.item), max_size=3).map(tuple)
        case Nested():
            return records(kind.kind)
        case Typed():
            return _typed()
    raise TypeError(f"no values for {kind}")


def records(kind: type[Record]) -> st.SearchStrategy[Any]:
    """Return records of one class."""
    fields = [values(each) for each in kind.field_types().values()]
    return st.tuples(*fields).map(lambda found: kind(*found))


def _typed() -> st.SearchStrategy[tuple[ParamType, Any]]:
    each: dict[ParamType, st.SearchStrategy[Any]] = {
        ParamType.INT: numbers("i"),
        ParamType.UINT: numbers("I"),
        ParamType.LLONG: numbers("q"),
        ParamType.ULLONG: numbers("Q"),
        ParamType.DOUBLE: FLOATS,
        ParamType.BOOLEAN: st.booleans(),
        ParamType.STRING: TEXTS,
    }
    assert set(each) == set(ParamType)
    return st.sampled_from(ParamType).flatmap(lambda kind: st.tuples(st.just(kind), each[kind]))
