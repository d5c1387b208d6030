"""Looking at pools: list, info, name, uuid, dumpxml."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import click

from storaged.cli import render
from storaged.cli.invocation import Invocation
from storaged.cli.lazy import command
from storaged.cli.lookup import find_pool
from storaged.cli.objects import PoolObject, pool_object
from storaged.cli.parameters import POOL_TYPES, bytes_option, complete_words, pool_argument
from storaged.facts import PoolState

if TYPE_CHECKING:
    from storaged import Storage
    from storaged.facts import Outage, PoolInfo


@command(
    "list",
    examples=(
        "storagectl pool list",
        "storagectl pool list --all --details",
        "storagectl pool list --type dir,netfs --name",
        "storagectl pool list --all --json | jq '.[] | select(.active | not) | .name'",
    ),
)
@click.option("--all", "everything", is_flag=True, help="Active and inactive pools.")
@click.option("--inactive", is_flag=True, help="Inactive pools only.")
@click.option("--active", is_flag=True, help="Active pools only; the default.")
@click.option("--persistent", is_flag=True, help="Only pools with a definition that stays.")
@click.option("--transient", is_flag=True, help="Only pools that are gone once they are stopped.")
@click.option("--autostart", is_flag=True, help="Only pools that start with the host.")
@click.option("--no-autostart", is_flag=True, help="Only pools that do not start with the host.")
@click.option(
    "--type",
    "types",
    multiple=True,
    metavar="TYPE[,TYPE]",
    shell_complete=complete_words(*POOL_TYPES),
    help="Only pools of these types.",
)
@click.option("--details", is_flag=True, help="Also type, persistence and sizes.")
@click.option("--name", "names", is_flag=True, help="Print the names only.")
@click.option("--uuid", "uuids", is_flag=True, help="Print the UUIDs only.")
@bytes_option
@click.pass_obj
def list_pools(
    call: Invocation,
    everything: bool,
    inactive: bool,
    active: bool,
    persistent: bool,
    transient: bool,
    autostart: bool,
    no_autostart: bool,
    types: tuple[str, ...],
    details: bool,
    names: bool,
    uuids: bool,
    exact: bool,
) -> None:
    """List the pools.

    Shows active pools unless --all or --inactive asks for others. Takes no lock, and the storage
    of a pool is not touched, so it answers also while a server hangs.
    """
    with call.look() as storage:
        infos = storage.pool_infos(
            active=None if everything or (active and inactive) else not inactive,
            persistent=_either(persistent, transient),
            autostart=_either(autostart, no_autostart),
            types=tuple(kind for word in types for kind in word.split(",") if kind),
        )
        objects = [pool_object(each) for each in infos]
        states = [_state(each) for each in infos]
        _warn(call, storage, objects)
    if names or uuids:
        columns = [key for key, wanted in (("uuid", uuids), ("name", names)) if wanted]
        call.emit(objects, lambda: _plain(objects, columns))
    else:
        shown = (
            partial(_detailed, objects, states, exact)
            if details
            else partial(_short, objects, states)
        )
        call.emit(objects, shown)


@command("info", examples=("storagectl pool info default", "storagectl pool info default --bytes"))
@pool_argument
@bytes_option
@click.pass_obj
def info(call: Invocation, pool: str, exact: bool) -> None:
    """Show the state and the sizes of a pool."""
    with call.look() as storage:
        found = find_pool(storage, pool).info()
    shown = pool_object(found)
    state = shown["state"] if found.outage is None else _since(found.outage, "%H:%M:%S")
    call.emit(shown, lambda: render.fields(_lines(shown, state, exact)))


@command("name", examples=("storagectl pool name 0b1f6a52-5c0e-4e4b-9a33-0d3f6e1c8a11",))
@pool_argument
@click.pass_obj
def name(call: Invocation, pool: str) -> None:
    """Print the name of a pool."""
    with call.look() as storage:
        found = find_pool(storage, pool).name
    call.emit({"name": found}, found)


@command("uuid", examples=("storagectl pool uuid default",))
@pool_argument
@click.pass_obj
def uuid(call: Invocation, pool: str) -> None:
    """Print the UUID of a pool."""
    with call.look() as storage:
        found = str(find_pool(storage, pool).uuid)
    call.emit({"uuid": found}, found)


@command(
    "dumpxml",
    examples=(
        "storagectl pool dumpxml default",
        "storagectl pool dumpxml default --inactive > default.xml",
    ),
)
@pool_argument
@click.option("--inactive", is_flag=True, help="The definition for the next start.")
@click.pass_obj
def dumpxml(call: Invocation, pool: str, inactive: bool) -> None:
    """Print a pool as XML.

    For an active pool that is what it runs with; changes made since are shown by --inactive.
    """
    with call.look() as storage:
        text = find_pool(storage, pool).xml(inactive=inactive).rstrip("\n")
    call.emit({"xml": text}, text)


def _either(yes: bool, no: bool) -> bool | None:
    return None if yes == no else yes


def _warn(call: Invocation, storage: Storage, objects: list[PoolObject]) -> None:
    for problem in storage.problems():
        call.warn(render.clean(problem))
    if call.json:
        return  # the objects hold them
    for each in objects:
        for problem in each["problems"]:
            call.warn(render.clean(f"pool {each['name']}: {problem}"))


def _plain(objects: list[PoolObject], columns: list[str]) -> str:
    return "\n".join("  ".join(str(dict(each)[key]) for key in columns) for each in objects)


def _short(objects: list[PoolObject], states: list[str]) -> str:
    rows = [
        (each["name"], state, render.yes_no(each["autostart"]), each["type"])
        for each, state in zip(objects, states, strict=True)
    ]
    return render.table(("Name", "State", "Autostart", "Type"), rows)


def _detailed(objects: list[PoolObject], states: list[str], exact: bool) -> str:
    rows = [
        (
            each["name"],
            each["state"] if each["inaccessible_since"] is None else state,
            render.yes_no(each["autostart"]),
            each["type"],
            render.yes_no(each["persistent"]),
            *_sizes(each, exact),
            each["target"] or "-",
        )
        for each, state in zip(objects, states, strict=True)
    ]
    return render.table(
        (
            *("Name", "State", "Autostart", "Type", "Persistent"),
            *(">Capacity", ">Allocation", ">Available", "Target"),
        ),
        rows,
    )


def _state(info: PoolInfo) -> str:
    """Return active or inactive as virsh does, and the state by name if something is wrong."""
    if info.outage is not None:
        return _since(info.outage, "%H:%M")
    if info.state in (PoolState.DEGRADED, PoolState.INACCESSIBLE):
        return info.state.name.lower()
    return "active" if info.active else "inactive"


def _since(outage: Outage, pattern: str) -> str:
    return f"inaccessible since {outage.clock(pattern)}"


def _sizes(each: PoolObject, exact: bool) -> tuple[str, str, str]:
    if not each["active"]:
        return ("-", "-", "-")
    return (
        render.size(each["capacity"], exact=exact),
        render.size(each["allocation"], exact=exact),
        render.size(each["available"], exact=exact),
    )


def _lines(shown: PoolObject, state: str, exact: bool) -> list[tuple[str, str]]:
    lines = [
        ("Name", shown["name"]),
        ("UUID", shown["uuid"]),
        ("State", state),
        ("Persistent", render.yes_no(shown["persistent"])),
        ("Autostart", render.yes_no(shown["autostart"])),
        ("Type", shown["type"]),
    ]
    if shown["target"]:
        lines.append(("Target", shown["target"]))
    if shown["active"]:
        labels = ("Capacity", "Allocation", "Available")
        lines += zip(labels, _sizes(shown, exact), strict=True)
    return lines + [("Problem", problem) for problem in shown["problems"]]
