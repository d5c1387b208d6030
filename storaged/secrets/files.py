"""Libvirt's files of secrets: one for the definition, one for the value.

``UUID.xml`` and ``UUID.base64``, mode 0600, in a directory of mode 0700; the value is plain base64
without a newline. Other than the files of pools they carry no comment.

Source: what libvirt's secret driver 9.0 writes.
"""

from __future__ import annotations

import binascii
import os
import time
from base64 import b64decode, b64encode
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import UUID

from storaged.atomic import make_directory, read_file, remove_file, write_file
from storaged.errors import Domain, InternalError, StorageError, system_errors
from storaged.paths import printable
from storaged.secrets.document import format_secret, parse_secret
from storaged.secrets.values import MAX_VALUE, SecretDef, SecretKind

_XML, _BASE64 = ".xml", ".base64"
#: The longest file of a value, in bytes; an editor may have left a newline.
_MAX_BASE64: Final = MAX_VALUE * 4 // 3 + 64
#: The longest file of a definition, in bytes.
_MAX_XML: Final = 1024 * 1024

#: A change of a file that is younger than this may hide another one, in nanoseconds.
_TICK: Final = 50_000_000

#: Tells one content of a file from another: inode, size, time; None where nothing does.
_Stamp = tuple[int, int, int] | None


@dataclass(frozen=True, slots=True)
class _Read:
    """A definition as it was read.

    :param problem: why there is none.
    """

    stamp: _Stamp
    secret: SecretDef | None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the files of a directory hold.

    :param problems: which of them could not be used, and why.
    """

    secrets: dict[UUID, SecretDef]
    problems: tuple[str, ...]


class SecretFiles:
    """The files of one directory.

    They are read again where they have changed: who else may write there is not known.

    :param durable: a change has reached the disk when a call returns.
    """

    def __init__(self, directory: Path, *, durable: bool = True) -> None:
        self._directory = directory
        self._durable = durable
        self._known: dict[str, _Read] = {}
        self._loaded = Loaded({}, ())

    def load(self) -> Loaded:
        """Return the definitions: the same object as the last time if nothing has changed.

        Files that cannot be used are left as they are. Of two for the same thing the first serves,
        by name; libvirt takes the one that it happens to find first.

        :raise SystemFailure: the directory cannot be read.
        """
        with system_errors(f"cannot open directory '{printable(self._directory)}'"):
            try:
                with os.scandir(self._directory) as entries:
                    listed = {entry.name: entry for entry in entries}
            except FileNotFoundError:
                listed = {}
        wanted = sorted(name for name in listed if name.endswith(_XML) and name[0] != ".")
        found = {name: read for name in wanted if (read := self._read(listed[name])) is not None}
        if found != self._known:
            self._known, self._loaded = found, self._sorted_out(found)
        return self._loaded

    def _sorted_out(self, found: dict[str, _Read]) -> Loaded:
        loaded: dict[UUID, SecretDef] = {}
        uses: dict[tuple[SecretKind, str | None], SecretDef] = {}
        problems = []
        for name, read in found.items():
            if read.secret is None:
                problems.append(f"{printable(self._directory / name)}: {read.problem}")
                continue
            secret = read.secret
            first = uses.setdefault((secret.usage, secret.usage_id), secret)
            if first is secret or secret.usage is SecretKind.NONE:
                loaded[secret.uuid] = secret
            else:
                problems.append(
                    f"{printable(self._directory / name)}: a secret with UUID {first.uuid}"
                    f" already defined for use with {first.usage_id}"
                )
        return Loaded(loaded, tuple(problems))

    def _read(self, entry: os.DirEntry[str]) -> _Read | None:
        try:
            stamp = _stamp(entry.stat(follow_symlinks=False))
        except OSError:
            return None  # it has gone
        known = self._known.get(entry.name)
        if known is not None and known.stamp == stamp is not None:
            return known
        path = self._directory / entry.name
        try:
            text = read_file(path, _MAX_XML)
            if text is None:
                return None
            secret = parse_secret(text)
            if entry.name != f"{secret.uuid}{_XML}":
                raise InternalError(f"<uuid> does not match secret file name '{entry.name}'")
        except StorageError as err:
            return _Read(stamp, None, err.message)
        return _Read(stamp, secret)

    def write(self, secret: SecretDef) -> None:
        """Write a definition.

        :raise SystemFailure: the old one is whole.
        """
        self._put(secret.uuid, _XML, format_secret(secret).encode(errors="surrogateescape"))

    def write_value(self, uuid: UUID, value: bytes) -> None:
        """Write a value.

        :raise SystemFailure: the old one is whole.
        """
        self._put(uuid, _BASE64, b64encode(value))

    def value(self, uuid: UUID) -> bytes | None:
        """Return a value, None if there is none.

        :raise SystemFailure: it cannot be read.
        :raise InternalError: it is no base64.
        """
        path = self._path(uuid, _BASE64)
        text = read_file(path, _MAX_BASE64)
        if text is None:
            return None
        try:
            return b64decode(b"".join(text.split()), validate=True)
        except binascii.Error:
            detail = f"invalid base64 in '{printable(path)}'"
        # raised where no part of the value is in the chain of exceptions
        raise InternalError(detail, domain=Domain.SECRET)

    def remove_value(self, uuid: UUID) -> None:
        """Remove a value, if there is one.

        :raise SystemFailure: it may still be there.
        """
        remove_file(self._path(uuid, _BASE64), durable=self._durable)

    def remove_definition(self, uuid: UUID) -> None:
        """Remove a definition alone.

        :raise SystemFailure: it may still be there.
        """
        remove_file(self._path(uuid, _XML), durable=self._durable)

    def remove(self, uuid: UUID) -> None:
        """Remove a value and then its definition.

        :raise SystemFailure: one of them may still be there.
        """
        self.remove_value(uuid)
        self.remove_definition(uuid)

    def _put(self, uuid: UUID, suffix: str, data: bytes) -> None:
        make_directory(self._directory, durable=self._durable)
        write_file(self._path(uuid, suffix), data, durable=self._durable)

    def _path(self, uuid: UUID, suffix: str) -> Path:
        return self._directory / f"{uuid}{suffix}"


def _stamp(status: os.stat_result) -> _Stamp:
    if time.time_ns() - status.st_mtime_ns < _TICK:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
