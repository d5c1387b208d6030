"""The KEEPALIVE program: telling a silent peer from a dead one.

Whoever gets a PING answers with a PONG, whatever else the connection is doing. PINGs are sent only
to a peer that asked for them: other clients neither expect nor answer them. The `Timer` decides
when; it has no clock of its own, so the caller says what time it is.

Source: libvirt's keepalive protocol.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from storaged.rpc.packet import Header, Kind, pack
from storaged.rpc.program import KEEPALIVE, VERSION

_PING: Final = 1
_PONG: Final = 2

#: The packets themselves; they are always the same.
PING: Final = pack(KEEPALIVE, _PING, Kind.MESSAGE, 0)
PONG: Final = pack(KEEPALIVE, _PONG, Kind.MESSAGE, 0)


def answer(header: Header) -> bytes | None:
    """Return what to send for a packet of this program: `PONG` for a PING, None for all others.

    What is no message of version 1 is no PING. As a call it is a call of an unknown program, which
    the caller has to refuse like any other.
    """
    if (
        header.program == KEEPALIVE
        and header.version == VERSION
        and header.kind == Kind.MESSAGE
        and header.procedure == _PING
    ):
        return PONG
    return None


class Action(Enum):
    """What to do now."""

    WAIT = "wait"
    #: send a `PING`
    PING = "ping"
    #: the peer is dead: close the connection
    GIVE_UP = "give up"


class Timer:
    """Watches how long a peer has been silent.

    ::

        timer = Timer(5, 5, now)
        timer.heard(now)                    # for every packet that comes
        action = timer.look(now)            # no later than timer.next

    After *interval* seconds of silence a PING is due, then another one every *interval* seconds.
    When *count* of them have got nothing for *interval* seconds, the peer is given up; a count of 0
    gives it up without any. An interval of 0 or less never does anything.

    While we do not read from the peer, because it sends faster than storage takes it, its silence
    means nothing: between `pause` and `resume` it is never given up. PINGs go on, because they tell
    the peer that we live, whose own PINGs lie unread.
    """

    def __init__(self, interval: float, count: int, now: float) -> None:
        self.interval = interval
        self.count = count
        self._since = now
        self._unanswered = 0
        self._paused = False

    @property
    def next(self) -> float | None:
        """When `look` may have something to say; None for never."""
        return self._since + self.interval if self.interval > 0 else None

    def heard(self, now: float) -> None:
        """Take note that a packet came, of whatever kind."""
        self._since = now
        self._unanswered = 0

    def pause(self) -> None:
        """Take note that we have stopped reading from the peer."""
        self._paused = True

    def resume(self, now: float) -> None:
        """Take note that we read again: the peer has all its time from now on."""
        if self._paused:
            self._paused = False
            self.heard(now)

    def look(self, now: float) -> Action:
        """Say what to do now. A PING that is due once is not due again before `next`."""
        due = self.next
        if due is None or now < due:
            return Action.WAIT
        if self._paused:
            self._since = now
            return Action.PING
        if self._unanswered >= self.count:
            return Action.GIVE_UP
        self._unanswered += 1
        self._since = now
        return Action.PING
