"""The exception of libvirt-python, and how the errors of a link become one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from storaged.client.link import RemoteFailure
from storaged.libvirt import errorconstants as numbers
from storaged.libvirt.process import PROCESS, ErrorTuple
from storaged.rpc.remoteerror import RemoteError

_INVALID_POINTERS = (
    (numbers.VIR_ERR_INVALID_CONN, "connection"),
    (numbers.VIR_ERR_INVALID_STORAGE_VOL, "storage volume"),
    (numbers.VIR_ERR_INVALID_STREAM, "stream"),
)


class libvirtError(Exception):  # noqa: N801 -- libvirt-python's name
    """A call failed.

    :param defmsg: the message if libvirt knows of no error.

    ``err`` is the last error of the thread: code, domain, message, level, three strings, two
    integers; None if there was none. Further arguments are taken as older versions took them.
    """

    def __init__(self, defmsg: str, *_: object, **__: object) -> None:
        error = PROCESS.last_error
        message = defmsg if error is None or error[2] is None else error[2]
        super().__init__(message)
        self.err: ErrorTuple | None = error

    def get_error_code(self) -> int | None:
        """Return one of ``VIR_ERR_*``."""
        return None if self.err is None else self.err[0]

    def get_error_domain(self) -> int | None:
        """Return one of ``VIR_FROM_*``: which part of libvirt reports it."""
        return None if self.err is None else self.err[1]

    def get_error_message(self) -> str | None:
        """Return the text."""
        return None if self.err is None else self.err[2]

    def get_error_level(self) -> int | None:
        """Return one of ``VIR_ERR_NONE``, ``VIR_ERR_WARNING`` and ``VIR_ERR_ERROR``."""
        return None if self.err is None else self.err[3]

    def get_str1(self) -> str | None:
        """Return the first string: what stands before the detail, or a function's name."""
        return None if self.err is None else self.err[4]

    def get_str2(self) -> str | None:
        """Return the second string: the detail, or an argument's name."""
        return None if self.err is None else self.err[5]

    def get_str3(self) -> str | None:
        """Return the third string."""
        return None if self.err is None else self.err[6]

    def get_int1(self) -> int | None:
        """Return the first number: the ``errno`` of system errors."""
        return None if self.err is None else self.err[7]

    def get_int2(self) -> int | None:
        """Return the second number."""
        return None if self.err is None else self.err[8]


def fail(error: RemoteError, function: str) -> NoReturn:
    """Report an error and raise it.

    :raise libvirtError: always.
    """
    PROCESS.report(
        (
            error.code,
            error.domain,
            error.message,
            error.level,
            error.str1,
            error.str2,
            error.str3,
            error.int1,
            error.int2,
        )
    )
    raise libvirtError(f"{function}() failed")


@contextmanager
def reporting(function: str) -> Iterator[None]:
    """Begin a call: forget the last error, and raise failures of the link as libvirt-python does.

    :raise libvirtError: for each `RemoteFailure`.
    """
    PROCESS.reset()
    try:
        yield
    except RemoteFailure as failure:
        error = failure.error
    else:
        return
    fail(error, function)


def refuse(code: int, domain: int, prefix: str, detail: str, function: str) -> NoReturn:
    """Raise an ordinary error: a prefix with its detail.

    :raise libvirtError: always.
    """
    message = prefix.replace("%s", detail, 1)
    fail(RemoteError(code, domain, message, str1=prefix, str2=detail), function)


def refuse_argument(
    function: str, argument: str, text: str, domain: int = numbers.VIR_FROM_STORAGE
) -> NoReturn:
    """Raise that an argument is wrong; *text* stands behind its name and the function's.

    :raise libvirtError: always, with code 8.
    """
    message = f"{argument} in {function} {text}"
    error = RemoteError(
        numbers.VIR_ERR_INVALID_ARG,
        domain,
        message,
        str1=function,
        str2=argument,
        int1=0,
        int2=0,
    )
    fail(error, function)


def refuse_pointer(code: int, function: str, domain: int = numbers.VIR_FROM_STORAGE) -> NoReturn:
    """Raise that an object is closed, missing or of the wrong kind.

    :raise libvirtError: always.
    """
    what = dict(_INVALID_POINTERS)[code]
    refuse(code, domain, f"invalid {what} pointer in %s", function, function)


def refuse_unsupported(function: str, domain: int, *, pointer: object = True) -> NoReturn:
    """Raise that there is no such function here, or that the connection is closed.

    :raise libvirtError: always, with code 3 or 6.
    """
    if pointer is None:
        refuse_pointer(numbers.VIR_ERR_INVALID_CONN, function, domain)
    prefix = "this function is not supported by the connection driver: %s"
    refuse(numbers.VIR_ERR_NO_SUPPORT, domain, prefix, function, function)


def refuse_foreign(what: str, argument: str, function: str, domain: int) -> NoReturn:
    """Raise that an argument belongs to another connection.

    :param what: its kind and its name.
    :raise libvirtError: always, with code 8.
    """
    text = f"{what} in {function} must match connection"
    code = numbers.VIR_ERR_INVALID_ARG
    fail(RemoteError(code, domain, text, str1=function, str2=argument, int1=0, int2=0), function)


def refuse_writing(function: str, domain: int = numbers.VIR_FROM_STORAGE) -> NoReturn:
    """Raise that the connection may only read.

    :raise libvirtError: always, with code 29.
    """
    detail = f"read only access prevents {function}"
    refuse(numbers.VIR_ERR_OPERATION_DENIED, domain, "operation forbidden: %s", detail, function)
