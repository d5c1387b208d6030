"""Changing the state of pools: start, stop, build, refresh, autostart, delete, undefine."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import click

from storaged.cli import render
from storaged.cli.invocation import Invocation
from storaged.cli.lazy import command
from storaged.cli.lookup import find_pool
from storaged.cli.objects import pool_changed
from storaged.cli.parameters import build_options, overwriting, pool_argument
from storaged.errors import NoSuchPool

if TYPE_CHECKING:
    from storaged import Pool


@command("start", examples=("storagectl pool start default", "storagectl pool start data --build"))
@pool_argument
@click.option("--build", is_flag=True, help="Make the storage of the pool first.")
@build_options
@click.pass_obj
def start(call: Invocation, pool: str, build: bool, overwrite: bool, no_overwrite: bool) -> None:
    """Start a pool.

    Makes its storage available (mounts it, logs in, activates it) and its volumes with it.
    --overwrite and --no-overwrite include --build.
    """
    choice = overwriting(overwrite, no_overwrite)
    with call.change() as storage:
        found = find_pool(storage, pool)
        call.follow(found.start(build=build or choice is not None, overwrite=choice, wait=False))
        call.emit(pool_changed("started", found), f"pool {found.name} started")


@command("stop", examples=("storagectl pool stop default", "storagectl pool stop nfs1 --force"))
@pool_argument
@click.option("--force", is_flag=True, help="Although it is at work or does not answer.")
@click.pass_obj
def stop(call: Invocation, pool: str, force: bool) -> None:
    """Stop a pool; its data stay.

    virsh calls this pool-destroy, and 'pool destroy' works here too. A transient pool is gone
    afterwards, its data are not.

    With --force the pool's jobs are cancelled, and what is stuck in a dead server is left behind
    (a lazy unmount): data that were not written yet may be lost.
    """
    with call.change() as storage:
        found = find_pool(storage, pool)
        call.follow(found.stop(force=force, wait=False))
        call.emit(pool_changed("stopped", found), f"pool {found.name} stopped")
        if force:
            _tell_lost(call, found)


def _tell_lost(call: Invocation, pool: Pool) -> None:
    """Say what a forced stop has left behind; a transient pool is gone, and cannot tell."""
    with suppress(NoSuchPool):
        for problem in pool.problems:
            call.warn(render.clean(f"pool {pool.name}: {problem}"))


@command("build", examples=("storagectl pool build data", "storagectl pool build data --overwrite"))
@pool_argument
@build_options
@click.pass_obj
def build(call: Invocation, pool: str, overwrite: bool, no_overwrite: bool) -> None:
    """Make the storage of a pool.

    Makes the target directory; where the type has one, the file system, the partition table or
    the volume group only with --no-overwrite (if the device holds nothing) or --overwrite
    (whatever it holds).
    """
    choice = overwriting(overwrite, no_overwrite)
    with call.change() as storage:
        found = find_pool(storage, pool)
        call.follow(found.build(overwrite=choice, wait=False))
        call.emit(pool_changed("built", found), f"pool {found.name} built")


@command("refresh", examples=("storagectl pool refresh default",))
@pool_argument
@click.pass_obj
def refresh(call: Invocation, pool: str) -> None:
    """Scan the storage of a pool anew.

    Needed only for volumes that other programs made or changed.
    """
    with call.change() as storage:
        found = find_pool(storage, pool)
        call.follow(found.refresh(wait=False))
        call.emit(pool_changed("refreshed", found), f"pool {found.name} refreshed")
        for problem in found.problems:
            call.warn(render.clean(f"pool {found.name}: {problem}"))


@command(
    "autostart",
    examples=("storagectl pool autostart default", "storagectl pool autostart default --disable"),
)
@pool_argument
@click.option("--disable", is_flag=True, help="Do not start it with the host any more.")
@click.pass_obj
def autostart(call: Invocation, pool: str, disable: bool) -> None:
    """Set whether a pool starts with the host."""
    with call.change() as storage:
        found = find_pool(storage, pool)
        found.set_autostart(not disable)
        word = "off" if disable else "on"
        call.emit(
            pool_changed(f"autostart {word}", found), f"autostart of pool {found.name} is {word}"
        )


@command("delete", examples=("storagectl pool stop old", "storagectl pool delete old"))
@pool_argument
@click.pass_obj
def delete(call: Invocation, pool: str) -> None:
    """Remove the storage of a stopped pool.

    Removes what 'build' made, such as the directory; it must hold no volumes. The definition
    stays: 'undefine' forgets it.
    """
    with call.change() as storage:
        found = find_pool(storage, pool)
        call.follow(found.delete(wait=False))
        call.emit(pool_changed("deleted", found), f"storage of pool {found.name} deleted")


@command("undefine", examples=("storagectl pool stop old", "storagectl pool undefine old"))
@pool_argument
@click.pass_obj
def undefine(call: Invocation, pool: str) -> None:
    """Forget a stopped pool; its data stay."""
    with call.change() as storage:
        found = find_pool(storage, pool)
        found.undefine()
        call.emit(pool_changed("undefined", found), f"pool {found.name} undefined, its data stay")
