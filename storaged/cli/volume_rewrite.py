"""Changing the images in volumes, not their content: rebase, amend, convert."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from storaged.cli import render
from storaged.cli.invocation import Invocation
from storaged.cli.lazy import command
from storaged.cli.lookup import find_volume
from storaged.cli.objects import volume_changed
from storaged.cli.parameters import (
    SIZE,
    VOLUME_FORMATS,
    complete_words,
    pool_option,
    volume_argument,
)
from storaged.cli.secret import read_secrets, secret_option
from storaged.cli.volume_create import warn_of
from storaged.errors import NoSuchVolume

if TYPE_CHECKING:
    from storaged import Storage, Volume

compress_option = click.option(
    "--compress",
    type=click.Choice(["zlib", "zstd"]),
    help="Pack the data (qcow2); they are read more slowly then.",
)
durability_option = click.option(
    "--durability",
    type=click.Choice(["full", "none"]),
    help="Whether success survives a loss of power; as the engine is set up unless given.",
)


@command(
    "rebase",
    examples=(
        "storagectl vol rebase vms/web1.qcow2 --backing debian12.qcow2 --backing-format qcow2",
        "storagectl vol rebase vms/web1.qcow2 --set-backing-format qcow2",
        "storagectl vol rebase vms/web1.qcow2 --no-backing",
    ),
)
@volume_argument
@pool_option
@click.option("--backing", metavar="PATH", help="The new backing file, as the image is to name it.")
@click.option(
    "--backing-format",
    shell_complete=complete_words(*VOLUME_FORMATS),
    help="Format of the new backing file; needed unless it is a volume.",
)
@click.option("--no-backing", is_flag=True, help="Refer to no backing file any more.")
@click.option(
    "--set-backing-format",
    metavar="FORMAT",
    shell_complete=complete_words(*VOLUME_FORMATS),
    help="Keep the backing file and record its format.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Although the backing file is missing, of another format, unsound.",
)
@click.pass_obj
def rebase(
    call: Invocation,
    volume: str,
    pool: str | None,
    backing: str | None,
    backing_format: str | None,
    no_backing: bool,
    set_backing_format: str | None,
    force: bool,
) -> None:
    """Change what a qcow2 has as its backing file.

    Only the header changes, in one step, and no data: where the image has none of its own, it shows
    what the new backing file has there. So that must hold the same as the old one, such as after a
    move. A virtual machine that has the image open must be stopped first; no force helps there.
    """
    if [backing is not None, no_backing, set_backing_format is not None].count(True) != 1:
        raise click.UsageError("one of --backing, --no-backing and --set-backing-format is needed")
    if backing is None and backing_format is not None:
        raise click.UsageError("--backing-format belongs to --backing")
    with call.change() as storage:
        found = find_volume(storage, volume, pool)
        if set_backing_format is not None:
            job = found.set_backing_format(set_backing_format, force=force, wait=False)
        else:
            if backing is not None and backing_format is None:
                backing_format = _known_format(storage, found, backing)
            job = found.rebase(backing, backing_format, force=force, wait=False)
        call.follow(job)
        call.emit(volume_changed("rebased", found), f"volume {found.name} rebased")


@command(
    "amend",
    examples=(
        "storagectl vol amend vms/web1.qcow2 --lazy-refcounts",
        "storagectl vol amend vms/old.qcow2 --compat 1.1",
    ),
)
@volume_argument
@pool_option
@click.option(
    "--lazy-refcounts/--no-lazy-refcounts",
    default=None,
    help="Have reference counts written later, or at once.",
)
@click.option(
    "--compat",
    shell_complete=complete_words("1.1"),
    help="1.1 makes a version 3 of an image; the way back is 'vol convert'.",
)
@click.pass_obj
def amend(
    call: Invocation, volume: str, pool: str | None, lazy_refcounts: bool | None, compat: str | None
) -> None:
    """Change features of a qcow2.

    What stands in its header alone: that is done at once. For everything else, such as another
    cluster size, 'vol convert' writes the image anew.
    """
    if lazy_refcounts is None and compat is None:
        raise click.UsageError("nothing to amend: say --lazy-refcounts or --compat")
    with call.change() as storage:
        found = find_volume(storage, volume, pool)
        call.follow(found.amend(lazy_refcounts=lazy_refcounts, compat=compat, wait=False))
        call.emit(volume_changed("amended", found), f"volume {found.name} amended")


@command(
    "convert",
    examples=(
        "storagectl vol convert vms/web1.img --format qcow2",
        "storagectl vol convert vms/web1.qcow2 --compress zstd",
        "storagectl vol convert vms/web1.qcow2 --flatten",
        "storagectl vol convert vms/web1.qcow2 --compat 0.10 --cluster-size 2M",
    ),
)
@volume_argument
@pool_option
@click.option(
    "--format",
    shell_complete=complete_words(*VOLUME_FORMATS),
    help="The new format: raw, qcow2 or vmdk; the present one unless given.",
)
@click.option(
    "--compat",
    shell_complete=complete_words("0.10", "1.1"),
    help="Version of a qcow2: 0.10 or 1.1.",
)
@click.option("--cluster-size", type=SIZE, help="Cluster size of a qcow2.")
@click.option(
    "--lazy-refcounts/--no-lazy-refcounts", default=None, help="Lazy reference counts (qcow2)."
)
@click.option("--extended-l2/--no-extended-l2", default=None, help="Subclusters (qcow2).")
@compress_option
@click.option(
    "--subformat",
    shell_complete=complete_words("monolithicSparse", "streamOptimized"),
    help="Kind of a vmdk: monolithicSparse or streamOptimized.",
)
@click.option("--flatten", is_flag=True, help="Take in the data of the backing chain.")
@durability_option
@secret_option("--secret-file", "the volume")
@click.option(
    "--force",
    is_flag=True,
    help="Although internal snapshots or the owner are lost, or overlays have the old format on"
    " record.",
)
@click.pass_obj
def convert(
    call: Invocation,
    /,
    volume: str,
    pool: str | None,
    secret_file: str | None,
    force: bool,
    **options: Any,
) -> None:
    """Write an image anew in its place.

    As another format or version, with another cluster size, compressed, without its backing chain,
    or just without what it leaked. A format that knows no backing file is flattened. Content, owner
    and mode stay; only root can do that with somebody else's file, which becomes yours by force. It
    needs room for both images: the name leads to the old one until the new one is whole. A virtual
    machine that has it open must be stopped first; no force helps there.
    """
    wishes = {name: value for name, value in options.items() if value is not None}
    wishes |= read_secrets(secret=secret_file)
    with call.change() as storage:
        found = find_volume(storage, volume, pool)
        before = found.info()
        call.follow(found.convert(wait=False, force=force, **wishes))
        warn_of(call, before)
        made = found.info()
        size = render.size(made.allocation)
        text = f"volume {made.ref.name} converted: {made.format}, {size} allocated"
        call.emit(volume_changed("converted", found), text)


def _known_format(storage: Storage, overlay: Volume, path: str) -> str | None:
    """Return the format of a backing file that is a volume, None if it is none."""
    try:
        if path.startswith("/"):
            return storage.volume_by_path(path).info().format
        return overlay.pool.volume(path).info().format
    except NoSuchVolume:
        return None
