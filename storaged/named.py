"""What pools and volumes have in common as a caller of the library holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from storaged.facts import PoolRef, VolumeRef

if TYPE_CHECKING:
    from storaged.engine import Engine

R = TypeVar("R", bound=PoolRef | VolumeRef)


class Named(Generic[R]):
    """Something of an engine, known by its *ref*; two that name the same are equal."""

    def __init__(self, engine: Engine, ref: R) -> None:
        self._engine = engine
        self.ref = ref

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Named):
            return NotImplemented
        return (self._engine, self.ref) == (other._engine, other.ref)

    def __hash__(self) -> int:
        return hash(self.ref)

    @property
    def name(self) -> str:
        """The name: of a pool unique in the engine, of a volume unique in its pool."""
        return self.ref.name
