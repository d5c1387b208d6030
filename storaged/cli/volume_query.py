"""Looking at volumes: list, info, dumpxml, path, key, name, pool."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from storaged.cli import render
from storaged.cli.invocation import Invocation
from storaged.cli.lazy import command
from storaged.cli.lookup import find_pool, find_volume
from storaged.cli.objects import VolumeObject, volume_object
from storaged.cli.parameters import bytes_option, pool_argument, pool_option, volume_argument
from storaged.errors import Timeout

if TYPE_CHECKING:
    from storaged.model import VolumeInfo
    from storaged.volumehandle import Volume

#: Seconds to wait for pools to be read, for a look at one volume.
_PATIENCE = 0.2


@command(
    "list",
    examples=(
        "storagectl vol list default",
        "storagectl vol list default --details",
        "storagectl vol list default --json | jq 'map(.allocation) | add'",
    ),
)
@pool_argument
@click.option("--details", is_flag=True, help="Also type, format and sizes.")
@bytes_option
@click.pass_obj
def list_volumes(call: Invocation, pool: str, details: bool, exact: bool) -> None:
    """List the volumes of a pool."""
    with call.look() as storage:
        found = find_pool(storage, pool)
        infos = found.infos()
        problems = found.problems
    for problem in problems:
        call.warn(render.clean(f"pool {pool}: {problem}"))
    if call.json:
        call.emit([volume_object(info) for info in infos], "")
        return
    print(_detailed(infos, exact) if details else _short(infos))
    for info in infos:
        if info.problem:
            call.warn(render.clean(f"volume {info.ref.name}: {info.problem}"))


@command(
    "info",
    examples=(
        "storagectl vol info default/web1.qcow2",
        "storagectl vol info web1.qcow2 --pool default --bytes",
        "storagectl vol info /var/lib/libvirt/images/web1.qcow2 --json",
    ),
)
@volume_argument
@pool_option
@bytes_option
@click.option("--physical", is_flag=True, help="Show the size of the file instead of its blocks.")
@click.pass_obj
def info(call: Invocation, volume: str, pool: str | None, exact: bool, physical: bool) -> None:
    """Show the sizes of a volume.

    Capacity is what a virtual machine sees, allocation what the volume takes on the storage. It is
    used by volumes that have it as their backing file.
    """
    with call.look() as storage:
        found = find_volume(storage, volume, pool)
        shown = volume_object(found.info())
        users = _users(found)
    lines = ["not known: the pools are large and were not read"] if users is None else users
    call.emit(
        {**shown, "used_by": users},
        lambda: render.fields(
            [*_lines(shown, exact, physical), *(("Used by", line) for line in lines)]
        ),
    )


def _users(volume: Volume) -> list[str] | None:
    """Return who needs a volume; None if that cannot be told soon."""
    try:
        return [f"{user.pool.name}/{user.name}" for user in volume.users(patience=_PATIENCE)]
    except Timeout:
        return None


@command("dumpxml", examples=("storagectl vol dumpxml default/web1.qcow2",))
@volume_argument
@pool_option
@click.pass_obj
def dumpxml(call: Invocation, volume: str, pool: str | None) -> None:
    """Print a volume as XML.

    With its backing store, permissions, times and features.
    """
    with call.look() as storage:
        text = find_volume(storage, volume, pool).xml().rstrip("\n")
    call.emit({"xml": text}, text)


@command("path", examples=("storagectl vol path web1.qcow2 --pool default",))
@volume_argument
@pool_option
@click.pass_obj
def path(call: Invocation, volume: str, pool: str | None) -> None:
    """Print the path of a volume."""
    with call.look() as storage:
        found = find_volume(storage, volume, pool).path
    call.emit({"path": found}, found)


@command("key", examples=("storagectl vol key default/web1.qcow2",))
@volume_argument
@pool_option
@click.pass_obj
def key(call: Invocation, volume: str, pool: str | None) -> None:
    """Print the key of a volume."""
    with call.look() as storage:
        found = find_volume(storage, volume, pool).key
    call.emit({"key": found}, found)


@command("name", examples=("storagectl vol name /var/lib/libvirt/images/web1.qcow2",))
@volume_argument
@pool_option
@click.pass_obj
def name(call: Invocation, volume: str, pool: str | None) -> None:
    """Print the name of a volume."""
    with call.look() as storage:
        found = find_volume(storage, volume, pool).name
    call.emit({"name": found}, found)


@command("pool", examples=("storagectl vol pool /var/lib/libvirt/images/web1.qcow2",))
@volume_argument
@click.option("--uuid", is_flag=True, help="Print the UUID of the pool.")
@click.pass_obj
def pool(call: Invocation, volume: str, uuid: bool) -> None:
    """Print the pool of a volume."""
    with call.look() as storage:
        found = find_volume(storage, volume).pool
        names = {"name": found.name, "uuid": str(found.uuid)}
    call.emit(names, names["uuid" if uuid else "name"])


def _short(infos: list[VolumeInfo]) -> str:
    return render.table(("Name", "Path"), [(info.ref.name, info.path) for info in infos])


def _detailed(infos: list[VolumeInfo], exact: bool) -> str:
    rows = [
        (
            info.ref.name,
            info.path,
            str(info.type),
            info.format or "-",
            render.size(info.capacity, exact=exact),
            render.size(info.allocation, exact=exact),
        )
        for info in infos
    ]
    return render.table(("Name", "Path", "Type", "Format", ">Capacity", ">Allocation"), rows)


def _lines(shown: VolumeObject, exact: bool, physical: bool) -> list[tuple[str, str]]:
    lines = [
        ("Name", shown["name"]),
        ("Pool", shown["pool"]),
        ("Path", shown["path"]),
        ("Type", shown["type"]),
        ("Format", shown["format"] or "-"),
        ("Capacity", render.size(shown["capacity"], exact=exact)),
    ]
    if physical:
        lines.append(("Physical", render.size(shown["physical"], exact=exact)))
    else:
        lines.append(("Allocation", render.size(shown["allocation"], exact=exact)))
    used = ((shown["data_percent"], "Data used"), (shown["metadata_percent"], "Metadata used"))
    lines += [(what, f"{value:g} %") for value, what in used if value is not None]
    if shown["building"]:
        lines.append(("State", "being created"))
    if shown["problem"]:
        lines.append(("Problem", shown["problem"]))
    return lines
