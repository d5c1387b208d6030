"""Long lists are the same messages as other lists."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged.rpc.storage import ListVolsRet, StorageVol
from storaged.service.volumelist import VolumeList

#: What the names of files come to: any bytes but NUL.
NAMES = st.binary(max_size=40).map(
    lambda data: data.replace(b"\0", b"").decode("utf-8", "surrogateescape")
)


@settings(max_examples=150, deadline=None)
@given(NAMES, st.lists(st.tuples(NAMES, NAMES), max_size=20))
def test_the_same_message(pool: str, entries: list[tuple[str, str]]) -> None:
    vols = tuple(StorageVol(pool, name, key) for name, key in entries)
    plain, found = ListVolsRet(vols, len(entries)), VolumeList(pool, entries)
    assert found.pack() == plain.pack()
    assert ListVolsRet.unpack(found.pack()) == plain
    assert found == plain
    assert plain == found
    assert hash(found) == hash(VolumeList(pool, entries))
    assert (found.vols, found.ret) == (vols, len(entries))


def test_it_is_a_record() -> None:
    found = VolumeList("p", [("v", "/p/v")])
    assert repr(found) == repr(ListVolsRet((StorageVol("p", "v", "/p/v"),), 1)).replace(
        "ListVolsRet", "VolumeList"
    )
    with pytest.raises(AttributeError):
        _ = found.names
    with pytest.raises(AttributeError):
        found.ret = 2  # type: ignore[misc]
    assert found != VolumeList("p", [("w", "/p/w")])
    assert found != 5
