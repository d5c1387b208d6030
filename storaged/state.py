"""What outlives an engine: definitions, autostart links, live definitions, anchors, the boot.

Definitions and links lie in libvirt's files, in libvirt's format, so that either can follow the
other on a host. A file that cannot be used is reported, kept and left alone; it stops nothing else.

Whoever writes must hold the driver's lock. Definitions and links are durable when a call returns;
what lies below ``run`` is not made to outlive a loss of power.

Source: libvirt's behaviour, observed with libvirt 9.0 in what it writes and reads.
"""

from __future__ import annotations

import errno
import json
import os
import re
import textwrap
from collections.abc import Container, Mapping
from contextlib import suppress
from pathlib import Path
from uuid import UUID

from storaged import poolxml
from storaged.atomic import (
    make_directory,
    read_file,
    remove_file,
    sweep,
    sync_directory,
    write_file,
)
from storaged.errors import InternalError, SystemFailure, system_errors
from storaged.loading import LoadedPool, LoadedState, Loading, leads_to
from storaged.model import PoolDef, Space
from storaged.paths import Paths, printable
from storaged.process import this_boot

__all__ = ["LoadedPool", "LoadedState", "StateStore"]

#: Names that can stand in a comment and be pasted into a shell as they are.
_PLAIN = re.compile(r"(?!-)(?:[\w.+:@]|-(?!-))+", re.ASCII)

#: A document in which no value runs over a line's end, so that it can be indented.
_TAG_LINES = re.compile(r"(?: *<[^\n]*>\n)+")

#: The most bytes that an anchor may have.
_ANCHOR_LIMIT = 65536

#: The most bytes that are kept of why a pool was not started.
_REASON_LIMIT = 4096


class StateStore:
    """The files of one engine.

    :param readonly: nothing is changed, and calls that would are refused.
    :param boot: names the present boot of the host; None asks the kernel.
    """

    def __init__(self, paths: Paths, *, readonly: bool = False, boot: str | None = None) -> None:
        self.paths = paths
        self.readonly = readonly
        # without a name, as in a sandbox, every opening is of the same boot
        self._boot = boot if boot is not None else this_boot() or "unknown"

    # Boots

    def first_since_boot(self) -> bool:
        """Tell whether no engine has looked at the storage since the host booted.

        What is left of another boot below ``run``, where that is no memory file system, is cleared
        as the boot should have done; so are the beginnings of files of killed engines. A read-only
        store clears nothing, but `load` disregards it.

        A libvirt daemon that was here in this boot counts as an engine.

        :raise SystemFailure: something cannot be cleared.
        """
        last = self._last_boot()
        if not self.readonly:
            if self._is_stale(last):
                self._clear()
            for directory in (self.paths.config, self.paths.state, self.paths.runtime):
                sweep(directory)
        by_libvirt = last is None and self.paths.autostarted_file.exists()
        if by_libvirt and not self.readonly:
            self.note_boot()
        return last != self._boot and not by_libvirt

    def note_boot(self) -> None:
        """Keep that the storage was looked at in this boot, once `write_live` has said the result.

        An engine that is killed between the two leaves the first look to the next one.

        :raise SystemFailure: it cannot be kept.
        """
        if not self.readonly:
            make_directory(self.paths.runtime)
            write_file(self.paths.boot_file, f"{self._boot}\n".encode(), durable=False)

    def needs_autostart(self) -> bool:
        """Tell whether the pools with autostart are still to be started in this boot."""
        return not self.readonly and not self.paths.autostarted_file.exists()

    def mark_autostarted(self) -> None:
        """Keep for this boot, and for libvirt's daemons, that autostart has been done.

        :raise SystemFailure: it cannot be kept.
        """
        self._require_writable()
        make_directory(self.paths.state, mode=self.paths.public_mode)
        write_file(self.paths.autostarted_file, b"", durable=False)

    def note_unstarted(self, uuid: UUID, why: str) -> None:
        """Keep for this boot that a pool is still to be started, and why it was not.

        :raise SystemFailure: it cannot be kept.
        """
        self._require_writable()
        make_directory(self.paths.unstarted)
        data = why.encode(errors="backslashreplace")[:_REASON_LIMIT]
        write_file(self.paths.unstarted / str(uuid), data, durable=False)

    def remove_unstarted(self, uuid: UUID) -> None:
        """Forget that a pool is to be started; it need not be kept.

        :raise SystemFailure: it still is.
        """
        self._require_writable()
        remove_file(self.paths.unstarted / str(uuid), durable=False)

    def unstarted(self) -> dict[UUID, str]:
        """Return which pools are still to be started in this boot, and why they were not."""
        found: dict[UUID, str] = {}
        if self._is_stale(self._last_boot()):
            return found
        with suppress(OSError):
            for path in self.paths.unstarted.iterdir():
                with suppress(ValueError, SystemFailure):
                    data = read_file(path, _REASON_LIMIT) or b""
                    found[UUID(path.name)] = data.decode(errors="replace")
        return found

    def _last_boot(self) -> str | None:
        """Return the boot of the last opening; None if there was none, or nobody may know."""
        with suppress(SystemFailure):
            data = read_file(self.paths.boot_file, 1024)
            return None if data is None else data.decode(errors="replace").strip()
        return None

    def _is_stale(self, last: str | None) -> bool:
        return last is not None and last != self._boot

    def _clear(self) -> None:
        """Remove what a boot removes. The mark of the old boot goes last: this can be repeated."""
        for directory in (self.paths.state, self.paths.runtime / "anchors", self.paths.unstarted):
            with system_errors(f"cannot open directory '{printable(directory)}'"):
                entries = list(os.scandir(directory)) if directory.exists() else []
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False) and entry.name != "driver.pid":
                    remove_file(Path(entry.path), durable=False)
        remove_file(self.paths.boot_file, durable=False)

    # Definitions

    def load(self, plugin_types: Container[str] = ()) -> LoadedState:
        """Return all pools that the files tell of, sorted by name, and what is wrong with files.

        Files are taken in the order of their names, live definitions before configurations; of two
        that claim one name or one uuid, the first counts. That no directory is there is no problem.

        :param plugin_types: pool types beside libvirt's that can be parsed.
        """
        loading = Loading(self.paths, plugin_types)
        if not self._is_stale(self._last_boot()):
            loading.read_live()
        loading.read_configs()
        return loading.result()

    def write_config(self, definition: PoolDef) -> None:
        """Keep a definition, in place of one of the same name.

        :raise SystemFailure: what was kept before still is.
        """
        self._require_writable()
        make_directory(self.paths.config, mode=self.paths.public_mode, durable=True)
        document = _warning(definition) + poolxml.format_pool(definition)
        write_file(self.paths.config_file(definition.name), document.encode(), durable=True)

    def remove_config(self, name: str) -> None:
        """Forget a definition and its autostart link; none of them has to be there.

        Something else that has the link's name stays.

        :raise SystemFailure: one of them is still there; the link does no harm alone.
        """
        self._require_writable()
        link, config = self.paths.autostart_link(name), self.paths.config_file(name)
        ours = _is_replaceable(link, config)
        remove_file(config, durable=True)
        if ours:
            remove_file(link, durable=True)

    def set_autostart(self, name: str, autostart: bool) -> None:
        """Have a persistent pool started at boot, or not. Doing it twice is no error.

        :raise SystemFailure: something that is no link to the definition has the link's name; it
            stays as it is, and the advice says so.
        """
        self._require_writable()
        link, config = self.paths.autostart_link(name), self.paths.config_file(name)
        shown = f"'{printable(link)}'"
        advice = f"{shown} is not the link to the definition: move it away."
        if autostart:
            with system_errors(f"cannot create autostart directory {printable(link.parent)}"):
                make_directory(link.parent, mode=self.paths.public_mode, durable=True)
            doing = f"Failed to create symlink {shown} to '{printable(config)}'"
        else:
            doing = f"Failed to delete symlink {shown}"
        with system_errors(doing):
            if leads_to(link, config) if autostart else not os.path.lexists(link):
                return
            if not _is_replaceable(link, config):
                raise SystemFailure(doing, errno.EEXIST, advice=advice)
            link.unlink(missing_ok=True)
            if autostart:
                link.symlink_to(config)
        sync_directory(link.parent)

    def write_live(self, definition: PoolDef, space: Space | None = None) -> None:
        """Keep that a pool is active, and with which definition.

        :raise SystemFailure: what was kept before still is.
        """
        self._require_writable()
        make_directory(self.paths.state, mode=self.paths.public_mode)
        pool = poolxml.format_pool(definition, space)
        if _TAG_LINES.fullmatch(pool):
            pool = textwrap.indent(pool, "  ")
        document = f"{_warning(definition)}<poolstate>\n{pool}</poolstate>\n"
        write_file(self.paths.live_file(definition.name), document.encode(), durable=False)

    def remove_live(self, name: str) -> None:
        """Keep that a pool is not active.

        :raise SystemFailure: it still counts as active.
        """
        self._require_writable()
        remove_file(self.paths.live_file(name), durable=False)

    # Anchors

    def write_anchor(self, uuid: UUID, anchor: Mapping[str, str | int]) -> None:
        """Keep what identifies the target of a pool as long as it is active.

        :raise SystemFailure: what was kept before still is.
        """
        self._require_writable()
        path = self.paths.anchor_file(uuid)
        make_directory(path.parent)
        write_file(path, json.dumps(dict(anchor)).encode(), durable=False)

    def read_anchor(self, uuid: UUID) -> Mapping[str, str | int] | None:
        """Return what was kept of the target of a pool, None if nothing was.

        :raise StorageError: what was kept cannot be read or is no anchor; names the file.
        """
        path = self.paths.anchor_file(uuid)
        data = read_file(path, _ANCHOR_LIMIT)
        if data is None:
            return None
        try:
            anchor = json.loads(data)
        except (ValueError, RecursionError) as err:
            raise InternalError(f"'{printable(path)}' is not JSON: {err}") from err
        if not isinstance(anchor, dict) or not all(
            isinstance(value, str | int) for value in anchor.values()
        ):
            raise InternalError(f"'{printable(path)}' does not identify a target")
        return anchor

    def remove_anchor(self, uuid: UUID) -> None:
        """Forget what identified the target of a pool.

        :raise SystemFailure: it is still kept.
        """
        self._require_writable()
        remove_file(self.paths.anchor_file(uuid), durable=False)

    def _require_writable(self) -> None:
        if self.readonly:
            raise InternalError("the engine was opened read-only")


def _warning(definition: PoolDef) -> str:
    """Return the comment at the head of a file; libvirt has one there as well."""
    name = definition.name if _PLAIN.fullmatch(definition.name) else str(definition.uuid)
    return (
        "<!--\n"
        "Written by storaged, which replaces this file as a whole: do not edit it by hand.\n"
        "To change the pool:\n"
        f"  storagectl pool edit {name}\n"
        "-->\n\n"
    )


def _is_replaceable(link: Path, config: Path) -> bool:
    """Tell whether nothing is lost if an autostart entry goes: it is ours, or leads nowhere."""
    if not os.path.lexists(link) or leads_to(link, config):
        return True
    return link.is_symlink() and not link.exists()
