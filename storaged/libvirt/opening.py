"""The functions of the module: open a connection, ask for the version and for the last error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from storaged.client.opening import open_link
from storaged.libvirt.arguments import flags as as_flags
from storaged.libvirt.arguments import text
from storaged.libvirt.connection import virConnect
from storaged.libvirt.constants import VIR_CONNECT_NO_ALIASES, VIR_CONNECT_RO
from storaged.libvirt.errors import reporting
from storaged.libvirt.process import PROCESS, ErrorTuple

#: The version of libvirt as which we behave.
_VERSION = 9_000_000


def open(name: str | None = None) -> virConnect:
    """Open a connection; without a name that of the environment or of the settings.

    ``storage:///embed?root=DIR`` is an engine in this process.

    :raise libvirtError: there is none to be had.
    """
    return _open("virConnectOpen", name)


def openReadOnly(name: str | None = None) -> virConnect:  # noqa: N802
    """Open a connection through which nothing can be changed.

    :raise libvirtError: there is none to be had.
    """
    return _open("virConnectOpenReadOnly", name, readonly=True)


def openAuth(uri: str | None, auth: Sequence[Any] | None, flags: int = 0) -> virConnect:  # noqa: N802
    """Open a connection; *flags* are ``VIR_CONNECT_RO`` and ``VIR_CONNECT_NO_ALIASES``.

    :param auth: kinds of credentials, the function that asks for them, its value. It is taken for
        compatibility: the ways in which connections prove who they are ask nobody. None or nothing
        is no credentials, where libvirt-python ends the process.
    :raise libvirtError: there is none to be had.
    :raise TypeError: *auth* is something else.
    """
    bits = as_flags(flags)
    if auth:
        _check_credentials(auth)
    return _open(
        "virConnectOpenAuth",
        uri,
        readonly=bool(bits & VIR_CONNECT_RO),
        aliases=not bits & VIR_CONNECT_NO_ALIASES,
    )


def _open(
    function: str, name: str | None, *, readonly: bool = False, aliases: bool = True
) -> virConnect:
    uri = text(name, function, 1)
    with reporting(function):
        link = open_link(uri, readonly=readonly, aliases=aliases)
    return virConnect(link)


def _check_credentials(auth: object) -> None:
    """Check that there is a list of kinds of credentials, and something behind it."""
    if not isinstance(auth, list | tuple) or len(auth) < 2:
        raise TypeError("credentials must be a list: their kinds, a function, its value")
    kinds = auth[0]
    if not isinstance(kinds, list | tuple) or not all(isinstance(kind, int) for kind in kinds):
        raise TypeError("kinds of credentials must be a list of integers")


def getVersion(name: str | None = None) -> int | tuple[int, int]:  # noqa: N802
    """Return the version of libvirt as which we behave; with a driver's *name*, that twice."""
    if name is None:
        return _VERSION
    if not isinstance(name, str):
        raise TypeError(f"virGetVersion() argument 1 must be str, not {type(name).__name__}")
    return _VERSION, _VERSION


def virInitialize() -> int:  # noqa: N802
    """Do nothing: everything is ready."""
    return 0


def virGetLastError() -> ErrorTuple | None:  # noqa: N802
    """Return the error of this thread's last call; None if it had none."""
    return PROCESS.last_error


def virGetLastErrorMessage() -> str:  # noqa: N802
    """Return the message of the error of this thread's last call."""
    error = PROCESS.last_error
    return "no error" if error is None else error[2] or "unknown error"


def virGetLastErrorCode() -> int:  # noqa: N802
    """Return the code of the error of this thread's last call; 0 if it had none."""
    return 0 if PROCESS.last_error is None else PROCESS.last_error[0]


def virGetLastErrorDomain() -> int:  # noqa: N802
    """Return the domain of the error of this thread's last call; 0 if it had none."""
    return 0 if PROCESS.last_error is None else PROCESS.last_error[1]


def virResetLastError() -> None:  # noqa: N802
    """Forget the error of this thread's last call."""
    PROCESS.reset()


def registerErrorHandler(f: Callable[[Any, ErrorTuple], object] | None, ctx: Any) -> int:  # noqa: N802
    """Have ``f(ctx, error)`` called with each error of the process; None: print them again."""
    PROCESS.set_handler(f, ctx)
    return 1
