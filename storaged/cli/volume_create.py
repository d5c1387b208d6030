"""New volumes: create, create-as, ensure."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import click

from storaged.cli import render
from storaged.cli.documents import read, volume_document
from storaged.cli.invocation import Invocation
from storaged.cli.lazy import command
from storaged.cli.lookup import find_pool, find_volume
from storaged.cli.objects import ensured, volume_changed, volume_object
from storaged.cli.parameters import (
    SIZE,
    VOLUME_FORMATS,
    complete_volume,
    complete_words,
    owner_options,
    pool_argument,
)
from storaged.cli.secret import read_secrets, secret_option
from storaged.errors import NoSuchVolume, StorageError

if TYPE_CHECKING:
    from storaged import Pool, Storage, Volume
    from storaged.model import VolumeInfo

F = TypeVar("F", bound=Callable[..., Any])


#: What a new volume can be told, in the order of the help.
_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--allocation",
        type=SIZE,
        default=0,
        help="Bytes to have on the storage at once; none unless given.",
    ),
    click.option(
        "--format",
        default="raw",
        show_default=True,
        shell_complete=complete_words(*VOLUME_FORMATS),
        help="Format of the volume, such as raw, qcow2 or vmdk.",
    ),
    click.option(
        "--backing-vol",
        metavar="VOL",
        shell_complete=complete_volume,
        help="Make an overlay of this volume: a name in the same pool, a path or a key.",
    ),
    click.option(
        "--backing-vol-format",
        shell_complete=complete_words(*VOLUME_FORMATS),
        help="Format of the backing volume, if it is not the one that was found.",
    ),
    click.option("--prealloc-metadata", is_flag=True, help="Make all tables of a qcow2 at once."),
    owner_options,
    click.option(
        "--compat",
        shell_complete=complete_words("0.10", "1.1"),
        help="Version of a qcow2: 0.10 or 1.1; 1.1 unless given.",
    ),
    click.option("--cluster-size", type=SIZE, default=0, help="Cluster size of a qcow2."),
    click.option("--lazy-refcounts", is_flag=True, help="Lazy reference counts (qcow2)."),
    click.option("--extended-l2", is_flag=True, help="Subclusters (qcow2)."),
    click.option("--nocow", is_flag=True, help="No copy on write (btrfs)."),
    secret_option("--secret-file", "the volume, which is encrypted with it"),
)


def volume_options(function: F) -> F:
    """Add what a new volume can be told (a decorator); `_wish` makes keywords of it."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@command(
    "create", examples=("storagectl vol create default web1.xml", "storagectl vol create default -")
)
@pool_argument
@click.argument("file", metavar="FILE|-", type=click.Path(allow_dash=True))
@click.option("--prealloc-metadata", is_flag=True, help="Make all tables of a qcow2 at once.")
@click.option("--validate", is_flag=True, help="Check the document against the schema too.")
@click.pass_obj
def create(call: Invocation, pool: str, file: str, prealloc_metadata: bool, validate: bool) -> None:
    """Create a volume from XML.

    The document counts as for libvirt: without <allocation> the volume is allocated in full.
    """
    text = read(file)
    with call.change() as storage:
        job = find_pool(storage, pool).create_volume(
            text, preallocate_metadata=prealloc_metadata, validate=validate, wait=False
        )
        tell_created(call, call.follow(job))


@command(
    "create-as",
    examples=(
        "storagectl vol create-as default disk.img 20G",
        "storagectl vol create-as default web1.qcow2 20G --format qcow2 --backing-vol debian.qcow2",
        "storagectl vol create-as default full.img 20G --allocation 20G",
        "storagectl vol create-as default x.qcow2 1T --format qcow2 --owner libvirt-qemu",
    ),
)
@pool_argument
@click.argument("name")
@click.argument("capacity", type=SIZE, required=False)
@volume_options
@click.option("--print-xml", is_flag=True, help="Print the XML and change nothing.")
@click.pass_obj
def create_as(
    call: Invocation, /, pool: str, name: str, capacity: int | None, print_xml: bool, **options: Any
) -> None:
    """Create a volume.

    It is thin, that is, it takes space only as it is written, unless --allocation says otherwise.
    CAPACITY may be left out with --backing-vol: it is that of the backing volume then.
    """
    if print_xml:
        with call.look() as storage:
            wish = _wish(storage, find_pool(storage, pool), options)
            text = volume_document(name, capacity, wish)
        call.emit({"xml": text}, text)
        return
    with call.change() as storage:
        found = find_pool(storage, pool)
        wish = _wish(storage, found, options)
        made = call.follow(found.create(name, capacity, **wish, wait=False))
        _warn_of_chain(call, made, wish.get("backing"))
        tell_created(call, made)


@command(
    "ensure",
    examples=(
        "storagectl vol ensure default data.qcow2 100G --format qcow2",
        "storagectl vol ensure default data.qcow2 100G --format qcow2 --json | jq .changed",
    ),
)
@pool_argument
@click.argument("name")
@click.argument("capacity", type=SIZE, required=False)
@volume_options
@click.pass_obj
def ensure(call: Invocation, /, pool: str, name: str, capacity: int | None, **options: Any) -> None:
    """See to it that a volume is there.

    Creates it if there is none of this name, and lets one that is too small grow, so it can be run
    at any time. It never shrinks or replaces anything: what differs otherwise is told. Ends with
    status 0 whether or not something had to be done. The options are those of 'vol create-as'.
    """
    with call.change() as storage:
        found = find_pool(storage, pool)
        outcome = found.ensure_volume(name, capacity, **_wish(storage, found, options))
        done = ", ".join(outcome.actions) if outcome.changed else "unchanged"
        lines = [f"{name}: {done}"]
        lines += [
            f"  {each.field} differs: wanted {each.wanted}, found {each.found} (left alone)"
            for each in outcome.differences
        ]
        call.emit(
            {**ensured(outcome), "volume": volume_object(outcome.object.info())}, "\n".join(lines)
        )


def tell_created(call: Invocation, volume: Volume) -> None:
    """Say what was made, with what nobody had asked for spelt out."""
    made = volume.info()
    kind = made.format or str(made.type)
    how = "allocated" if made.allocation >= made.capacity > 0 else "thin"
    call.emit(
        volume_changed("created", volume),
        f"volume {made.ref.name} created: {kind}, {render.size(made.capacity)}, {how}, {made.path}",
    )


def warn_of(call: Invocation, volume: VolumeInfo) -> None:
    """Say what is odd about a volume that was read, and did not keep it from being read."""
    if volume.problem:
        call.warn(render.clean(f"volume {volume.ref.name}: {volume.problem}"))


def _warn_of_chain(call: Invocation, overlay: Volume, backing: Volume | str | None) -> None:
    """Say why a new overlay cannot be opened as it is: libvirt would make it all the same."""
    if backing is None or isinstance(backing, str) or backing.definition().backing is None:
        return
    with suppress(StorageError):  # whoever cannot tell has nothing to say
        for concern in overlay.inspect().concerns:
            call.warn(render.clean(f"volume {overlay.name}: {concern.text}"))


def _wish(storage: Storage, pool: Pool, options: dict[str, Any]) -> dict[str, Any]:
    """Return the keywords of `Pool.create` for the options of the command: those given only."""
    names = {"backing_vol_format": "backing_format", "prealloc_metadata": "preallocate_metadata"}
    wish = {names.get(name, name): value for name, value in options.items() if value is not None}
    wish |= read_secrets(secret=wish.pop("secret_file", None))
    if "backing_vol" in wish:
        wish["backing"] = _backing(storage, pool, wish.pop("backing_vol"))
    return wish


def _backing(storage: Storage, pool: Pool, word: str) -> Volume | str:
    """Return the volume that *word* names, or *word* itself if it is a path in no pool."""
    try:
        if "/" not in word:
            return pool.volume(word)
        return find_volume(storage, word)
    except NoSuchVolume:
        if word.startswith("/"):
            return word
        raise
