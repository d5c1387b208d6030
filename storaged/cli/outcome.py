"""How a command ends: the exit status for each class of error, and the words on standard error.

Scripts decide by the status and never need to match a text; docs and ``storagectl --help`` print
the same table from `ExitCode`.
"""

from __future__ import annotations

import errno
import sys
from enum import IntEnum

from storaged import errors
from storaged.rpc import errors as connection_errors


class ExitCode(IntEnum):
    """The exit statuses of storagectl. Numbers never change their meaning."""

    OK = 0
    #: everything that has no number of its own, such as a tool that failed
    FAILED = 1
    #: the command line itself is wrong
    USAGE = 2
    #: no such pool, volume, secret, file or directory
    NOT_FOUND = 4
    #: a pool, volume or file of this name, or with this source, is there already
    EXISTS = 5
    #: somebody works on it, or another engine holds the state directory
    BUSY = 6
    #: the kernel or a policy does not let this user do it
    DENIED = 7
    #: a bad value or a bad XML document
    INVALID = 8
    #: this pool type, volume format or host cannot do it
    UNSUPPORTED = 9
    #: the kernel or the storage failed, or there is no space left
    STORAGE = 10
    #: not in this state, such as a pool that is not active
    STATE = 11
    #: the storage did not answer in time
    TIMEOUT = 12
    #: a check found that an image has corruptions or leaks
    DAMAGED = 13
    #: a bug in storaged
    INTERNAL = 70
    #: Ctrl-C, or the job was cancelled
    INTERRUPTED = 130
    #: whoever read the output went away
    PIPE = 141

    @property
    def kind(self) -> str:
        """The word for programs, such as ``not-found``."""
        return self.name.lower().replace("_", "-")


#: For people: what each status means, in the order of the numbers.
MEANINGS: tuple[tuple[ExitCode, str], ...] = (
    (ExitCode.OK, "success"),
    (ExitCode.FAILED, "any other failure, such as a tool that failed"),
    (ExitCode.USAGE, "wrong command line"),
    (ExitCode.NOT_FOUND, "no such pool, volume, secret, file or directory"),
    (ExitCode.EXISTS, "it exists already, or clashes with one that does"),
    (ExitCode.BUSY, "in use, or another engine holds the state directory"),
    (ExitCode.DENIED, "permission denied"),
    (ExitCode.INVALID, "a bad value or a bad XML document"),
    (ExitCode.UNSUPPORTED, "this pool type, format or host cannot do it"),
    (ExitCode.STORAGE, "no space left, or the storage failed"),
    (ExitCode.STATE, "not in this state, such as a pool that is not active"),
    (ExitCode.TIMEOUT, "the storage did not answer in time"),
    (ExitCode.DAMAGED, "a check found corruptions or leaks"),
    (ExitCode.INTERNAL, "a bug in storaged"),
    (ExitCode.INTERRUPTED, "interrupted, or the job was cancelled"),
    (ExitCode.PIPE, "the reader of the output went away"),
)

_BY_CLASS: dict[type[BaseException], ExitCode] = {
    errors.StorageError: ExitCode.FAILED,
    errors.Unsupported: ExitCode.UNSUPPORTED,
    errors.InvalidArgument: ExitCode.INVALID,
    errors.MissingBackend: ExitCode.UNSUPPORTED,
    errors.PoolBusy: ExitCode.BUSY,
    errors.PoolExists: ExitCode.EXISTS,
    errors.NoSpace: ExitCode.STORAGE,
    errors.TargetChanged: ExitCode.STATE,
    errors.XMLError: ExitCode.INVALID,
    errors.SystemFailure: ExitCode.STORAGE,
    errors.NoSuchPool: ExitCode.NOT_FOUND,
    errors.NoSuchVolume: ExitCode.NOT_FOUND,
    errors.OperationInvalid: ExitCode.STATE,
    errors.NameTaken: ExitCode.EXISTS,
    errors.VolumeBusy: ExitCode.BUSY,
    errors.NoSuchSecret: ExitCode.NOT_FOUND,
    errors.ConfigUnsupported: ExitCode.UNSUPPORTED,
    errors.Timeout: ExitCode.TIMEOUT,
    errors.ArgumentUnsupported: ExitCode.UNSUPPORTED,
    errors.PoolBuilt: ExitCode.EXISTS,
    errors.Cancelled: ExitCode.INTERRUPTED,
    errors.Overflow: ExitCode.INVALID,
    errors.OperationUnsupported: ExitCode.UNSUPPORTED,
    errors.ResourceBusy: ExitCode.BUSY,
    errors.AccessDenied: ExitCode.DENIED,
    errors.VolumeExists: ExitCode.EXISTS,
    connection_errors.OperationDenied: ExitCode.DENIED,
    connection_errors.AuthFailed: ExitCode.DENIED,
    connection_errors.AuthCancelled: ExitCode.DENIED,
    connection_errors.AuthUnavailable: ExitCode.DENIED,
}

_BY_ERRNO = {
    errno.ENOENT: ExitCode.NOT_FOUND,
    errno.EEXIST: ExitCode.EXISTS,
    errno.EBUSY: ExitCode.BUSY,
    errno.ETXTBSY: ExitCode.BUSY,
    errno.EACCES: ExitCode.DENIED,
    errno.EPERM: ExitCode.DENIED,
    errno.EROFS: ExitCode.DENIED,
    errno.EOPNOTSUPP: ExitCode.UNSUPPORTED,
    errno.ENOSYS: ExitCode.UNSUPPORTED,
    errno.EXDEV: ExitCode.UNSUPPORTED,
}


def classify(error: errors.StorageError) -> ExitCode:
    """Return the exit status for *error*: by its ``errno`` if it has one, else by its class."""
    if isinstance(error, errors.SystemFailure) and error.errno in _BY_ERRNO:
        return _BY_ERRNO[error.errno]
    if isinstance(error, errors.InternalError) and _is_taken(error.message):
        return ExitCode.EXISTS
    return next(_BY_CLASS[kind] for kind in type(error).__mro__ if kind in _BY_CLASS)


def _is_taken(message: str) -> bool:
    """Tell whether it says that a clone's name is taken: libvirt has no code of its own for it."""
    return "storage volume name '" in message and message.endswith("' already in use.")


def complain(
    code: ExitCode,
    message: str,
    advice: str | None = None,
    *,
    as_json: bool = False,
    number: int = 0,
) -> None:
    """Say on standard error what went wrong.

    :param number: libvirt's number of the error; 0 if it comes from the command line.
    :param as_json: write one JSON object in one line, ``{"error": {...}}``, instead of words.
    """
    if as_json:
        _print_json(
            "error",
            {
                "code": number,
                "kind": code.kind,
                "status": int(code),
                "message": message,
                "advice": advice,
            },
        )
        return
    print(f"error: {message}", file=sys.stderr)
    if advice:
        print(f"hint: {advice}", file=sys.stderr)


def warn(text: str, *, as_json: bool = False) -> None:
    """Say on standard error what is worth knowing but stops nothing."""
    if as_json:
        _print_json("warning", text)
    else:
        print(f"warning: {text}", file=sys.stderr)


def _print_json(key: str, value: object) -> None:
    import json  # not at the top: people pay for each start

    print(json.dumps({key: value}), file=sys.stderr)
