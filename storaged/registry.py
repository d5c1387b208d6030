"""Pool types by name: the built-in ones, and those that other distributions bring.

A third party registers a backend under the entry point group ``storaged.backends``; the name of the
entry point is the value of ``pool@type``. Entry points are read only when a type is asked for that
is not built in, because reading them is slow.
"""

from __future__ import annotations

import importlib
import inspect
import os
from typing import TYPE_CHECKING

from storaged.backend import API, Backend
from storaged.backends import BUILTIN, NOTES
from storaged.errors import InternalError, MissingBackend
from storaged.model import PoolType

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "storaged.backends"


class Registry:
    """Finds the class of a pool type and remembers it.

    :param extra: further types by name, for tools that bring a backend without installing it.
    """

    def __init__(self, extra: dict[str, type[Backend]] | None = None) -> None:
        self._classes: dict[str, type[Backend]] = {}
        for name, backend in (extra or {}).items():
            if name in BUILTIN:
                raise InternalError(f"pool type '{name}' is built in and cannot be replaced")
            self._classes[name] = checked(name, backend, "the caller")
        self._plugins: dict[str, EntryPoint] | None = None

    def find(self, pool_type: str) -> type[Backend]:
        """Return the class of a pool type, importing it at the first use.

        :raise InternalError: nobody brings this type, or what brings it cannot be loaded; with
            libvirt's text for a missing backend, and the reason as advice.
        """
        found = self._classes.get(pool_type)
        if found is None:
            found = self._classes[pool_type] = self._load(pool_type)
        return found

    def plugin_types(self) -> frozenset[str]:
        """Return the types beside libvirt's that something installed or given here brings."""
        return frozenset(self._entry_points()) | (self._classes.copy().keys() - BUILTIN.keys())

    def available(self) -> tuple[str, ...]:
        """Return every type that can be used, libvirt's first and in its order."""
        ours = [str(kind) for kind in PoolType if self._usable(kind)]
        return (*ours, *sorted(self.plugin_types() - set(ours)))

    def interrupted(self) -> tuple[str, ...]:
        """Return the types whose work on this host somebody may have been killed in."""
        return tuple(kind for kind, places in NOTES.items() if any(map(_holds_any, places)))

    def _usable(self, pool_type: str) -> bool:
        try:
            self.find(pool_type)
        except InternalError:
            return False
        return True

    def _load(self, pool_type: str) -> type[Backend]:
        target = BUILTIN.get(pool_type)
        if target is not None:
            try:
                found = _import(target)
            except ImportError as err:
                raise missing(pool_type, f"Something that it needs is missing: {err}") from err
            return checked(pool_type, found, "storaged")
        plugin = self._entry_points().get(pool_type)
        if plugin is None:
            raise missing(pool_type, "No installed package brings this pool type.")
        origin = plugin.dist.name if plugin.dist else "an unknown distribution"
        try:
            found = plugin.load()
        except Exception as err:  # foreign code: whatever it raises, the pool type is not there
            raise missing(pool_type, f"The plug-in of {origin} failed to load: {err}") from err
        return checked(pool_type, found, origin)

    def _entry_points(self) -> dict[str, EntryPoint]:
        if self._plugins is None:
            from importlib.metadata import entry_points  # slow, and rarely needed

            found: dict[str, EntryPoint] = {}
            for point in entry_points(group=GROUP):
                if point.name not in BUILTIN:
                    found.setdefault(point.name, point)
            self._plugins = found
        return self._plugins


def checked(pool_type: str, found: object, origin: str) -> type[Backend]:
    """Return *found* if it can serve as the backend of *pool_type*.

    :raise InternalError: it is no concrete backend, speaks another version of the interface, or
        describes another type. The advice names *origin*.
    """
    why = None
    if not (isinstance(found, type) and issubclass(found, Backend)):
        why = f"{found!r} is no subclass of storaged.backend.Backend"
    elif inspect.isabstract(found):
        why = f"{found.__name__} lacks {', '.join(sorted(found.__abstractmethods__))}"
    elif found.api != API:
        why = f"{found.__name__} is made for interface {found.api}, this is {API}"
    elif getattr(found, "descriptor", None) is None or found.descriptor.type != pool_type:
        why = f"{found.__name__} does not describe the type '{pool_type}'"
    if why is not None:
        raise missing(pool_type, f"The plug-in of {origin} cannot be used: {why}.")
    assert isinstance(found, type)  # noqa: S101 -- tells the type checker what was tested above
    return found


def missing(pool_type: str, why: str) -> MissingBackend:
    """Return libvirt's error for a pool type without a backend."""
    kinds = tuple(PoolType)
    number = kinds.index(PoolType(pool_type)) if pool_type in kinds else len(kinds)
    return MissingBackend(f"missing backend for pool type {number} ({pool_type})", advice=why)


def _holds_any(directory: str) -> bool:
    try:
        return bool(os.listdir(directory))  # noqa: PTH208 -- names are all it needs
    except OSError:  # mostly there is none
        return False


def _import(target: str) -> object:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
