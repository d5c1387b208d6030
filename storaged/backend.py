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

from storaged.abilities import Ability as Ability
from storaged.abilities import Anchored as Anchored
from storaged.abilities import Builds as Builds
from storaged.abilities import FindsSources as FindsSources
from storaged.abilities import Plugged as Plugged
from storaged.abilities import Remembers as Remembers
from storaged.abilities import Shared as Shared
from storaged.abilities import StopsByForce as StopsByForce
from storaged.abilities import Watched as Watched
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
from storaged.model import PoolDef, VolumeDef, VolumeRecord

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

    def release(self) -> None:
        """Let go of what this process has of the storage, such as children: its engine ends.

        The pool stays active, for the engine that comes next. Quick; nothing is called after it.
        """

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


class HasSnapshots(DeletesVolumes, ABC):
    """Volumes have snapshots of their own, which are deleted with them where that is asked for."""

    missing = "storage pool does not support snapshots of volumes"

    @abstractmethod
    def delete(
        self, volume: VolumeRecord, job: Job[Any], *, force: bool = False, snapshots: bool = False
    ) -> None:
        """As `DeletesVolumes.delete`; a volume that has snapshots is deleted with them or not.

        :param snapshots: delete them first.
        :raise OperationInvalid: it has snapshots that are to stay, or that other volumes are made
            of; the text or the advice names them, and nothing is deleted.
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


A = TypeVar("A", bound=Ability)


def require(backend: Backend, ability: type[A]) -> A:
    """Return *backend*, typed as having *ability*.

    :raise Unsupported: if the class does not inherit from it; with libvirt's text.
    """
    if isinstance(backend, ability):
        return backend
    raise Unsupported(ability.missing)
