"""The timer of pings, on a clock of the test's own."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from storaged.rpc.keepalive import Action, Timer

WAIT, PING, GIVE_UP = Action.WAIT, Action.PING, Action.GIVE_UP


def looked(timer: Timer, times: int) -> list[tuple[float, Action]]:
    """Look whenever something may be due, and say when that was and what it was."""
    found = []
    for _ in range(times):
        now = timer.next
        assert now is not None
        assert timer.look(now - 0.001) is WAIT
        found.append((now, timer.look(now)))
    return found


def test_silence() -> None:
    timer = Timer(5, 2, 100)
    assert looked(timer, 3) == [(105, PING), (110, PING), (115, GIVE_UP)]


def test_any_packet_counts() -> None:
    timer = Timer(5, 2, 100)
    assert looked(timer, 2) == [(105, PING), (110, PING)]
    timer.heard(114)
    assert timer.next == 119
    assert looked(timer, 3) == [(119, PING), (124, PING), (129, GIVE_UP)]


def test_no_pings_at_all() -> None:
    timer = Timer(5, 0, 0)
    assert looked(timer, 1) == [(5, GIVE_UP)]


def test_disabled() -> None:
    for interval in (0, -1):
        timer = Timer(interval, 5, 0)
        assert timer.next is None
        assert timer.look(10**9) is WAIT


def test_late_look_sends_one_ping() -> None:
    """After a stall of ours, the peer gets its time before it counts as dead."""
    timer = Timer(5, 1, 0)
    assert timer.look(1000) is PING
    assert timer.look(1000) is WAIT
    assert timer.next == 1005
    assert timer.look(1005) is GIVE_UP


def test_pause() -> None:
    """Who is not read from is not given up, and hears from us."""
    timer = Timer(5, 1, 0)
    timer.pause()
    assert looked(timer, 4) == [(5, PING), (10, PING), (15, PING), (20, PING)]
    timer.resume(22)
    assert looked(timer, 2) == [(27, PING), (32, GIVE_UP)]


def test_resume_without_pause_changes_nothing() -> None:
    timer = Timer(5, 1, 0)
    timer.resume(4)
    assert timer.next == 5


@given(
    st.lists(st.tuples(st.sampled_from("hlpr"), st.floats(0, 3, allow_nan=False)), max_size=60),
    st.integers(0, 4),
)
@settings(deadline=None)
def test_only_the_silent_are_given_up(steps: list[tuple[str, float]], count: int) -> None:
    now, timer = 0.0, Timer(2, count, 0.0)
    heard, paused, pings = 0.0, False, 0
    for what, pause in steps:
        now += pause
        if what == "h":
            timer.heard(now)
            heard, pings = now, 0
        elif what == "p":
            timer.pause()
            paused = True
        elif what == "r":
            timer.resume(now)
            if paused:
                heard, paused, pings = now, False, 0
        else:
            action = timer.look(now)
            if action is GIVE_UP:
                assert not paused
                assert now - heard >= 2 * (count + 1)
                assert pings >= count
                return
            if action is PING:
                assert now - heard >= 2
                pings += 1
