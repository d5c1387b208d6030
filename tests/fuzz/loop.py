"""The fuzzer's loop: run a target on one mutant after the other, watch time and memory."""

from __future__ import annotations

import hashlib
import re
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType
from typing import TYPE_CHECKING

from storaged.formats.errors import FormatError
from tests.fuzz.mutator import Mutator

if TYPE_CHECKING:  # atheris has to load the formats itself
    from tests.fuzz.targets import Target

#: Crashers that were found once; a test runs them all.
CORPUS = Path(__file__).parent / "corpus"
#: What an image may cost: seconds of processor time, bytes of memory.
MAX_SECONDS = 1.0
MAX_MEMORY = 96 << 20
#: In a message, what differs from image to image.
_OWN = re.compile(r"'.*'|0x[0-9a-f]+|[0-9]+")
#: Images kept because something new became of them.
_MOST_KEPT = 1000


class TooSlow(Exception):
    """An image took more than `MAX_SECONDS`."""


class TooLarge(Exception):
    """An image took more than `MAX_MEMORY`."""


@dataclass
class Outcome:
    """What a run found: the number of images, and the crashers with what they raised."""

    images: int = 0
    kept: int = 0
    crashers: list[tuple[bytes, Exception]] = field(default_factory=list)


@contextmanager
def watched() -> Iterator[None]:
    """Raise in a block that takes too long or too much."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()

    def expire(number: int, frame: FrameType | None) -> None:
        raise TooSlow

    old = signal.signal(signal.SIGPROF, expire)
    signal.setitimer(signal.ITIMER_PROF, 4 * MAX_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, old)
    taken = time.process_time() - start
    if taken > MAX_SECONDS:
        raise TooSlow(f"{taken:.2f} s")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    if grown << 10 > MAX_MEMORY:
        raise TooLarge(f"{grown >> 10} MiB")


def run_one(target: Target, image: bytes) -> str:
    """Run a target on one image; return in words what became of it.

    :raise Exception: the target breaks a promise.
    """
    with watched():
        try:
            return target.run(image)
        except (FormatError, OSError) as err:
            return f"{type(err).__name__}; {err}"


def fuzz(
    target: Target, *, seed: int, more: Callable[[int], bool], found: Callable[[bytes], None]
) -> Outcome:
    """Damage images and run the target on them.

    :param more: called with the number of images so far; False ends the run.
    :param found: called with each crasher.
    """
    random = Random(seed)
    pool = list(target.seeds())
    mutator = Mutator(random, list(pool))
    known = set().union(*(_shapes(run_one(target, image)) for image in pool))
    outcome, raised = Outcome(), set()
    while more(outcome.images):
        # What is new has more to tell: half of all mutants come of the last ones.
        recent = pool[-32:] if random.random() < 0.5 else pool
        image = mutator.mutate(random.choice(recent))
        outcome.images += 1
        try:
            shapes = _shapes(run_one(target, image))
        except Exception as err:
            place = _place(err)
            if place not in raised:
                raised.add(place)
                outcome.crashers.append((image, err))
                found(image)
            continue
        if not shapes <= known and len(pool) < _MOST_KEPT:
            known |= shapes
            pool.append(image)
            outcome.kept += 1
    return outcome


def _shapes(words: str) -> set[str]:
    """Return the kinds of what became of an image: the texts without what is its own."""
    return {_OWN.sub("#", text)[:60] for text in words.split("; ")}


def _place(err: Exception) -> tuple[str, int]:
    """Return what was raised and where: the same bug is told once."""
    trace = err.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or isinstance(err, TooSlow | TooLarge):
        return type(err).__name__, 0
    return f"{type(err).__name__} {trace.tb_frame.f_code.co_qualname}", trace.tb_lineno


def file_name(target: str, image: bytes) -> str:
    """Return a crasher's name in the corpus: its target and a part of its hash."""
    return f"{target}-{hashlib.sha256(image).hexdigest()[:12]}"
