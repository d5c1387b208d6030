"""Copies of volumes: clone, create-from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from storaged.cli.documents import read
from storaged.cli.invocation import Invocation
from storaged.cli.lazy import command
from storaged.cli.lookup import find_pool, find_volume
from storaged.cli.parameters import (
    SIZE,
    VOLUME_FORMATS,
    complete_pool,
    complete_words,
    pool_argument,
    pool_option,
    volume_argument,
)
from storaged.cli.secret import read_secrets, secret_option
from storaged.cli.volume_create import tell_created, warn_of
from storaged.cli.volume_rewrite import compress_option, durability_option

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

reflink_option = click.option(
    "--reflink", is_flag=True, help="Share the data with the source, or fail."
)


def _complete(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from storaged.cli import completion

    return completion.clone_words(ctx, incomplete)


@command(
    "clone",
    examples=(
        "storagectl vol clone default web1.qcow2 web2.qcow2",
        "storagectl vol clone web1.qcow2 web2.qcow2 --pool default",
        "storagectl vol clone default web1.qcow2 web1-copy.qcow2 --to-pool backup",
        "storagectl vol clone default debian12.qcow2 web3.qcow2 --linked",
        "storagectl vol clone default web1.qcow2 web1.zst.qcow2 --compress zstd",
    ),
)
@click.argument("words", nargs=-1, metavar="[POOL] VOL NEWNAME", shell_complete=_complete)
@pool_option
@click.option(
    "--to-pool", metavar="POOL", shell_complete=complete_pool, help="Make the copy in this pool."
)
@click.option("--capacity", type=SIZE, help="Capacity of the copy, at least that of the source.")
@click.option(
    "--format", shell_complete=complete_words(*VOLUME_FORMATS), help="Format of the copy."
)
@reflink_option
@click.option("--keep-backing", is_flag=True, help="Copy the top layer, and keep its backing file.")
@click.option("--linked", is_flag=True, help="Copy nothing: make an overlay of the source.")
@compress_option
@click.option(
    "--full/--sparse",
    default=None,
    help="Have all of the capacity on the storage (raw, qcow2), or no more than there are data"
    " (the default).",
)
@durability_option
@secret_option("--secret-file", "the copy, which is encrypted with it")
@secret_option("--source-secret-file", "the source")
@click.pass_obj
def clone(
    call: Invocation,
    /,
    words: tuple[str, ...],
    pool: str | None,
    to_pool: str | None,
    keep_backing: bool,
    linked: bool,
    secret_file: str | None,
    source_secret_file: str | None,
    **options: Any,
) -> None:
    """Copy a volume.

    Data are shared with the source where the file system can do that (--reflink insists). The copy
    has no tie to the source or to its backing files unless that is asked for: with --linked the
    source must stay as it is. The pool may stand in front, or behind --pool as for virsh.
    """
    if len(words) == 3 and pool is None:
        pool, *words_left = words
    else:
        words_left = list(words)
    if len(words_left) != 2:
        raise click.UsageError("clone takes [POOL] VOL NEWNAME")
    if keep_backing and linked:
        raise click.UsageError("--keep-backing and --linked exclude each other")
    wishes = {name: value for name, value in options.items() if value is not None}
    if keep_backing or linked:
        wishes["backing"] = "keep" if keep_backing else "linked"
    wishes |= read_secrets(secret=secret_file, source_secret=source_secret_file)
    with call.change() as storage:
        source = find_volume(storage, words_left[0], pool)
        target = find_pool(storage, to_pool) if to_pool else source.pool
        made = call.follow(target.clone(source, words_left[1], wait=False, **wishes))
        warn_of(call, source.info())
        tell_created(call, made)


@command("create-from", examples=("storagectl vol create-from default web2.xml web1.qcow2",))
@pool_argument
@click.argument("file", metavar="FILE|-", type=click.Path(allow_dash=True))
@volume_argument
@click.option(
    "--inputpool", metavar="POOL", shell_complete=complete_pool, help="Pool of VOL, if another."
)
@click.option("--prealloc-metadata", is_flag=True, help="Make all tables of a qcow2 at once.")
@reflink_option
@click.pass_obj
def create_from(
    call: Invocation,
    pool: str,
    file: str,
    volume: str,
    inputpool: str | None,
    prealloc_metadata: bool,
    reflink: bool,
) -> None:
    """Copy a volume to one that XML describes.

    FILE says name and format of the new volume in POOL; the data come from VOL.
    """
    text = read(file)
    with call.change() as storage:
        into = find_pool(storage, pool)
        beside = None if "/" in volume else pool
        source = find_volume(storage, volume, inputpool or beside)
        job = into.clone_volume(
            text, source, reflink=reflink, preallocate_metadata=prealloc_metadata, wait=False
        )
        made = call.follow(job)
        warn_of(call, source.info())
        tell_created(call, made)
