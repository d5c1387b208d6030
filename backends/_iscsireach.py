"""What the network may take forever for: looking up names, and connecting.

A resolver has no bound of its own worth the name, and neither has a host of many addresses. So
each is done on a thread that is left to itself when its time is over.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from storaged.backends._iscsiportal import Portal
from storaged.errors import OperationFailed, Timeout

if TYPE_CHECKING:
    from storaged.job import Job

#: How long a portal may take to accept a connection, its name to be looked up, in seconds.
CONNECT: Final = 5.0
#: How often a cancel is looked for, in seconds.
_SLICE: Final = 0.1

T = TypeVar("T")


def reach(portal: Portal, job: Job[Any] | None = None) -> None:
    """See that something listens at a portal: iscsiadm itself tries a dead one for minutes.

    :raise Timeout: it does not answer within `CONNECT` seconds.
    :raise OperationFailed: there is no such host, or nobody listens.
    """
    advice = (
        f"Is the target's server up, and its port open? Try: nc -vz {portal.host} {portal.port}"
    )
    place = (portal.host, portal.port)
    try:
        within(CONNECT, lambda: socket.create_connection(place, CONNECT).close(), job)
    except TimeoutError as err:
        raise Timeout(
            f"iSCSI portal {portal.address} does not answer within {CONNECT:g} s", advice=advice
        ) from err
    except (OSError, UnicodeError) as err:
        why = err.strerror if isinstance(err, OSError) else "the name is malformed"
        raise OperationFailed(
            f"iSCSI portal {portal.address} cannot be reached: {why}", advice=advice
        ) from err


def addresses(portal: Portal) -> frozenset[str]:
    """Return the addresses of a portal that is given by name; none if that takes too long."""
    try:
        found = within(
            CONNECT, lambda: socket.getaddrinfo(portal.host, None, type=socket.SOCK_STREAM)
        )
    except (OSError, UnicodeError):
        return frozenset()
    return frozenset(str(each[4][0]) for each in found)


def within(seconds: float, call: Callable[[], T], job: Job[Any] | None = None) -> T:
    """Return what a call returns, or raise what it raises.

    :raise TimeoutError: it took longer; it goes on, and nobody hears of it.
    :raise Cancelled: *job* was cancelled.
    """
    results: list[T] = []
    errors: list[Exception] = []
    ended = threading.Event()

    def run() -> None:
        try:
            results.append(call())
        except Exception as err:  # it is raised again where it is waited for
            errors.append(err)
        finally:
            ended.set()

    threading.Thread(target=run, name="storaged-iscsi-reach", daemon=True).start()
    deadline = time.monotonic() + seconds
    while not ended.wait(max(0, min(_SLICE, deadline - time.monotonic()))):
        if job is not None:
            job.checkpoint()
        if time.monotonic() >= deadline:
            raise TimeoutError(f"no answer within {seconds:g} s")
    for err in errors:
        raise err
    return results[0]
