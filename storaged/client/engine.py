"""An engine behind a connection: what the library's handles call, as calls of the protocol.

It fits `storaged.engine.Engine`, as the driver in this process does. What is done how depends on
the other side: `storaged.client.enginepeer`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from storaged.client.enginepeer import ExtendedPeer, Peer
from storaged.client.enginepools import RemotePools
from storaged.client.enginesecrets import RemoteSecrets
from storaged.client.enginevalues import failures
from storaged.client.enginevolumes import RemoteVolumes
from storaged.client.link import Link
from storaged.job import Job

if TYPE_CHECKING:
    from storaged.client.engineevents import RemoteEvents


class RemoteEngine(RemotePools, RemoteVolumes, RemoteSecrets):
    """The engine on the other side of a link, which it closes.

    :param is_local: whether paths there are paths here.
    """

    def __init__(self, link: Link, *, is_local: bool = True) -> None:
        peer = _peer(link)
        RemotePools.__init__(self, peer)
        RemoteVolumes.__init__(self, peer)
        RemoteSecrets.__init__(self, peer)
        self._link = link
        self._events: RemoteEvents | None = None
        self.uri = link.uri
        self.is_local = is_local

    @property
    def readonly(self) -> bool:
        """Whether nothing can be changed through it."""
        return self._link.readonly

    @property
    def closed(self) -> bool:
        """Whether the connection has ended."""
        return not self._link.alive

    @property
    def events(self) -> RemoteEvents:
        """Where to subscribe to events."""
        if self._events is None:
            from storaged.client.engineevents import RemoteEvents  # slow to load, seldom needed

            self._events = RemoteEvents(self._link)
        return self._events

    def problems(self) -> tuple[str, ...]:
        """Return which files of the state directories could not be used, and why."""
        return self._peer.problems()

    def jobs(self) -> list[Job[Any]]:
        """Return the jobs under way on the other side, the oldest first, whoever began them."""
        return self._peer.jobs()

    def job(self, number: int) -> Job[Any]:
        """Return a job under way by its id.

        :raise InvalidArgument: there is none.
        """
        return self._peer.job(number)

    def close(self) -> None:
        """Close the connection; what was begun through it and is not done is cancelled there."""
        self._peer.close()


def _peer(link: Link) -> Peer:
    if link.has_extension():
        return ExtendedPeer(link)
    from storaged.client.engineplain import PlainPeer

    return PlainPeer(link)


def connect_engine(uri: str | None, *, readonly: bool = False) -> RemoteEngine:
    """Connect to the engine that serves an URI.

    :raise StorageError: nobody does, or not for us.
    """
    from storaged.client.opening import open_link

    with failures():
        link = open_link(uri, readonly=readonly)
        try:
            return RemoteEngine(link, is_local="://" not in link.uri or _has_no_host(link.uri))
        except BaseException:
            link.close()
            raise


def _has_no_host(uri: str) -> bool:
    """Tell whether an URI names no other host: ``storage:///system``, ``storage+unix:///...``."""
    return uri.partition("://")[2].startswith("/")
