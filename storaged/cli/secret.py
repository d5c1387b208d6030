"""Passphrases on the command line: never on it, but in a file or on a descriptor."""

from __future__ import annotations

import binascii
import sys
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from storaged.errors import InvalidArgument, system_errors

F = TypeVar("F", bound=Callable[..., Any])

#: The longest passphrase, in bytes.
_MAX: Final = 65536


def secret_option(name: str, whose: str) -> Callable[[F], F]:
    """Return an option that takes the file of a passphrase (a decorator).

    :param name: such as ``--secret-file``.
    :param whose: for the help.
    """
    return click.option(
        name,
        metavar="FILE|-",
        type=click.Path(allow_dash=True),
        help=f"File with the passphrase of {whose}; a newline at its end does not count.",
    )


def read_secrets(**files: str | None) -> dict[str, bytes]:
    """Return the passphrases of the files that were given, by the same names.

    :raise click.UsageError: two are to come from standard input.
    """
    if [*files.values()].count("-") > 1:
        raise click.UsageError("only one passphrase can come from standard input")
    found = {name: read_secret(path) for name, path in files.items()}
    return {name: secret for name, secret in found.items() if secret is not None}


def read_secret(path: str | None, *, base64: bool = False) -> bytes | None:
    """Return what a file holds, without one newline at its end; None if there is no file.

    :param path: ``-`` is standard input; ``/dev/fd/N`` is a descriptor.
    :param base64: it holds that, in lines of any length.
    :raise SystemFailure: it cannot be read.
    :raise InvalidArgument: it is empty, or too long for a passphrase, or no base64.
    """
    if path is None:
        return None
    limit = 2 * _MAX if base64 else _MAX + 1
    with system_errors(f"cannot read '{path}'"):
        if path == "-":
            text = sys.stdin.buffer.read(limit + 1)
        else:
            with Path(path).open("rb") as file:
                text = file.read(limit + 1)
    if len(text) <= limit:
        secret = decoded(text) if base64 else text.removesuffix(b"\n")
        if 0 < len(secret) <= _MAX:
            return secret
    raise InvalidArgument(f"a passphrase has 1 to {_MAX} bytes, what '{path}' holds does not")


def decoded(text: bytes) -> bytes:
    """Return what stands in base64, between whose letters there may be white space.

    :raise InvalidArgument: it is no base64; no part of it is shown.
    """
    try:
        return b64decode(b"".join(text.split()), validate=True)
    except binascii.Error:
        raise InvalidArgument("the value is not base64") from None
