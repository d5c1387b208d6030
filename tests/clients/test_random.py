"""Random sequences of calls through python3-libvirt: both daemons answer the same."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.clients import virsh
from tests.clients.daemons import Daemons, Served
from tests.clients.differences import compare, difference
from tests.clients.peers import Peers, open_peers
from tests.clients.scenarios import operations
from tests.clients.sequences import Operation, Sequence

LENGTH = 120
QUICK = range(1, 9)
SLOW = range(100, 160)


@pytest.fixture(scope="module")
def peers(daemons: Daemons) -> Iterator[Peers]:
    with open_peers(operations, daemons) as running:
        yield running


def clean(served: Served) -> None:
    """Remove all pools and what they held."""
    _, listed = virsh.alone(served, "pool-list", "--all", "--name")
    commands = "".join(
        f"pool-destroy '{name}'; pool-undefine '{name}'; "
        for name in map(str.strip, listed.output.splitlines())
        if name
    )
    if commands:
        with virsh.start(served, commands) as process:
            process.communicate(timeout=60)
    place = served.directory / "random"
    if place.exists():
        shutil.rmtree(place)
    place.mkdir()


#: What libvirt's client says when its daemon has answered a call twice, as it may do after the
#: error of an upload; the connection is of no use from then on.
STRAY = "no call waiting for reply"


def failed(answer: object) -> bool:
    """Whether an answer is code, domain and text of an error."""
    return isinstance(answer, list) and len(answer) == 3 and isinstance(answer[2], str)


def compared(peers: Peers, daemons: Daemons, sequence: list[Operation]) -> int:
    """Do a sequence on both daemons, compare their answers, and return how many were.

    Where one does what the other refuses, on purpose, their states differ from then on: no more
    is compared.
    """
    for served in daemons:
        clean(served)
    answers = zip(sequence, *peers.both("perform", sequence), strict=True)
    for number, (operation, theirs, ours) in enumerate(answers):
        place = f"random: {number:03} {' '.join(str(part) for part in operation)}"
        if failed(theirs) and STRAY in theirs[2]:
            return number
        if failed(theirs) != failed(ours):
            assert difference(place, theirs, ours) is not None, (place, theirs, ours)
            return number
        compare(place, theirs, ours)
    return len(sequence)


@pytest.mark.parametrize("seed", QUICK)
def test_sequence(peers: Peers, daemons: Daemons, seed: int) -> None:
    compared(peers, daemons, Sequence(seed).operations(LENGTH))


@pytest.mark.slow
def test_many_sequences(peers: Peers, daemons: Daemons) -> None:
    counts = [compared(peers, daemons, Sequence(seed).operations(LENGTH)) for seed in SLOW]
    assert sum(counts) > len(counts) * LENGTH / 2


def test_the_generator_is_worth_it(peers: Peers, daemons: Daemons) -> None:
    """Enough calls of a sequence succeed, and enough fail, for the comparison to mean something."""
    for served in daemons:
        clean(served)
    done = peers.ours.run("perform", Sequence(1).operations(300))
    errors = [answer for answer in done if failed(answer)]
    assert 0.2 < len(errors) / len(done) < 0.8
    assert len({answer[0] for answer in errors}) > 5
