"""The errors of storaged: one root, a class for each meaning, libvirt's code and text on each.

::

    StorageError
    ├── InternalError            1   a bug of ours, or a state libvirt reports as "internal error"
    │   ├── MissingBackend       1   nobody brings the pool's type
    │   ├── CommandFailed        1   a tool that we ran ended with a status nobody accepts
    │   │   └── CommandTimeout   1   it was killed, because it took too long
    │   ├── MissingProgram       1   a tool is not installed
    │   └── PoolBusy             1   jobs of the pool stand in the way
    ├── Unsupported              3   the pool's type lacks the ability
    ├── InvalidArgument          8   a value that no state could make right
    │   ├── BadArgument          8   refused by the call itself
    │   └── InvalidSecret       65   a passphrase that does not open the volume
    ├── OperationFailed          9   what was asked clashes with what is there
    │   ├── PoolExists           9   another pool has the name, the uuid or the source
    │   ├── NoSpace              9   the pool is too full
    │   └── TargetChanged        9   the target is not what it was when the pool was started
    ├── XMLError                27   a document that breaks a rule
    │   ├── XMLSyntaxError      35   not well-formed, or a character that may not be there
    │   └── XMLSchemaError      92   refused by the RELAX NG schema
    ├── SystemFailure           38   the kernel said no; keeps ``errno``
    ├── NoSuchPool              49
    ├── NoSuchVolume            50
    ├── OperationInvalid        55   not in this state
    │   ├── NameTaken           55   a file that is no volume of the pool has the name
    │   └── VolumeBusy          55   somebody works on the volume
    ├── NoSuchSecret            66
    ├── ConfigUnsupported       67
    ├── Timeout                 68
    ├── ArgumentUnsupported     74
    ├── ProbeFailed             75
    ├── PoolBuilt               76
    ├── Cancelled               78
    ├── Overflow                82
    ├── OperationUnsupported    84
    ├── ResourceBusy            87   the driver's lock is held by another engine
    ├── AccessDenied            88
    └── VolumeExists            90

What only a daemon and its clients meet is in `storaged.rpc.errors`.
The message (``str(error)``) is libvirt's text alone, because clients of libvirt compare it. What
storaged has to add, the next step and who stands in the way, is `StorageError.advice`.

Sources: libvirt's public error numbers and the prefix that its clients see before each detail.
"""

from __future__ import annotations

import errno
import os
from typing import ClassVar

from storaged.errordomain import Domain as Domain


class StorageError(Exception):
    """Something was asked that could not be done.

    :param detail: what stands behind the prefix of the class; part of libvirt's text.
    :param advice: at most two sentences on what to do, with a command to paste; never a secret.
    :param domain: the part of libvirt that reports it; `Domain.STORAGE` where nothing is said.
    """

    code: int = 1
    prefix: ClassVar[str] = "%s"

    def __init__(
        self, detail: str, *, advice: str | None = None, domain: Domain = Domain.STORAGE
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.advice = advice
        self.domain = domain

    @property
    def message(self) -> str:
        """Libvirt's text, byte for byte as its clients see it."""
        return self.prefix.replace("%s", self.detail, 1)

    def __str__(self) -> str:
        return self.message


class InternalError(StorageError):
    """What libvirt calls an internal error, and everything that is a bug of ours."""

    code = 1
    prefix = "internal error: %s"


class CommandFailed(InternalError):
    """A tool ended with a status that the caller does not accept.

    :param argv: what was run, without secrets.
    :param status: the exit status; negative for a signal.
    :param stderr: the end of what the tool wrote to its standard error.
    """

    def __init__(
        self, argv: tuple[str, ...], status: int, stderr: str, *, advice: str | None = None
    ) -> None:
        what = f"unexpected exit status {status}" if status >= 0 else f"fatal signal {-status}"
        super().__init__(
            f"Child process ({' '.join(argv)}) {what}: {stderr.strip()}",
            advice=advice,
            domain=Domain.NONE,
        )
        self.argv = argv
        self.status = status
        self.stderr = stderr


class CommandTimeout(CommandFailed):
    """A tool did not come to its end in time, and was killed."""


class MissingProgram(InternalError):
    """A program that is needed is not installed; the advice names the package."""


class MissingBackend(InternalError):
    """Nobody brings the pool's type, or what brings it cannot be used; the advice says why."""


class PoolBusy(InternalError):
    """Work under way in the pool stands in the way; the advice names it."""


class Unsupported(StorageError):
    """The pool's type does not have this ability."""

    code = 3
    prefix = "this function is not supported by the connection driver: %s"


class InvalidArgument(StorageError):
    """A value or a flag that is wrong in every state."""

    code = 8
    prefix = "invalid argument: %s"


class BadArgument(InvalidArgument):
    """An argument that the call itself refuses, before anything is looked at.

    :param function: libvirt's name of the call.
    :param argument: the name of the argument.
    """

    prefix = "%s"

    def __init__(
        self, detail: str, *, function: str = "", argument: str = "", advice: str | None = None
    ) -> None:
        super().__init__(detail, advice=advice)
        self.function = function
        self.argument = argument


class InvalidSecret(InvalidArgument):
    """The passphrase that was given does not open the volume."""

    code = 65
    prefix = "Invalid secret: %s"


class OperationFailed(StorageError):
    """The request clashes with what is there: a name, an uuid, a source, the space left."""

    code = 9
    prefix = "operation failed: %s"


class PoolExists(OperationFailed):
    """Another pool has the name, the uuid or the source."""


class TargetChanged(OperationFailed):
    """The target of an active pool is not what it was at the start; nothing is written there."""


class NoSpace(OperationFailed):
    """The pool has too little space left."""


class XMLError(StorageError):
    """A document breaks a rule.

    :param element: path of the element at fault, such as ``target/permissions/mode``.
    :param line: its line in the document, counted from 1; None where the document has no text.
    """

    code = 27
    prefix = "XML error: %s"

    def __init__(
        self,
        detail: str,
        *,
        element: str | None = None,
        line: int | None = None,
        advice: str | None = None,
        domain: Domain = Domain.STORAGE,
    ) -> None:
        super().__init__(detail, advice=advice or where(element, line), domain=domain)
        self.element = element
        self.line = line


class XMLSyntaxError(XMLError):
    """Not well-formed, too deep, too large, or a character that may not stand there."""

    code = 35
    prefix = "%s"


class XMLSchemaError(XMLError):
    """Refused by the RELAX NG schema (only where validation was asked for)."""

    code = 92
    prefix = "XML document failed to validate against schema: %s"


class SystemFailure(StorageError):
    """The kernel refused.

    :param detail: what was tried; the text of the error number is put behind it.
    :param number: the ``errno``, 0 where there is none.
    """

    code = 38

    def __init__(
        self,
        detail: str,
        number: int = 0,
        *,
        advice: str | None = None,
        domain: Domain = Domain.STORAGE,
    ) -> None:
        text = f"{detail}: {os.strerror(number)}" if number else detail
        super().__init__(text, advice=advice, domain=domain)
        self.errno = number


class NoSuchPool(StorageError):
    """No pool has this name, uuid or target path."""

    code = 49
    prefix = "Storage pool not found: %s"


class NoSuchVolume(StorageError):
    """No volume has this name, key or path, also after one look at the storage."""

    code = 50
    prefix = "Storage volume not found: %s"


class OperationInvalid(StorageError):
    """Not in the state in which the pool or the volume is."""

    code = 55
    prefix = "Requested operation is not valid: %s"


class NameTaken(OperationInvalid):
    """Something that is no volume of the pool stands at the path the volume would get."""


class VolumeBusy(OperationInvalid):
    """Somebody works on the volume: a job of ours, or a virtual machine that has it open."""


class NoSuchSecret(StorageError):
    """The secret that a definition names is not there."""

    code = 66
    prefix = "Secret not found: %s"


class ConfigUnsupported(StorageError):
    """The definition asks for something that this pool type or this host cannot do."""

    code = 67
    prefix = "unsupported configuration: %s"


class Timeout(StorageError):
    """The storage did not answer within the bound."""

    code = 68
    prefix = "Timed out during operation: %s"


class ArgumentUnsupported(StorageError):
    """A value that is legal but not for this storage, such as trim on a file."""

    code = 74
    prefix = "argument unsupported: %s"


class ProbeFailed(StorageError):
    """It could not be told what a device or an image holds."""

    code = 75
    prefix = "Storage pool probe failed: %s"


class PoolBuilt(StorageError):
    """The device to build on holds something already."""

    code = 76
    prefix = "Storage pool already built: %s"


class Cancelled(StorageError):
    """Somebody cancelled the job; what it made is gone."""

    code = 78
    prefix = "operation aborted: %s"


class Overflow(StorageError):
    """A number too large for the 64 bits it must fit in."""

    code = 82
    prefix = "numerical overflow: %s"


class OperationUnsupported(StorageError):
    """The ability is there, but not for this kind of volume."""

    code = 84
    prefix = "Operation not supported: %s"


class ResourceBusy(StorageError):
    """Another engine holds the state directory.

    :param pid: the process that holds it, where the kernel tells.
    """

    code = 87
    prefix = "resource busy: %s"

    def __init__(
        self,
        detail: str,
        *,
        pid: int | None = None,
        advice: str | None = None,
        domain: Domain = Domain.STORAGE,
    ) -> None:
        super().__init__(detail, advice=advice, domain=domain)
        self.pid = pid


class AccessDenied(StorageError):
    """The kernel or a policy does not let this user do it."""

    code = 88
    prefix = "access denied: %s"


class VolumeExists(StorageError):
    """The pool has a volume of this name; the detail is the name in single quotes."""

    code = 90
    prefix = "storage volume %s exists already"


def where(element: str | None, line: int | None) -> str | None:
    """Say in words where in a document something is, or None if nothing is known."""
    if element is None:
        return None if line is None else f"See line {line}."
    return f"See <{element}>" + (f" in line {line}." if line is not None else ".")


class system_errors:  # noqa: N801 -- used like a function; no generator, for it is everywhere
    """Translate `OSError` into `SystemFailure`: the one place where that is done.

    :param doing: what is tried, in libvirt's words, such as ``cannot open directory '/d'``.
    :raise SystemFailure: for every `OSError` of the block, chained to it.
    """

    def __init__(self, doing: str, *, advice: str | None = None) -> None:
        self._doing, self._advice = doing, advice

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, err: BaseException | None, trace: object) -> None:
        if isinstance(err, OSError):
            raise SystemFailure(self._doing, err.errno or errno.EIO, advice=self._advice) from err
