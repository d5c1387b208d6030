"""Errors on the wire, and from there back to the classes they were.

Three shapes exist. Ordinary errors carry the prefix of their class and the detail apart; those of
the kernel the ``errno``; arguments that a call itself refuses the names of the function and of the
argument. What storaged has to add, `StorageError.advice` and the class, travels on its own program
only, where the three strings are class, detail and advice.

Source: libvirt's behaviour.
"""

from __future__ import annotations

from typing import Annotated, Final

from storaged import errors
from storaged.errors import BadArgument, Domain, InternalError, StorageError, SystemFailure
from storaged.rpc import errors as connection_errors
from storaged.rpc.record import Nested, Record
from storaged.rpc.xdr import Int, Maybe, MaybeString, String, UuidBytes

#: The level of all errors.
LEVEL_ERROR: Final = 2
#: Longer texts are cut: libvirt's clients take no string above 4 MiB.
TEXT_MAX: Final = 1 << 20


class ErrorDomain(Record):
    """The virtual machine that an error is about; storage has none."""

    name: String
    uuid: UuidBytes
    id: Int


class ErrorNetwork(Record):
    """The network that an error is about; storage has none."""

    name: String
    uuid: UuidBytes


class RemoteError(Record):
    """An error as it stands in a reply."""

    code: Int
    domain: Int
    message: MaybeString
    level: Int = LEVEL_ERROR
    dom: Annotated[ErrorDomain | None, Maybe(Nested(ErrorDomain))] = None
    str1: MaybeString = None
    str2: MaybeString = None
    str3: MaybeString = None
    int1: Int = -1
    int2: Int = -1
    net: Annotated[ErrorNetwork | None, Maybe(Nested(ErrorNetwork))] = None


def describe(error: StorageError) -> RemoteError:
    """Return an error as libvirt's clients know it."""
    message, domain = _cut(error.message), int(error.domain)
    if isinstance(error, BadArgument) and error.function:
        function, argument = error.function, error.argument
        return RemoteError(
            error.code, domain, message, str1=function, str2=argument, int1=0, int2=0
        )
    if isinstance(error, SystemFailure):
        return RemoteError(error.code, domain, message, str1="%s", str2=message, int1=error.errno)
    return RemoteError(error.code, domain, message, str1=error.prefix, str2=_cut(error.detail))


def describe_fully(error: StorageError) -> RemoteError:
    """Return an error as our own program carries it: with its class and its advice."""
    number = error.errno if isinstance(error, SystemFailure) else -1
    return RemoteError(
        error.code,
        int(error.domain),
        _cut(error.message),
        str1=type(error).__name__,
        str2=_cut(error.detail),
        str3=None if error.advice is None else _cut(error.advice),
        int1=number,
    )


def describe_bug(error: BaseException) -> RemoteError:
    """Return what a client is told of a fault of ours; the rest stands in the log."""
    return describe(InternalError(f"{type(error).__name__}: {error}", domain=Domain.RPC))


def revive(remote: RemoteError) -> StorageError:
    """Return the error that a reply carries, as an instance of the class it was, or the nearest.

    The message is kept byte for byte.
    """
    message = remote.message or "Unknown error"
    kind, detail = _fitting(remote, message)
    revived = kind.__new__(kind)
    StorageError.__init__(revived, detail, advice=None, domain=_domain(remote.domain))
    revived.code = remote.code
    _fill(revived, remote)
    return revived


class _Foreign(StorageError):
    """An error for which there is no class here."""


def _fill(revived: StorageError, remote: RemoteError) -> None:
    """Give an error the further attributes of its class."""
    if remote.str1 == type(revived).__name__ and remote.str3:
        revived.advice = remote.str3
    if isinstance(revived, SystemFailure):
        revived.errno = max(remote.int1, 0)
    elif isinstance(revived, BadArgument):
        revived.function, revived.argument = remote.str1 or "", remote.str2 or ""
    elif isinstance(revived, errors.XMLError):
        revived.element = revived.line = None
    elif isinstance(revived, errors.ResourceBusy):
        revived.pid = None
    elif isinstance(revived, errors.CommandFailed):
        revived.argv, revived.status, revived.stderr = (), -1, ""


def _fitting(remote: RemoteError, message: str) -> tuple[type[StorageError], str]:
    """Return the class of an error, and what in its message stands behind the class's prefix."""
    name = remote.str1 or ""
    named = getattr(errors, name, None) or getattr(connection_errors, name, None)
    kinds = _classes(StorageError)
    if isinstance(named, type) and issubclass(named, StorageError):
        kinds.insert(0, named)
    for kind in kinds:
        before, _, after = kind.prefix.partition("%s")
        if kind.code == remote.code and message.startswith(before) and message.endswith(after):
            return kind, message[len(before) : len(message) - len(after)]
    return _Foreign, message


def _classes(root: type[StorageError]) -> list[type[StorageError]]:
    """Return all classes of errors, those near the root first."""
    found = [kind for kind in root.__subclasses__() if kind is not _Foreign]
    for kind in tuple(found):
        found.extend(_classes(kind))
    return found


def _domain(number: int) -> Domain:
    try:
        return Domain(number)
    except ValueError:
        return Domain.NONE


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_MAX // 4 else text[: TEXT_MAX // 4] + " ..."
