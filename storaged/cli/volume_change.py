"""Changing volumes: resize, wipe, delete."""

from __future__ import annotations

import click

from storaged.cli import render
from storaged.cli.invocation import Invocation
from storaged.cli.lazy import command
from storaged.cli.lookup import find_volume
from storaged.cli.objects import volume_changed
from storaged.cli.parameters import SIZE, pool_option, volume_argument
from storaged.cli.secret import read_secrets, secret_option

#: Patterns that `wipe` knows, in libvirt's order.
ALGORITHMS = (
    "zero", "nnsa", "dod", "bsi", "gutmann", "schneier", "pfitzner7", "pfitzner33", "random",
    "trim",
)  # fmt: skip

force_option = click.option(
    "--force", is_flag=True, help="Also if a virtual machine has it open, or other volumes need it."
)


@command(
    "resize",
    examples=(
        "storagectl vol resize web1.qcow2 40G --pool default",
        "storagectl vol resize default/web1.qcow2 10G --delta",
        "storagectl vol resize default/web1.qcow2 20G --shrink",
    ),
    context_settings={"ignore_unknown_options": True},  # "-5G" is a size here
)
@volume_argument
@click.argument("capacity", metavar="SIZE")
@pool_option
@click.option("--allocate", is_flag=True, help="Allocate what is added.")
@click.option("--delta", is_flag=True, help="SIZE is what to add, or to take off with --shrink.")
@click.option(
    "--shrink", is_flag=True, help="Let the volume become smaller, down to its last data."
)
@click.option(
    "--force",
    is_flag=True,
    help="With --shrink, although data are cut off or other volumes need it; of a raw volume, also"
    " if a virtual machine has it open.",
)
@secret_option("--secret-file", "the volume")
@click.pass_obj
def resize(
    call: Invocation,
    volume: str,
    capacity: str,
    pool: str | None,
    allocate: bool,
    delta: bool,
    shrink: bool,
    force: bool,
    secret_file: str | None,
) -> None:
    """Change the capacity of a volume."""
    if capacity.startswith("-") and not shrink:
        raise click.UsageError("a negative SIZE needs --shrink")
    secrets = read_secrets(secret=secret_file)
    count = SIZE.convert(capacity.removeprefix("-"), None, click.get_current_context())
    with call.change() as storage:
        found = find_volume(storage, volume, pool)
        call.follow(
            found.resize(
                count,
                allocate=allocate,
                delta=delta,
                shrink=shrink,
                force=force,
                wait=False,
                **secrets,
            )
        )
        changed = volume_changed("resized", found)
        size = render.size(found.info().capacity)
        call.emit(changed, f"volume {found.name} resized to {size}")


@command(
    "wipe",
    examples=(
        "storagectl vol wipe old.img --pool default",
        "storagectl vol wipe /dev/vg0/old --algorithm random",
    ),
)
@volume_argument
@pool_option
@click.option(
    "--algorithm",
    type=click.Choice(ALGORITHMS),
    default="zero",
    show_default=True,
    help="What to overwrite with.",
)
@force_option
@click.pass_obj
def wipe(call: Invocation, volume: str, pool: str | None, algorithm: str, force: bool) -> None:
    """Overwrite what a volume holds.

    On thin storage and on solid state disks old copies may survive.
    """
    import storaged

    with call.change() as storage:
        found = find_volume(storage, volume, pool)
        call.follow(found.wipe(storaged.WipeAlgorithm[algorithm.upper()], force=force, wait=False))
        call.emit(volume_changed("wiped", found), f"volume {found.name} wiped")


@command(
    "delete",
    examples=(
        "storagectl vol delete web1.qcow2 --pool default",
        "storagectl vol delete default/web1.qcow2",
        "storagectl vol delete ceph/web1 --snapshots",
    ),
)
@volume_argument
@pool_option
@force_option
@click.option("--snapshots", is_flag=True, help="With the snapshots it has: in pools of type rbd.")
@click.pass_obj
def delete(call: Invocation, volume: str, pool: str | None, force: bool, snapshots: bool) -> None:
    """Delete a volume.

    Asks nothing. It is refused while a virtual machine has the volume open, and while other volumes
    have it as their backing file.
    """
    with call.change() as storage:
        found = find_volume(storage, volume, pool)
        gone = {"name": found.name, "pool": found.pool.name, "key": found.key, "path": found.path}
        call.follow(found.delete(force=force, snapshots=snapshots, wait=False))
        call.emit({"action": "deleted", "volume": gone}, f"volume {gone['name']} deleted")
