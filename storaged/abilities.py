"""What a pool as a whole can do, where its type can: the abilities that are not about volumes.

`storaged.backend` has all names of the interface, these too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from storaged.job import Job
from storaged.mechanism import DeviceEvent, Host
from storaged.model import PoolSource


class Ability(ABC):
    """Root of what only some pool types can do; *missing* is libvirt's text for the others."""

    missing: ClassVar[str]


class Builds(Ability, ABC):
    """The pool's own storage can be made and removed."""

    missing = "pool does not support pool deletion"

    @abstractmethod
    def build(self, job: Job[Any], *, overwrite: bool | None = None) -> None:
        """Make the target (and the file system or label on the source where the type has one).

        :param overwrite: None: format nothing; False: only what holds nothing; True: in any case.
        """

    @abstractmethod
    def delete_target(self, job: Job[Any]) -> None:
        """Remove what `build` made; it must hold no volumes."""


class FindsSources(Ability, ABC):
    """Can tell which sources a server or this host offers."""

    missing = "pool type does not support source discovery"

    @classmethod
    @abstractmethod
    def find_sources(
        cls, spec: PoolSource | None, host: Host, job: Job[Any]
    ) -> tuple[PoolSource, ...]:
        """Return the sources that match *spec*.

        :param job: is cancelled when who asked has gone.
        """


class StopsByForce(Ability, ABC):
    """The storage can be let go of although it is in use, or does not answer."""

    missing = "storage pool does not support a forced stop"

    @abstractmethod
    def stop_by_force(self, job: Job[Any]) -> str | None:
        """As `Backend.stop`, without waiting for the storage: a lazy unmount, a logout.

        A `start`, a `stop` and work on volumes may still hang in it.
        """


class Watched(Ability, ABC):
    """The storage can go away under an active pool, and come back: it has a server."""

    missing = "storage pool is not watched"

    #: how often it is looked at, in seconds; at least every 4 s, whatever stands here
    watch_every: ClassVar[float] = 2.0

    @abstractmethod
    def watch(self) -> None:
        """Touch the storage in the cheapest way that shows whether it is there.

        It is called on a thread that may be lost: it may hang.

        :raise StorageError: it does not answer, or is not what it was.
        """


class Shared(Watched, ABC):
    """Other hosts change the volumes too, and the storage tells of it."""

    missing = "storage pool is not shared"

    @abstractmethod
    def listen(self, changed: Callable[[], None]) -> None:
        """Have *changed* called whenever others may have changed volumes.

        This is quick and touches no storage. It is called once for each run of the pool, some time
        after the start; a later call takes its place. What others have changed between the start
        and this call is told at once.

        :param changed: may be called from any thread, also from within `watch`, and does not wait;
            it has the pool scanned. It counts for nothing when the pool has been stopped.
        """


class Plugged(Ability, ABC):
    """The volumes are devices of this host, which come and go."""

    missing = "storage pool has no devices"

    @abstractmethod
    def concerns(self, event: DeviceEvent) -> bool:
        """Tell whether the pool should be scanned because of what happened to a device. Quick."""


class Remembers(Ability, ABC):
    """What a start found, or did, counts until the stop, also if the engine ends in between."""

    missing = "storage pool remembers nothing"

    @abstractmethod
    def anchor(self) -> Mapping[str, str | int]:
        """Return what is to be known; it is kept beside the pool's state until the stop."""

    @abstractmethod
    def hold(self, anchor: Mapping[str, str | int]) -> None:
        """Take note of what `anchor` once returned, in this engine or in one before it."""


class Anchored(Remembers, ABC):
    """The target is a directory that must stay the one it was when the pool was started.

    `anchor` tells what identifies the target now. After `hold` every work on volumes is refused if
    the target is not that one.
    """

    missing = "storage pool has no target directory"
