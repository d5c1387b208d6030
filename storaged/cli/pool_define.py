"""Making pools known: define, define-as, create, create-as."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import click

from storaged.cli.documents import PoolOptions, pool_document, read
from storaged.cli.invocation import Invocation
from storaged.cli.lazy import command
from storaged.cli.objects import pool_changed
from storaged.cli.parameters import (
    POOL_TYPES,
    build_options,
    complete_words,
    file_argument,
    overwriting,
    validate_option,
)

F = TypeVar("F", bound=Callable[..., Any])

#: The order in which virsh takes the source and the target without option names.
_POSITIONAL = ("source_host", "source_path", "source_dev", "source_name", "target")

_SOURCE_OPTIONS: tuple[tuple[str, bool, str], ...] = (
    ("--source-host", True, "Server of the source, HOST or HOST:PORT; repeat it for several."),
    ("--source-path", False, "Directory on the server, or path of the source."),
    ("--source-dev", True, "Device of the source; repeat it for several."),
    ("--source-name", False, "Name of the source, such as a volume group."),
    ("--target", False, "Path the volumes appear below."),
    ("--source-format", False, "Format of the source, such as nfs or ext4."),
    ("--auth-type", False, "How to log in: chap or ceph."),
    ("--auth-username", False, "User to log in as."),
    ("--secret-usage", False, "Usage name of the secret to log in with."),
    ("--secret-uuid", False, "UUID of the secret to log in with."),
    ("--adapter-name", False, "SCSI host, such as host5."),
    ("--adapter-wwnn", False, "Node name of the fibre channel host."),
    ("--adapter-wwpn", False, "Port name of the fibre channel host."),
    ("--adapter-parent", False, "Parent of the fibre channel host, by name."),
    ("--adapter-parent-wwnn", False, "Parent by its node name."),
    ("--adapter-parent-wwpn", False, "Parent by its port name."),
    ("--adapter-parent-fabric-wwn", False, "Parent by the name of its fabric."),
    ("--source-initiator", False, "IQN of the initiator."),
    ("--source-protocol-ver", False, "Version of the NFS protocol, such as 4.2."),
)


def source_options(function: F) -> F:
    """Add the options that `gather` makes `PoolOptions` of (a decorator)."""
    for option, several, text in reversed(_SOURCE_OPTIONS):
        function = click.option(option, multiple=several, help=text)(function)
    return function


def gather(options: dict[str, Any], positional: tuple[str, ...] = ()) -> PoolOptions:
    """Return the options, with virsh's words without names filled in; ``-`` is "not given".

    :raise click.UsageError: too many words, or one that an option gives too.
    """
    if len(positional) > len(_POSITIONAL):
        raise click.UsageError(f"too many arguments: {' '.join(positional[len(_POSITIONAL) :])}")
    gathered = PoolOptions(**options)
    for field, word in zip(_POSITIONAL, positional, strict=False):
        if word == "-":
            continue
        if getattr(gathered, field):
            raise click.UsageError(f"--{field.replace('_', '-')} is given twice")
        value: Any = (word,) if field in ("source_host", "source_dev") else word
        gathered = replace(gathered, **{field: value})
    return gathered


type_argument = click.argument("kind", metavar="TYPE", shell_complete=complete_words(*POOL_TYPES))
rest_argument = click.argument(
    "rest", nargs=-1, metavar="[[-|HOST] [-|PATH] [-|DEV] [-|NAME] [TARGET]]"
)
print_option = click.option("--print-xml", is_flag=True, help="Print the XML and change nothing.")


@command(
    "define",
    examples=("storagectl pool define default.xml", "cat x.xml | storagectl pool define -"),
)
@file_argument
@validate_option
@click.pass_obj
def define(call: Invocation, file: str, validate: bool) -> None:
    """Define a pool from XML.

    The pool stays inactive until 'pool start'. If one of this name and UUID is defined already,
    its definition is replaced.
    """
    text = read(file)
    with call.change() as storage:
        pool = storage.define_pool(text, validate=validate)
        call.emit(pool_changed("defined", pool), f"pool {pool.name} defined from {file}")


@command(
    "define-as",
    examples=(
        "storagectl pool define-as vms dir --target /srv/vms",
        "storagectl pool define-as nas netfs --source-host nas --source-path /vms --target /mnt",
        "storagectl pool define-as vg0 logical --source-dev /dev/sdb --source-name vg0",
        "storagectl pool define-as ceph rbd --source-host mon1 --source-host '[fd00::2]:6789'"
        " --source-name rbd --auth-type ceph --auth-username libvirt --secret-usage ceph",
        "storagectl pool define-as vms dir - - - - /srv/vms",
    ),
)
@click.argument("name")
@type_argument
@rest_argument
@source_options
@print_option
@validate_option
@click.pass_obj
def define_as(
    call: Invocation,
    /,
    name: str,
    kind: str,
    rest: tuple[str, ...],
    print_xml: bool,
    validate: bool,
    **options: Any,
) -> None:
    """Define a pool from options.

    The pool stays inactive until 'pool start'. Which options count depends on TYPE. As with
    virsh, host, path, device, name and target may also follow as plain words, '-' for none.
    """
    text = pool_document(kind, name, gather(options, rest))
    if print_xml:
        call.emit({"xml": text}, text)
        return
    with call.change() as storage:
        pool = storage.define_pool(text, validate=validate)
        call.emit(pool_changed("defined", pool), f"pool {pool.name} defined")


@command("create", examples=("storagectl pool create scratch.xml --build",))
@file_argument
@click.option("--build", is_flag=True, help="Make the storage of the pool first.")
@build_options
@validate_option
@click.pass_obj
def create(
    call: Invocation, file: str, build: bool, overwrite: bool, no_overwrite: bool, validate: bool
) -> None:
    """Start a transient pool from XML.

    It is gone once it is stopped; its data stay.
    """
    _create(call, read(file), build, overwriting(overwrite, no_overwrite), validate)


@command(
    "create-as", examples=("storagectl pool create-as scratch dir --target /tmp/scratch --build",)
)
@click.argument("name")
@type_argument
@rest_argument
@source_options
@click.option("--build", is_flag=True, help="Make the storage of the pool first.")
@build_options
@print_option
@validate_option
@click.pass_obj
def create_as(
    call: Invocation,
    /,
    name: str,
    kind: str,
    rest: tuple[str, ...],
    build: bool,
    overwrite: bool,
    no_overwrite: bool,
    print_xml: bool,
    validate: bool,
    **options: Any,
) -> None:
    """Start a transient pool.

    It is gone once it is stopped; its data stay. The options are those of 'pool define-as'.
    """
    choice = overwriting(overwrite, no_overwrite)
    text = pool_document(kind, name, gather(options, rest))
    if print_xml:
        call.emit({"xml": text}, text)
        return
    _create(call, text, build, choice, validate)


def _create(
    call: Invocation, text: str, build: bool, overwrite: bool | None, validate: bool
) -> None:
    with call.change() as storage:
        pool = storage.create_pool(
            text, build=build or overwrite is not None, overwrite=overwrite, validate=validate
        )
        call.emit(pool_changed("created", pool), f"transient pool {pool.name} started")
