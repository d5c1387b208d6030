"""Policies of pools: kept in TOML beside libvirt's files, never at a person's expense."""

from __future__ import annotations

import os
import tomllib
from datetime import timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged.errors import ConfigUnsupported, InternalError, InvalidArgument, SystemFailure
from storaged.paths import Paths
from storaged.settings import PolicyStore, PoolPolicy, format_policy

POLICY = PoolPolicy(owner=64055, group=107, mode=0o640)


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths.below(tmp_path)


@pytest.fixture
def store(paths: Paths) -> PolicyStore:
    return PolicyStore(paths)


def put(paths: Paths, text: str | bytes, name: str = "p") -> Path:
    path = paths.policy_file(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_without_a_file_all_is_as_with_libvirt(paths: Paths, store: PolicyStore) -> None:
    assert store.load("p") == PoolPolicy(None, None, None)
    assert store.problems("p") == ()
    store.remove("p")
    assert not paths.settings.exists()


def test_round_trip(paths: Paths, store: PolicyStore) -> None:
    store.save("p", POLICY)
    assert store.load("p") == POLICY
    assert PolicyStore(paths).load("p") == POLICY
    assert store.load("q") == PoolPolicy()
    text = paths.policy_file("p").read_text()
    assert "volume-owner = 64055\nvolume-group = 107\nvolume-mode = 0o640\n" in text
    assert text.startswith("# ")


@pytest.mark.parametrize(
    "policy",
    [
        PoolPolicy(owner=0),
        PoolPolicy(group=2**32 - 2),
        PoolPolicy(mode=0),
        PoolPolicy(mode=0o777),
        PoolPolicy(thin_pool="my-pool.1"),
    ],
)
def test_parts(store: PolicyStore, policy: PoolPolicy) -> None:
    store.save("p", policy)
    assert store.load("p") == policy


def test_a_policy_that_says_nothing_leaves_no_file(paths: Paths, store: PolicyStore) -> None:
    store.save("p", POLICY)
    store.save("p", PoolPolicy())
    assert not paths.policy_file("p").exists()


@pytest.mark.parametrize(
    ("owner", "group", "mode", "text"),
    [
        (-1, None, None, "owner of new volumes out of range: -1"),
        (2**32 - 1, None, None, "owner"),
        (None, -2, None, "group"),
        (None, None, 0o1777, "mode of new volumes out of range: 0o1777"),
        (None, None, -1, "mode"),
    ],
)
def test_impossible_policies(
    owner: int | None, group: int | None, mode: int | None, text: str
) -> None:
    with pytest.raises(InvalidArgument, match=text):
        PoolPolicy(owner, group, mode)


@pytest.mark.parametrize("name", ["", "vg/pool"])
def test_impossible_thin_pools(name: str) -> None:
    with pytest.raises(InvalidArgument, match="is no name of a thin pool"):
        PoolPolicy(thin_pool=name)


def test_a_thin_pool_must_be_a_name(paths: Paths, store: PolicyStore) -> None:
    put(paths, "thin-pool = 3\n")
    assert "'thin-pool' must be a name, not 3" in store.problems("p")[0]


def test_unknown_keys_are_kept_and_reported(paths: Paths, store: PolicyStore) -> None:
    path = put(paths, 'volume-mode = 0o600\ncolour = "blue"\n[later]\nwhen = 2030-01-01\n')
    assert store.load("p") == PoolPolicy(mode=0o600)
    problems = store.problems("p")
    assert len(problems) == 2
    assert all(str(path) in problem for problem in problems)
    assert "'colour'" in problems[0]
    store.save("p", POLICY)
    assert store.load("p") == POLICY
    table = tomllib.loads(path.read_text())
    assert table["colour"] == "blue"
    assert str(table["later"]["when"]) == "2030-01-01"
    assert store.problems("p") == problems
    store.save("p", PoolPolicy())
    assert set(tomllib.loads(path.read_text())) == {"colour", "later"}


BROKEN = {
    "not TOML": "volume-mode = ",
    "not UTF-8": b"volume-mode = 1 # \xff",
    "wrong type": 'volume-owner = "qemu"',
    "a truth": "volume-owner = true",
    "a fraction": "volume-mode = 1.5",
    "too large": "volume-mode = 0o7777",
    "negative": "volume-group = -1",
    "deep": "a = " + "[" * 20000,
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_is_reported_and_left_alone(
    paths: Paths, store: PolicyStore, text: str | bytes
) -> None:
    path = put(paths, text)
    before = path.read_bytes()
    assert store.load("p") == PoolPolicy()
    (problem,) = store.problems("p")
    assert problem.startswith(f"{path}: ")
    with pytest.raises(ConfigUnsupported) as caught:
        store.save("p", POLICY)
    assert str(path) in (caught.value.advice or "")
    assert path.read_bytes() == before
    store.remove("p")
    assert not path.exists()


def test_what_is_no_file(paths: Paths, store: PolicyStore) -> None:
    path = put(paths, "")
    path.unlink()
    os.mkfifo(path)
    assert store.load("p") == PoolPolicy()
    assert store.problems("p") == (f"'{path}' is not a regular file",)
    with pytest.raises(SystemFailure):
        store.save("p", POLICY)
    assert path.is_fifo()


def test_read_only(paths: Paths, store: PolicyStore) -> None:
    store.save("p", POLICY)
    looking = PolicyStore(paths, readonly=True)
    assert looking.load("p") == POLICY
    with pytest.raises(InternalError, match="read-only"):
        looking.save("p", PoolPolicy())
    with pytest.raises(InternalError, match="read-only"):
        looking.remove("p")
    assert store.load("p") == POLICY


def test_names_do_not_lead_out(store: PolicyStore) -> None:
    with pytest.raises(InvalidArgument):
        store.save("../../etc/passwd", POLICY)
    store.save("..", POLICY)
    assert store.load("..") == POLICY


texts = st.text(st.characters(exclude_categories=["Cs"]))
minutes = st.integers(-1439, 1439)
values = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | texts
    | st.dates()
    | st.times()
    | st.datetimes(
        timezones=st.none() | minutes.map(lambda east: timezone(timedelta(minutes=east)))
    ),
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(texts.filter(lambda key: key != "volume-mode"), values))
def test_whatever_a_person_wrote_survives(table: dict[str, object]) -> None:
    read = tomllib.loads(format_policy(table))
    assert read == table
    assert list(read) == list(table)
