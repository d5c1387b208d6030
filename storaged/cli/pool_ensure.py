"""Pools as they should be: ensure, policy."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from storaged.cli import render
from storaged.cli.documents import pool_document, read
from storaged.cli.invocation import Invocation
from storaged.cli.lazy import command
from storaged.cli.lookup import find_pool
from storaged.cli.objects import ensured, pool_changed, pool_object
from storaged.cli.parameters import (
    POOL_TYPES,
    complete_words,
    owner_options,
    pool_argument,
)
from storaged.cli.pool_define import gather, source_options

if TYPE_CHECKING:
    from storaged import Storage

#: Where libvirt's tools put the pool "default".
_SYSTEM_IMAGES = "/var/lib/libvirt/images"


@command(
    "ensure",
    examples=(
        "storagectl pool ensure default",
        "storagectl pool ensure vms --type dir --target /srv/vms",
        "storagectl pool ensure nas.xml --no-autostart",
        "storagectl pool ensure vms --target /srv/vms --json | jq .changed",
    ),
)
@click.argument("what", metavar="NAME|FILE|-")
@click.option(
    "--type",
    "kind",
    default="dir",
    show_default=True,
    shell_complete=complete_words(*POOL_TYPES),
    help="Type of the pool.",
)
@source_options
@click.option("--no-autostart", is_flag=True, help="Leave alone whether it starts with the host.")
@click.pass_obj
def ensure(call: Invocation, /, what: str, kind: str, no_autostart: bool, **options: Any) -> None:
    """See to it that a pool is there and runs.

    Defines, builds, starts and autostarts as far as that is not done yet; what is right already is
    left alone, so it can be run at any time. It never formats anything and never changes a
    definition: what differs from the wish is told. A word with a slash, or that ends in .xml, is a
    file with the definition. The pool 'default' needs no --target. Ends with status 0 whether or
    not something had to be done.
    """
    by_default = what == "default" and kind == "dir" and not options["target"]
    if by_default and call.root is not None:
        raise click.UsageError("with --root also the pool 'default' needs --target")
    text = "" if by_default else _definition(what, kind, options)
    with call.change() as storage:
        if by_default:
            text = pool_document(
                kind, what, gather({**options, "target": _default_target(storage)})
            )
        outcome = storage.ensure_pool(text, autostart=not no_autostart)
        info = outcome.object.info()
        done = ", ".join(outcome.actions) if outcome.changed else "unchanged"
        free = f" ({render.size(info.space.available)} free)" if info.active else ""
        lines = [f"{outcome.object.name}: {done}{free}"]
        lines += [
            f"  {each.field} differs: wanted {each.wanted}, found {each.found} (left alone)"
            for each in outcome.differences
        ]
        call.emit({**ensured(outcome), "pool": pool_object(info)}, "\n".join(lines))


@command(
    "policy",
    examples=(
        "storagectl pool policy vms",
        "storagectl pool policy vms --owner libvirt-qemu --group kvm --mode 0660",
        "storagectl pool policy HostVG --thin-pool tp",
        "storagectl pool policy vms --clear",
    ),
)
@pool_argument
@owner_options
@click.option("--thin-pool", metavar="NAME", help="Where sparse logical volumes are to lie.")
@click.option("--clear", is_flag=True, help="Back to libvirt's way: root, 0600.")
@click.pass_obj
def policy(
    call: Invocation,
    pool: str,
    owner: int | None,
    group: int | None,
    mode: int | None,
    thin_pool: str | None,
    clear: bool,
) -> None:
    """Show or set what new volumes get.

    Owner, group and mode count for volumes whose own definition names none; the thin pool for those
    of a logical pool that are not to be allocated in full. What is not given stays as it is.
    """
    import storaged

    setting = any(value is not None for value in (owner, group, mode, thin_pool))
    if clear and setting:
        raise click.UsageError("--clear excludes --owner, --group, --mode and --thin-pool")
    if not (clear or setting):
        with call.look() as storage:
            _show_policy(call, find_pool(storage, pool).policy())
        return
    with call.change() as storage:
        found = find_pool(storage, pool)
        before = found.policy()
        wanted = storaged.PoolPolicy(
            owner=None if clear else before.owner if owner is None else owner,
            group=None if clear else before.group if group is None else group,
            mode=None if clear else before.mode if mode is None else mode,
            thin_pool=None if clear else before.thin_pool if thin_pool is None else thin_pool,
        )
        found.set_policy(wanted)
        if call.json:
            call.emit({**pool_changed("policy set", found), "policy": _policy(wanted)}, "")
        else:
            _show_policy(call, wanted)


def _definition(what: str, kind: str, options: dict[str, Any]) -> str:
    if what == "-" or "/" in what or what.endswith(".xml"):
        if any(options.values()):
            raise click.UsageError("a file says all; it excludes the options of a source")
        return read(what)
    return pool_document(kind, what, gather(options))


def _default_target(storage: Storage) -> str:
    """Return where the images of a host lie, or of a user in the user's session."""
    if "/session" not in storage.uri.partition("?")[0]:
        return _SYSTEM_IMAGES
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share"
    return str(Path(data) / "libvirt/images")


def _policy(shown: Any) -> dict[str, object]:
    return {
        "owner": shown.owner,
        "group": shown.group,
        "mode": None if shown.mode is None else f"{shown.mode:04o}",
        "thin_pool": shown.thin_pool,
    }


def _show_policy(call: Invocation, shown: Any) -> None:
    words = {key: "-" if value is None else str(value) for key, value in _policy(shown).items()}
    pairs = [(key.capitalize().replace("_", " "), value) for key, value in words.items()]
    call.emit(_policy(shown), lambda: render.fields(pairs))
