"""Whether a user can open a volume, and if not, what stops them where: access."""

from __future__ import annotations

import pwd
from typing import TYPE_CHECKING

import click

from storaged.cli import render
from storaged.cli.invocation import Invocation
from storaged.cli.lazy import command
from storaged.cli.lookup import find_volume
from storaged.cli.outcome import ExitCode
from storaged.cli.parameters import pool_option, volume_argument

if TYPE_CHECKING:
    from storaged import AccessReport

#: Whom distributions run QEMU as: Debian, Fedora and openSUSE.
_QEMU_USERS = ("libvirt-qemu", "qemu")


@command(
    "access",
    examples=(
        "storagectl vol access default/web1.qcow2",
        "storagectl vol access web1.qcow2 --pool default --user qemu",
    ),
)
@volume_argument
@pool_option
@click.option(
    "--user", metavar="USER", help="By name or number; the user QEMU runs as unless given."
)
@click.pass_obj
def access(call: Invocation, volume: str, pool: str | None, user: str | None) -> int:
    """Tell whether a user can open a volume.

    Walks every part of the path, names what stops the user there, and prints the command that
    mends it. Ends with status 0 if the volume can be read and written, with 7 if it cannot. Rules
    of security modules and of a file server are not seen.
    """
    who = user or _qemu_user()
    with call.look() as storage:
        report = find_volume(storage, volume, pool).access(who)
    call.emit(_object(report), lambda: _words(report))
    return ExitCode.OK if report.allowed else ExitCode.DENIED


def _qemu_user() -> str:
    names = {entry.pw_name for entry in pwd.getpwall()}
    for name in _QEMU_USERS:
        if name in names:
            return name
    raise click.UsageError(f"there is no user {' or '.join(_QEMU_USERS)} here: say --user")


def _object(report: AccessReport) -> dict[str, object]:
    return {
        "path": report.path,
        "user": report.user,
        "allowed": report.allowed,
        "obstacles": [
            {"path": one.path, "doing": one.doing, "why": one.why, "command": one.command}
            for one in report.obstacles
        ],
    }


def _words(report: AccessReport) -> str:
    path = render.clean(report.path)
    if report.allowed:
        return f"user {report.user} can read and write {path}"
    lines = [f"user {report.user} cannot use {path}:"]
    for one in report.obstacles:
        lines.append(f"  cannot {one.doing} {render.clean(one.path)}: {one.why}")
        if one.command:
            lines.append(f"    {render.clean(one.command)}")
    return "\n".join(lines)
