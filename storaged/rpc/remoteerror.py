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
#: Longer texts are cut, in characters: libvirt's clients take no string above 4 MiB.
TEXT_MAX: Final = 1 << 18

#: The classes that an error can be revived as, the general before the special ones.
_KINDS: Final = {
    name: found
    for name, found in [*vars(errors).items(), *vars(connection_errors).items()]
    if isinstance(found, type) and issubclass(found, StorageError) and found is not StorageError
}


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
    message, domain = _fit(error.message), int(error.domain)
    if isinstance(error, BadArgument) and error.function:
        function, argument = _fit(error.function), _fit(error.argument)
        return RemoteError(
            error.code, domain, message, str1=function, str2=argument, int1=0, int2=0
        )
    if isinstance(error, SystemFailure):
        return RemoteError(error.code, domain, message, str1="%s", str2=message, int1=error.errno)
    return RemoteError(error.code, domain, message, str1=error.prefix, str2=_fit(error.detail))


def describe_fully(error: StorageError) -> RemoteError:
    """Return an error as our own program carries it: with its class and its advice."""
    number = error.errno if isinstance(error, SystemFailure) else -1
    return RemoteError(
        error.code,
        int(error.domain),
        _fit(error.message),
        str1=type(error).__name__,
        str2=_fit(error.detail),
        str3=None if error.advice is None else _fit(error.advice),
        int1=number,
    )


def describe_bug(error: BaseException) -> RemoteError:
    """Return what a client is told of a fault of ours; the rest stands in the log."""
    return describe(InternalError(f"{type(error).__name__}: {error}", domain=Domain.RPC))


def revive(remote: RemoteError) -> StorageError:
    """Return the error that a reply carries, as an instance of the class it was, or the nearest.

    The message is kept byte for byte, also that of a daemon that speaks another language.
    """
    message = "Unknown error" if remote.message is None else remote.message
    kind = _kind(remote, message)
    detail = _detail(kind, message)
    revived = kind.__new__(kind)
    StorageError.__init__(
        revived, message if detail is None else detail, domain=_domain(remote.domain)
    )
    if detail is None:
        vars(revived)["prefix"] = "%s"
    revived.code = remote.code
    if remote.str1 == kind.__name__:
        revived.advice = remote.str3
    _fill(revived, remote)
    return revived


class _Foreign(StorageError):
    """An error for which there is no class here."""


def _kind(remote: RemoteError, message: str) -> type[StorageError]:
    """Return the class of an error: by its name, else by its code and what its message begins with.

    The code alone decides where no class of it has such a message.
    """
    fitting = [kind for kind in _KINDS.values() if kind.code == remote.code]
    named = _KINDS.get(remote.str1 or "")
    if named in fitting:
        return named
    for kind in fitting:
        if _detail(kind, message) is not None:
            return kind
    return fitting[0] if fitting else _Foreign


def _detail(kind: type[StorageError], message: str) -> str | None:
    """Return what is in a message besides the text of the class, None if that is not in it."""
    before, _, after = kind.prefix.partition("%s")
    if message.startswith(before) and message.endswith(after):
        return message[len(before) : len(message) - len(after)]
    return None


def _fill(revived: StorageError, remote: RemoteError) -> None:
    """Give an error the further attributes of its class."""
    if isinstance(revived, SystemFailure):
        revived.errno = max(remote.int1, 0)
    elif isinstance(revived, BadArgument):
        ours = remote.str1 == type(revived).__name__ or "%" in (remote.str1 or "")
        revived.function = "" if ours else remote.str1 or ""
        revived.argument = "" if ours else remote.str2 or ""
    elif isinstance(revived, errors.XMLError):
        revived.element = revived.line = None
    elif isinstance(revived, errors.ResourceBusy):
        revived.pid = None
    elif isinstance(revived, errors.CommandFailed):
        revived.argv, revived.status, revived.stderr = (), -1, ""


def _domain(number: int) -> Domain:
    try:
        return Domain(number)
    except ValueError:
        return Domain.NONE


def _fit(text: str) -> str:
    """Return a text that can stand in a message: an error must reach its client, whatever it says.

    It is cut, and characters that no message can carry are spelled out.
    """
    if len(text) > TEXT_MAX:
        text = text[:TEXT_MAX] + " ..."
    text = text.replace("\0", "\\x00")
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    return text
