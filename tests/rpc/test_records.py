"""Every record of every program: what is written can be read, and reading does no harm."""

from __future__ import annotations

import tracemalloc
from contextlib import suppress
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged.rpc.errors import RPCError
from storaged.rpc.record import Nested, Record, Void
from storaged.rpc.storage import (
    LIST_MAX,
    ListVolsRet,
    Names,
    PoolFlagsArgs,
    PoolInfoRet,
    StoragePool,
    StorageVol,
)
from storaged.rpc.xdr import Array, Int, String
from tests.rpc.strategies import RECORDS, records

UUID = bytes(range(16))
FEW = settings(max_examples=15, deadline=None)


def test_records_are_found() -> None:
    assert len(RECORDS) > 80
    assert len({kind.__qualname__ for kind in RECORDS if kind.__module__.endswith("storage")}) > 30


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_round_trip(kind: type[Record]) -> None:
    @FEW
    @given(records(kind), st.binary(max_size=8))
    def check(record: Record, more: bytes) -> None:
        packed = record.pack()
        assert len(packed) % 4 == 0
        again = kind.unpack(packed + more)
        assert again == record
        assert hash(again) == hash(record)
        assert again.pack() == packed
        if packed:
            with pytest.raises(RPCError):
                kind.unpack(packed[:-1])

    check()


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_noise(kind: type[Record]) -> None:
    """Whatever comes is a record or an `RPCError`; what is a record can be written again."""

    @FEW
    @given(st.data())
    def check(data: st.DataObject) -> None:
        noise = data.draw(st.binary(max_size=200))
        if data.draw(st.booleans()):
            good = bytearray(data.draw(records(kind)).pack())
            for _ in range(data.draw(st.integers(0, 3)) if good else 0):
                good[data.draw(st.integers(0, len(good) - 1))] ^= data.draw(st.integers(1, 255))
            noise = bytes(good)
        try:
            found = kind.unpack(noise)
        except RPCError:
            return
        assert len(found.pack()) <= len(noise) + 3

    check()


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_names_of_fields_hide_nothing(kind: type[Record]) -> None:
    assert not set(kind.field_types()) & set(dir(Record))


def test_too_many_items_take_no_memory() -> None:
    promise = LIST_MAX.to_bytes(4, "big") + bytes(64)
    for kind in (Names, ListVolsRet):
        with pytest.raises(RPCError):
            kind.unpack(promise)
        tracemalloc.start()
        with pytest.raises(RPCError):
            kind.unpack(promise)
        assert tracemalloc.get_traced_memory()[1] < 20_000
        tracemalloc.stop()
    with pytest.raises(RPCError) as caught:
        Names.unpack((LIST_MAX + 1).to_bytes(4, "big") + bytes(4 * LIST_MAX + 4))
    assert caught.value.advice == "It has 16385 items where 16384 are the most."


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_memory_is_bounded_by_what_comes(kind: type[Record]) -> None:
    """A payload of one word again and again has it as the count of every array and string.

    One of a count and nothings is what gives the most objects for its bytes.
    """
    words = [word.to_bytes(4, "big") for word in (0, 1, 2, 3, 64, LIST_MAX, 1 << 31)]
    payloads = [word * 4096 for word in words]
    payloads += [count.to_bytes(4, "big") + bytes(1 << 14) for count in (60, 500, 1000, 4000)]
    for payload in payloads:
        tracemalloc.start()
        with suppress(RPCError):
            kind.unpack(payload)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 40 * len(payload), payload[:8]


def test_items_of_nothing_are_bounded() -> None:
    class Nothings(Record):
        items: Annotated[tuple[Void, ...], Array(Nested(Void), 1 << 31)]

    with pytest.raises(RPCError):
        Nothings.unpack(b"\x7f\xff\xff\xff" + bytes(100))


def test_values() -> None:
    pool = StoragePool("p", UUID)
    assert pool == StoragePool(name="p", uuid=UUID) == StoragePool("p", uuid=UUID)
    assert pool != StoragePool("q", UUID)
    assert pool != StorageVol("p", "v", "k")
    assert PoolFlagsArgs(pool) == PoolFlagsArgs(pool, 0) == PoolFlagsArgs(flags=0, pool=pool)
    assert repr(PoolFlagsArgs(pool)) == f"PoolFlagsArgs(pool={pool!r}, flags=0)"
    assert {pool: 1}[StoragePool("p", UUID)] == 1
    with pytest.raises(AttributeError):
        pool.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ((), {}),
        (("p",), {}),
        (("p", UUID, 1), {}),
        (("p",), {"nope": UUID}),
        ((), {"nope": 1, "name": "p"}),
        (("p", UUID), {"name": "q"}),
        (("p", UUID), {"nope": 1}),
    ],
)
def test_wrong_fields(values: tuple[Any, ...], named: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="StoragePool"):
        StoragePool(*values, **named)


def test_subclass_appends() -> None:
    class Base(Record):
        first: Int

    class More(Base):
        second: String = "x"

    assert More(1).pack() == b"\0\0\0\1\0\0\0\1x\0\0\0"
    assert list(More.field_types()) == ["first", "second"]


def test_unfit_numbers_name_their_record() -> None:
    with pytest.raises(RPCError) as caught:
        PoolInfoRet(2, -1, 0, 0).pack()
    assert caught.value.message == "Unable to encode message payload"
    assert (caught.value.advice or "").startswith("PoolInfoRet: ")


def test_field_without_a_type() -> None:
    class Wrong(Record):
        field: int

    with pytest.raises(TypeError, match="does not say"):
        Wrong(1).pack()
