"""What its administration needs to see and to change of a daemon."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from storaged.rpc.identity import Identity
from storaged.server.limits import ServerLimits
from storaged.server.workers import WorkerFigures


@dataclass(frozen=True, slots=True)
class ClientView:
    """One client of a server at one moment.

    :param id: its number; none is used twice.
    :param since: when it connected, in seconds since 1970.
    """

    id: int
    since: int
    readonly: bool
    identity: Identity


class Administered(Protocol):
    """A server as its administration sees it. All of it may be called from any thread."""

    @property
    def limits(self) -> ServerLimits:
        """The limits that hold."""
        ...

    def set_limits(self, limits: ServerLimits) -> None:
        """Have other limits hold from now on; nobody is sent away."""
        ...

    def worker_figures(self) -> WorkerFigures:
        """Return the threads and their work."""
        ...

    def clients(self) -> list[ClientView]:
        """Return the clients, the oldest first."""
        ...

    def anonymous(self) -> int:
        """Return how many clients have not proved who they are."""
        ...

    def close_client(self, number: int) -> bool:
        """Send a client away; tell whether there was one with this number."""
        ...


class LogControl(Protocol):
    """The log of the process."""

    def filters_text(self) -> str:
        """Return the filters as a configuration would have them."""
        ...

    def outputs_text(self) -> str:
        """Return the outputs as a configuration would have them."""
        ...

    def set_filters(self, text: str | None) -> None:
        """Take other filters; None takes all away."""
        ...

    def set_outputs(self, text: str | None) -> None:
        """Take other outputs; None means the default one."""
        ...
