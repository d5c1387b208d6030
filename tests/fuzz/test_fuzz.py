"""A short run of the fuzzer on every target, and all that longer runs ever found."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest

from storaged.formats.errors import CorruptImage
from tests.fuzz import loop
from tests.fuzz.loop import CORPUS, TooSlow, file_name, fuzz, run_one
from tests.fuzz.mutator import MAX_LENGTH, Mutator
from tests.fuzz.targets import Target, targets

TARGETS = targets()
CRASHERS = sorted(path for path in CORPUS.iterdir() if path.name != "README")


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_a_short_run(name: str) -> None:
    outcome = fuzz(TARGETS[name], seed=1, more=lambda done: done < 1500, found=lambda _: None)
    assert [repr(err) for _, err in outcome.crashers] == []
    assert outcome.kept > 5  # it gets somewhere


def test_what_was_found_stays_mended() -> None:
    """Every crasher goes to every target: it is cheap, and bugs have relatives."""
    for path in CRASHERS:
        for target in TARGETS.values():
            run_one(target, path.read_bytes())


def test_crashers_belong_to_targets() -> None:
    for path in CRASHERS:
        name = path.name.rpartition("-")[0]
        assert name in TARGETS
        assert path.name == file_name(name, path.read_bytes())
        assert path.stat().st_size <= MAX_LENGTH


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_sound(name: str) -> None:
    """They are small, and most of them get through: else damage would find closed doors."""
    images = list(TARGETS[name].seeds())
    assert all(len(image) <= MAX_LENGTH for image in images)
    words = [run_one(TARGETS[name], image) for image in images]
    assert sum("Error" in word or "Corrupt" in word for word in words) * 4 <= 3 * len(words)


def test_the_same_seed_makes_the_same_images() -> None:
    images = [bytes(600), b"storaged" * 100]
    runs = []
    for _ in range(2):
        mutator = Mutator(Random(5), images)
        runs.append([mutator.mutate(images[number % 2]) for number in range(300)])
    assert runs[0] == runs[1]
    assert len(set(runs[0])) > 200


def test_mutants_of_nothing() -> None:
    mutator = Mutator(Random(1), [b""])
    for _ in range(300):
        assert len(mutator.mutate(b"")) <= MAX_LENGTH


def _bad(image: bytes) -> str:
    if image.startswith(b"\xff"):
        raise ValueError("a bug")
    if image.startswith(b"\x01"):
        raise CorruptImage("no bug")
    return "fine"


def _endless(image: bytes) -> str:
    while True:
        pass


def _seeds() -> Iterator[bytes]:
    yield bytes(64)


def test_bugs_are_found_and_told_once() -> None:
    found: list[bytes] = []
    target = Target(_bad, _seeds)
    outcome = fuzz(target, seed=3, more=lambda done: done < 3000, found=found.append)
    assert len(found) == len(outcome.crashers) == 1
    assert found[0].startswith(b"\xff")
    assert outcome.images == 3000


def test_an_endless_loop_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "MAX_SECONDS", 0.05)
    with pytest.raises(TooSlow):
        run_one(Target(_endless, _seeds), b"")
