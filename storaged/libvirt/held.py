"""What pools, volumes and secrets have in common: each holds its connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from storaged.libvirt.handle import Handle
from storaged.rpc.secret import Secret
from storaged.rpc.storage import StoragePool, StorageVol

if TYPE_CHECKING:
    from storaged.libvirt.connection import virConnect

N = TypeVar("N", StoragePool, StorageVol)
H = TypeVar("H", StoragePool, StorageVol, Secret)


class Held(Generic[H]):
    """An object of a connection, which lives as long as the object does."""

    #: libvirt's name of the C function that counts a further holder
    _counted: ClassVar[str]
    #: who makes such objects, for programs that try it themselves
    _makers: ClassVar[str]

    def __init__(
        self, conn: virConnect, _obj: H | None = None, _handle: Handle | None = None
    ) -> None:
        if _obj is None:
            raise TypeError(self._makers)
        self._conn = conn
        self._handle = conn._held(self._counted) if _handle is None else _handle.hold()
        self._record: H = _obj

    def __del__(self) -> None:
        handle = self.__dict__.get("_handle")
        if handle is not None:
            handle.release()

    def c_pointer(self) -> int:
        """Return a number that no other living object has."""
        return id(self)

    def connect(self) -> virConnect:
        """Return the connection."""
        return self._conn


class HeldByName(Held[N], Generic[N]):
    """An object of a connection that has a name."""

    def name(self) -> str:
        """Return the name."""
        return self._record.name
