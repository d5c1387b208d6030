"""What a pool type is made of: the interface between policy (above) and mechanism (below).

A backend knows how to do a thing to its storage. State rules, uniqueness, persistence, events,
leases and jobs are the pool's. Methods take and return frozen values, descriptors and a `Job`, so
that a backend can live in another process.

To support an ability is to inherit from it: the class line is the capability list. `require` gives
a backend typed as having an ability, or raises libvirt's "not supported".

All methods may be called from several threads at once, for different volumes; the pool sees to it
that no two writers work on one volume, and that `start`, `stop`, `build` and `delete_target` are
alone. They raise `storaged.errors.StorageError` only: `OSError` and `FormatError` are translated
here or below.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from storaged.errors import Unsupported
from storaged.flow import Hole as Hole
from storaged.flow import Sink as Sink
from storaged.flow import Source as Source
from storaged.flow import WipeAlgorithm as WipeAlgorithm
from storaged.formats.handle import Handle
from storaged.imaging import CloneBacking as CloneBacking
from storaged.imaging import CloneOptions as CloneOptions
from storaged.imaging import Compression as Compression
from storaged.imaging import Durability as Durability
from storaged.job import Job
from storaged.mechanism import NO_SECRETS as NO_SECRETS
from storaged.mechanism import PLAIN_CLONE as PLAIN_CLONE
from storaged.mechanism import Descriptor as Descriptor
from storaged.mechanism import DeviceEvent as DeviceEvent
from storaged.mechanism import Figures as Figures
from storaged.mechanism import Host as Host
from storaged.mechanism import ImageSource as ImageSource
from storaged.mechanism import Refresh as Refresh
from storaged.mechanism import SecretSource as SecretSource
from storaged.mechanism import SecretUsage as SecretUsage
from storaged.model import PoolDef, PoolSource, VolumeDef, VolumeRecord

#: The version of this interface; docs/backends.md has its changelog.
API = 1


class Backend(ABC):
    """The core that every pool type has.

    :param definition: what the pool is; a changed definition makes a new backend.
    """

    descriptor: ClassVar[Descriptor]
    api: ClassVar[int] = API

    def __init__(self, definition: PoolDef, host: Host) -> None:
        self.definition = definition
        self.host = host

    @property
    def check_proves(self) -> bool:
        """Whether what `check` sees is there only while the pool is active.

        Then an engine after one that was killed in a start shows it; `check` must be cheap.
        """
        return False

    def check(self) -> bool:
        """Tell whether the storage is active already (asked once a boot, see `check_proves`)."""
        return False

    @classmethod
    def recover(cls) -> None:
        """Put right what engines have left that were killed, of any pool; quick.

        It is called at an opening if something lies in one of `storaged.backends.NOTES`.
        """

    def start(self, job: Job[Any]) -> None:
        """Make the storage available: mount, log in, activate. Doing it twice is no error."""

    def stop(self, job: Job[Any]) -> str | None:
        """Undo `start`. Doing it twice is no error.

        :returns: in words, what was left as it was because others use it; None: nothing.
        """
        return None

    @abstractmethod
    def refresh(self, known: Mapping[str, VolumeRecord], job: Job[Any]) -> Refresh:
        """Scan the storage.

        :param known: the records of the last scan: an unchanged volume is not opened again.
        :raise StorageError: only if the storage as a whole cannot be read. A bad volume is skipped,
            or listed with its ``problem``.
        """

    def measure(self) -> Figures | None:
        """Return what can be told of the pool cheaply, None if only `refresh` can tell."""
        return None


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


class LooksAtVolumes(Ability, ABC):
    """One volume can be looked at alone."""

    missing = "storage pool does not support looking at one volume"

    @abstractmethod
    def look(self, name: str, known: VolumeRecord | None) -> VolumeRecord | None:
        """Return the fresh facts of one volume, None if there is none of that name.

        :param known: the record so far; it is returned itself if nothing changed.
        """

    @abstractmethod
    def describe(self, record: VolumeRecord) -> VolumeDef:
        """Return all that the XML of a volume says: times, permissions, backing store, features.

        The backing store is named as the image names it, without credentials, and never opened.

        :raise NoSuchVolume: the volume has gone.
        """


class CreatesVolumes(Ability, ABC):
    """New volumes can be made."""

    missing = "storage pool does not support volume creation"

    @abstractmethod
    def plan(self, volume: VolumeDef, *, preallocate_metadata: bool = False) -> VolumeDef:
        """Check a request and fill in type, path and key. Quick; makes nothing.

        :param preallocate_metadata: the request is to have all its metadata made at once.
        :raise NameTaken: something else stands at the path.
        :raise StorageError: the request cannot be honoured; the text names why.
        """

    @abstractmethod
    def create(
        self,
        volume: VolumeDef,
        job: Job[Any],
        *,
        preallocate_metadata: bool = False,
        secret: bytes | None = None,
        durability: Durability | None = None,
    ) -> VolumeRecord:
        """Make a planned volume. It appears whole or not at all.

        The job's ``done`` stands for the volume's allocation meanwhile.

        :param secret: the passphrase of a volume that is to be encrypted.
        :param durability: None is the engine's setting.
        """


class ClonesVolumes(CreatesVolumes, ABC):
    """New volumes can be made from existing ones."""

    missing = "storage pool does not support volume creation from an existing volume"

    @abstractmethod
    def plan_clone(
        self,
        volume: VolumeDef,
        source: VolumeRecord,
        *,
        preallocate_metadata: bool = False,
        options: CloneOptions = PLAIN_CLONE,
    ) -> VolumeDef:
        """As `plan`, for a clone of *source*; also settles capacity and format.

        A linked clone never comes here: it is a new overlay.
        """

    @abstractmethod
    def clone(
        self,
        volume: VolumeDef,
        source: ImageSource,
        job: Job[Any],
        *,
        reflink: bool,
        preallocate_metadata: bool = False,
        options: CloneOptions = PLAIN_CLONE,
    ) -> VolumeRecord:
        """Make a planned clone. It appears whole or not at all.

        :param reflink: share the data with the source or fail; False: share where it is possible.
        """


class DeletesVolumes(Ability, ABC):
    """Volumes can be deleted."""

    missing = "storage pool does not support vol deletion"

    @abstractmethod
    def delete(self, volume: VolumeRecord, job: Job[Any], *, force: bool = False) -> None:
        """Delete a volume; one that is gone already is no error.

        :param force: also if a virtual machine has it open.
        :raise VolumeBusy: it is open elsewhere; the advice names by whom.
        """


class Resizes(Ability, ABC):
    """Volumes can change their capacity."""

    missing = "storage pool does not support changing of volume capacity"

    @abstractmethod
    def resize(
        self,
        volume: VolumeRecord,
        capacity: int,
        job: Job[Any],
        *,
        allocate: bool = False,
        shrink: bool = False,
        force: bool = False,
        secret: bytes | None = None,
    ) -> VolumeRecord:
        """Set the capacity and return the facts after it.

        :param secret: the passphrase of an encrypted volume, where the change needs it.
        :raise OperationInvalid: its image is a danger; that comes before all else.
        """


class Wipes(Ability, ABC):
    """Volumes can be overwritten."""

    missing = "storage pool doesn't support volume wiping"

    @abstractmethod
    def wipe(
        self,
        volume: VolumeRecord,
        algorithm: WipeAlgorithm,
        job: Job[Any],
        *,
        force: bool = False,
    ) -> VolumeRecord:
        """Overwrite what a volume holds and return the facts after it."""


class Transfers(Ability, ABC):
    """Bytes can be moved in and out."""

    missing = "storage pool doesn't support volume upload/download"

    @abstractmethod
    def open_image(self, volume: VolumeRecord, *, writable: bool = False) -> Handle:
        """Open a volume for random access; the caller closes it (`close`)."""

    @abstractmethod
    def open_disk(self, volume: VolumeRecord, *, format: str | None = None) -> Handle:
        """Open a volume for reading as a guest sees it: decoded, with its backing chain.

        While it is open QEMU's writers are kept from all files of the chain but a raw volume's own.
        The caller closes it, and with it all of them.

        :param format: read the volume as this and not as what it is listed as.
        :raise OperationInvalid: something of the chain must not be opened, or is not there.
        :raise OperationUnsupported: there is no native reader for it.
        :raise VolumeBusy: somebody writes to one of its files.
        """

    @abstractmethod
    def upload(self, volume: VolumeRecord, offset: int, length: int) -> Sink:
        """Open a volume for writing from *offset*; a *length* of 0 is "as much as comes"."""

    @abstractmethod
    def download(
        self, volume: VolumeRecord, offset: int, length: int, *, sparse: bool = False
    ) -> Source:
        """Open a volume for reading from *offset*; a *length* of 0 is "to the end"."""


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


A = TypeVar("A", bound=Ability)


def require(backend: Backend, ability: type[A]) -> A:
    """Return *backend*, typed as having *ability*.

    :raise Unsupported: if the class does not inherit from it; with libvirt's text.
    """
    if isinstance(backend, ability):
        return backend
    raise Unsupported(ability.missing)
