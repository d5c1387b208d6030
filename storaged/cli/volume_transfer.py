"""Bytes in and out: upload, download."""

from __future__ import annotations

import sys

import click

from storaged.cli import render
from storaged.cli.invocation import Invocation
from storaged.cli.lazy import command
from storaged.cli.lookup import find_volume
from storaged.cli.objects import volume_object
from storaged.cli.parameters import SIZE, pool_option, volume_argument

file_argument = click.argument(
    "file", metavar="FILE|-", type=click.Path(dir_okay=False, allow_dash=True)
)
offset_option = click.option(
    "--offset", type=SIZE, default=0, help="Begin here in the volume; at its start unless given."
)
length_option = click.option(
    "--length", type=SIZE, default=0, help="Move at most this much; all unless given."
)


@command(
    "upload",
    examples=(
        "storagectl vol upload disk.img disk.raw --pool default",
        "zcat disk.raw.gz | storagectl vol upload default/disk.img -",
    ),
)
@volume_argument
@file_argument
@pool_option
@offset_option
@length_option
@click.option("--sparse", is_flag=True, help="Holes of the file become holes of the volume.")
@click.pass_obj
def upload(
    call: Invocation,
    volume: str,
    file: str,
    pool: str | None,
    offset: int,
    length: int,
    sparse: bool,
) -> None:
    """Write a file into a volume.

    The bytes go in as they are: a qcow2 file makes a qcow2 volume. '-' is standard input.
    """
    with call.change() as storage:
        found = find_volume(storage, volume, pool)
        source = sys.stdin.buffer if file == "-" else file
        moved = call.follow(
            found.upload(source, offset=offset, length=length, sparse=sparse, wait=False)
        )
        call.emit(
            {"action": "uploaded", "bytes": moved, "volume": volume_object(found.info())},
            f"{render.size(moved)} written to volume {found.name}",
        )


@command(
    "download",
    examples=(
        "storagectl vol download disk.img disk.raw --pool default",
        "storagectl vol download default/disk.img - | gzip > disk.raw.gz",
    ),
)
@volume_argument
@file_argument
@pool_option
@offset_option
@length_option
@click.option("--sparse", is_flag=True, help="Holes of the volume become holes of the file.")
@click.pass_obj
def download(
    call: Invocation,
    volume: str,
    file: str,
    pool: str | None,
    offset: int,
    length: int,
    sparse: bool,
) -> None:
    """Write a volume to a file.

    The bytes come out as they are: a qcow2 volume makes a qcow2 file. '-' is standard output.
    """
    with call.look() as storage:
        found = find_volume(storage, volume, pool)
        target = sys.stdout.buffer if file == "-" else file
        moved = call.follow(
            found.download(target, offset=offset, length=length, sparse=sparse, wait=False)
        )
        if file == "-":
            return  # an answer would end up among the data
        call.emit(
            {"action": "downloaded", "bytes": moved, "volume": volume_object(found.info())},
            f"{render.size(moved)} written to {file}",
        )
