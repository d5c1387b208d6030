"""Libvirt's files of secrets: one for the definition, one for the value.

``UUID.xml`` and ``UUID.base64``, mode 0600, in a directory of mode 0700; the value is plain base64
without a newline. Other than the files of pools they carry no comment.

Source: what libvirt's secret driver 9.0 writes.
"""

from __future__ import annotations

import binascii
import os
import stat
from base64 import b64decode, b64encode
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import UUID

from storaged.atomic import make_directory, read_file, remove_file, write_file
from storaged.errors import Domain, InternalError, StorageError, system_errors
from storaged.paths import printable
from storaged.secrets.document import format_secret, parse_secret
from storaged.secrets.values import MAX_VALUE, SecretDef

_XML, _BASE64 = ".xml", ".base64"
#: The longest file of a value, in bytes; an editor may have left a newline.
_MAX_BASE64: Final = MAX_VALUE * 4 // 3 + 64
#: The longest file of a definition, in bytes.
_MAX_XML: Final = 1024 * 1024

#: Tells one content of a file from another: inode, size, time.
_Stamp = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class _Read:
    """A definition as it was read.

    :param problem: why there is none.
    """

    stamp: _Stamp
    secret: SecretDef | None
    problem: str | None = None


class SecretFiles:
    """The files of one directory.

    It is read again where it has changed: who else may write there is not known.

    :param durable: a change has reached the disk when a call returns.
    """

    def __init__(self, directory: Path, *, durable: bool = True) -> None:
        self._directory = directory
        self._durable = durable
        self._known: dict[str, _Read] = {}

    def stamp(self) -> _Stamp | None:
        """Return what changes when a file of the directory comes, goes or is replaced.

        :raise SystemFailure: it cannot be looked at.
        """
        with system_errors(f"cannot open directory '{printable(self._directory)}'"):
            try:
                return _stamp(self._directory.stat())
            except FileNotFoundError:
                return None

    def load(self) -> tuple[dict[UUID, SecretDef], tuple[str, ...]]:
        """Return the definitions, and which files could not be used and why.

        Such files are left as they are. Only what has changed since the last time is read.

        :raise SystemFailure: the directory cannot be read.
        """
        found: dict[str, _Read] = {}
        with system_errors(f"cannot open directory '{printable(self._directory)}'"):
            try:
                names = sorted(os.listdir(self._directory))  # noqa: PTH208 -- names are enough
            except FileNotFoundError:
                names = []
        for name in names:
            if name.endswith(_XML) and not name.startswith("."):
                read = self._read(name)
                if read is not None:
                    found[name] = read
        self._known = found
        problems = tuple(read.problem for read in found.values() if read.problem is not None)
        return {r.secret.uuid: r.secret for r in found.values() if r.secret is not None}, problems

    def _read(self, name: str) -> _Read | None:
        path = self._directory / name
        try:
            status = path.lstat()
        except OSError:
            return None  # it has gone
        known = self._known.get(name)
        stamp = _stamp(status)
        if known is not None and known.stamp == stamp:
            return known
        try:
            text = read_file(path, _MAX_XML)
            if text is None:
                return None
            secret = parse_secret(text)
            if name != f"{secret.uuid}{_XML}":
                raise InternalError(f"<uuid> does not match secret file name '{name}'")
        except StorageError as err:
            return _Read(stamp, None, f"{printable(path)}: {err.message}")
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
    size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
    return status.st_ino, size, status.st_mtime_ns
