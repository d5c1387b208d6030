"""What the commands' arguments have in common: types of values, and POOL, VOL and SECRET."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from storaged.errors import StorageError
from storaged.units import parse_size

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    IntType = click.ParamType[int]
else:
    IntType = click.ParamType  # which older releases of click cannot subscript

F = TypeVar("F", bound=Callable[..., Any])

POOL_TYPES = (
    "dir", "fs", "netfs", "logical", "disk", "iscsi", "iscsi-direct", "scsi", "mpath", "rbd",
    "sheepdog", "gluster", "zfs", "vstorage",
)  # fmt: skip
VOLUME_FORMATS = ("raw", "qcow2", "vmdk")
SECRET_KINDS = ("volume", "ceph", "iscsi", "tls", "vtpm")


class SizeType(IntType):
    """A size in bytes, with or without a unit: 20G, 512MiB, 4096."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the bytes."""
        try:
            return parse_size(value)
        except StorageError as err:
            self.fail(f"{err}. {err.advice}" if err.advice else str(err), param, ctx)


class ModeType(IntType):
    """Permission bits in octal, such as 0644."""

    name = "mode"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the bits."""
        if isinstance(value, int):
            return value
        try:
            bits = int(value, 8)
        except ValueError:
            bits = -1
        if not 0 <= bits <= 0o777:
            self.fail(f"'{value}' is no octal mode from 0000 to 0777", param, ctx)
        return bits


class OwnerType(IntType):
    """A user or a group, by name or number.

    :param group: look the name up among the groups.
    """

    def __init__(self, *, group: bool) -> None:
        self.name = "group" if group else "user"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number."""
        if isinstance(value, int):
            return value
        if value.isascii() and value.isdecimal():
            return int(value)
        try:
            return _group(value) if self.name == "group" else _user(value)
        except KeyError:
            self.fail(f"there is no {self.name} '{value}'", param, ctx)


SIZE = SizeType()
MODE = ModeType()
USER = OwnerType(group=False)
GROUP = OwnerType(group=True)


def owner_options(function: F) -> F:
    """Add ``--owner``, ``--group`` and ``--mode`` (a decorator)."""
    for option in (
        click.option("--mode", type=MODE, help="Permission bits in octal, such as 0644."),
        click.option("--group", type=GROUP, help="Group of the files, by name or number."),
        click.option("--owner", type=USER, help="Owner of the files, by name or number."),
    ):
        function = option(function)
    return function


def build_options(function: F) -> F:
    """Add ``--overwrite`` and ``--no-overwrite``; `overwriting` makes one value of them."""
    for option in (
        click.option(
            "--no-overwrite", is_flag=True, help="Format the source only if it holds nothing."
        ),
        click.option("--overwrite", is_flag=True, help="Format the source whatever it holds."),
    ):
        function = option(function)
    return function


def overwriting(overwrite: bool, no_overwrite: bool) -> bool | None:
    """Return True to format in any case, False only what is empty, None to format nothing.

    :raise click.UsageError: both were given.
    """
    if overwrite and no_overwrite:
        raise click.UsageError("--overwrite and --no-overwrite exclude each other")
    return True if overwrite else False if no_overwrite else None


def complete_pool(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Offer the names of pools."""
    from storaged.cli import completion

    return completion.pools(ctx, incomplete)


def complete_volume(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Offer the names of volumes."""
    from storaged.cli import completion

    return completion.volumes(ctx, incomplete)


def complete_job(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Offer the ids of jobs."""
    from storaged.cli import completion

    return completion.jobs(ctx, incomplete)


def complete_secret(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Offer the secrets."""
    from storaged.cli import completion

    return completion.secrets(ctx, incomplete)


def complete_words(
    *words: str,
) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Offer *words*, but let other values pass."""

    def offer(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return offer


pool_argument = click.argument("pool", metavar="POOL", shell_complete=complete_pool)
volume_argument = click.argument("volume", metavar="VOL", shell_complete=complete_volume)
pool_option = click.option(
    "--pool",
    metavar="POOL",
    shell_complete=complete_pool,
    help="Pool of VOL; needed if VOL is a bare name.",
)
file_argument = click.argument("file", metavar="FILE|-", type=click.Path(allow_dash=True))
validate_option = click.option(
    "--validate", is_flag=True, help="Check the document against the schema too."
)
secret_argument = click.argument("secret", metavar="SECRET", shell_complete=complete_secret)
bytes_option = click.option("--bytes", "exact", is_flag=True, help="Print sizes as plain bytes.")


def _user(name: str) -> int:
    import pwd

    return pwd.getpwnam(name).pw_uid


def _group(name: str) -> int:
    import grp

    return grp.getgrnam(name).gr_gid
