"""Reading a state directory: which pools there are, and what is wrong with the files.

Nothing here raises over a file. What cannot be used becomes a problem that names the path, and is
left as it is.

Source: libvirt's behaviour at the start of its storage driver, with its texts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from lxml import etree

from storaged import poolxml, xmlread
from storaged.atomic import read_file
from storaged.errors import InternalError, OperationFailed, StorageError
from storaged.model import PoolDef
from storaged.paths import Paths, printable

#: The most bytes that a definition may have.
LIMIT = 8 << 20

#: The most characters of one problem: a hostile file may be quoted in it.
_PROBLEM_LIMIT = 1000


@dataclass(frozen=True, slots=True)
class LoadedPool:
    """One pool as the files tell of it.

    :param config: what is kept of it; None for a transient pool.
    :param live: what it runs with; None for an inactive pool.
    """

    name: str
    config: PoolDef | None
    live: PoolDef | None
    autostart: bool


@dataclass(frozen=True, slots=True)
class LoadedState:
    """All pools, sorted by name; *problems* are sentences for people, each with its path."""

    pools: tuple[LoadedPool, ...]
    problems: tuple[str, ...]


class Loading:
    """One pass over the files. Live definitions are read first: they tell what really runs.

    :param plugin_types: pool types beside libvirt's that can be parsed.
    """

    def __init__(self, paths: Paths, plugin_types: Container[str]) -> None:
        self._paths = paths
        self._plugin_types = plugin_types
        self._live: dict[str, PoolDef] = {}
        self._configs: dict[str, PoolDef] = {}
        self._names: dict[UUID, str] = {}
        self._closed: set[Path] = set()
        self._problems: list[str] = []

    def read_live(self) -> None:
        """Read the live definitions."""
        for name in self._listed(self._paths.state):
            self._take(self._paths.live_file(name), name, self._parse_live, self._live)

    def read_configs(self) -> None:
        """Read the definitions that are kept."""
        for name in self._listed(self._paths.config):
            self._take(self._paths.config_file(name), name, self._parse, self._configs)

    def result(self) -> LoadedState:
        """Return what was found."""
        autostart = self._autostarted()
        pools = tuple(
            LoadedPool(name, self._configs.get(name), self._live.get(name), name in autostart)
            for name in sorted(self._live.keys() | self._configs.keys())
        )
        return LoadedState(pools, tuple(self._problems))

    def _listed(self, directory: Path) -> list[str]:
        """Return the stems of the XML files of a directory, sorted."""
        try:
            entries = os.listdir(directory)  # noqa: PTH208 -- names are all it needs
        except FileNotFoundError:
            return []
        except OSError as err:
            self._closed.add(directory)
            self._problems.append(f"cannot open directory '{printable(directory)}': {err.strerror}")
            return []
        return sorted(
            entry.removesuffix(".xml")
            for entry in entries
            if entry.endswith(".xml") and entry != ".xml"
        )

    def _take(
        self,
        path: Path,
        name: str,
        parse: Callable[[bytes], PoolDef],
        into: dict[str, PoolDef],
    ) -> None:
        try:
            data = read_file(path, LIMIT)
            if data is None:  # it went away while we looked
                return
            definition = parse(data)
            self._require_fitting(definition, path, name)
        except StorageError as err:
            self._problem(path, err)
            return
        into[name] = definition
        self._names[definition.uuid] = name

    def _parse(self, data: bytes) -> PoolDef:
        return poolxml.parse_pool(data, plugin_types=self._plugin_types, lenient=True)

    def _parse_live(self, data: bytes) -> PoolDef:
        state = xmlread.read(data, "poolstate", "storage_pool_state")
        pool = state.first("pool")
        if pool is None:
            raise InternalError("Could not find any 'pool' element in state file")
        # As many empty lines as stood before it: an error names the line of the file.
        above = b"\n" * (pool.line - 1)
        return self._parse(above + etree.tostring(pool.element, encoding="UTF-8", with_tail=False))

    def _require_fitting(self, definition: PoolDef, path: Path, name: str) -> None:
        """Check a definition against its file's name and against what was read before it."""
        if definition.name != name:
            kind = "state file" if path.parent == self._paths.state else "config filename"
            raise InternalError(
                f"Storage pool {kind} '{printable(path.name)}' does not match pool name "
                f"'{definition.name}'"
            )
        owner = self._names.get(definition.uuid)
        if owner is not None and owner != name:
            raise OperationFailed(f"pool '{owner}' is already defined with uuid {definition.uuid}")
        live = self._live.get(name)
        if live is not None and live.uuid != definition.uuid:
            raise OperationFailed(f"pool '{name}' already exists with uuid {live.uuid}")

    def _autostarted(self) -> frozenset[str]:
        """Return the pools whose autostart link leads to their definition."""
        found = set()
        # Nothing new can be said of links to what could not be read.
        readable = self._paths.config not in self._closed
        for name in self._listed(self._paths.autostart) if readable else ():
            link, config = self._paths.autostart_link(name), self._paths.config_file(name)
            if not leads_to(link, config):
                self._problems.append(
                    f"{printable(link)}: does not lead to {printable(config)}, so it starts no pool"
                )
            elif name in self._configs:
                found.add(name)
        return frozenset(found)

    def _problem(self, path: Path, err: StorageError) -> None:
        shown = printable(path)
        message = err.message.partition("\n")[0]  # the parser's picture of the line says no more
        text = message if shown in message else f"{shown}: {message}"
        if err.advice:
            text = f"{text} ({err.advice})"
        self._problems.append(text[:_PROBLEM_LIMIT])


def leads_to(link: Path, config: Path) -> bool:
    """Tell whether an autostart entry is, or leads to, the definition of its pool."""
    try:
        return os.path.samestat(link.stat(), config.lstat())
    except OSError:
        return False
