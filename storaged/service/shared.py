"""What all sessions of a service have in common."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from storaged.driver import Driver
from storaged.rpc.extension import Metric
from storaged.service.handler import Handlers


def _no_metrics() -> Iterable[Metric]:
    return ()


@dataclass(slots=True)
class Shared:
    """What all sessions of a service have in common.

    :param level: the version of libvirt that is reported, such as 9000000.
    :param token: what the daemons of this host know each other by.
    :param protect_backing: through libvirt's program too, what other volumes need is spared.
    :param metrics: figures that stand beside those of the engine.
    :param callback_ids: numbers for registrations; none is ever used twice.
    """

    driver: Driver
    handlers: Handlers
    level: int
    token: str | None = None
    protect_backing: bool = False
    metrics: Callable[[], Iterable[Metric]] = _no_metrics
    callback_ids: Iterator[int] = field(default_factory=itertools.count)
