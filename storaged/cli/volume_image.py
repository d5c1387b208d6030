"""Looking into the images in volumes: check, inspect."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from storaged.cli import render
from storaged.cli.imageobjects import (
    CheckObject,
    ConcernObject,
    ImageObject,
    InspectionObject,
    check_object,
    inspection_object,
)
from storaged.cli.invocation import Invocation
from storaged.cli.lazy import command
from storaged.cli.lookup import find_volume
from storaged.cli.outcome import ExitCode
from storaged.cli.parameters import bytes_option, pool_option, volume_argument

if TYPE_CHECKING:
    from storaged.formats.checkreport import CheckReport


@command(
    "check",
    examples=(
        "storagectl vol check default/web1.qcow2",
        "storagectl vol check web1.qcow2 --pool default --json | jq .corruptions",
    ),
)
@volume_argument
@pool_option
@click.option(
    "--force", is_flag=True, help="Also while somebody writes to it: leaks may be in transit then."
)
@click.pass_obj
def check(call: Invocation, volume: str, pool: str | None, force: bool) -> int:
    """Check the tables of an image.

    Nothing is changed. Corruptions endanger data: copy what can be read to a new volume. Leaks are
    lost space and no danger: 'vol convert' writes the image anew without them. Ends with status 0
    if nothing was found, else with 13. Formats without tables, such as raw, cannot be checked.
    """
    with call.look() as storage:
        report = call.follow(find_volume(storage, volume, pool).check(force=force, wait=False))
    shown = check_object(report)
    call.emit(shown, lambda: _report(shown))
    return _status(report)


@command(
    "inspect",
    examples=(
        "storagectl vol inspect default/web1.qcow2",
        "storagectl vol inspect web1.qcow2 --pool default --json | jq .chain",
    ),
)
@volume_argument
@pool_option
@bytes_option
@click.pass_obj
def inspect(call: Invocation, volume: str, pool: str | None, exact: bool) -> None:
    """Show what an image is and what it refers to.

    With its backing chain, what speaks against trusting it, its snapshots and bitmaps, who has it
    open, and which volumes are overlays of it. Nothing is opened that could do harm, so any image
    may be looked at.
    """
    with call.look() as storage:
        found = call.follow(find_volume(storage, volume, pool).inspect(wait=False))
    shown = inspection_object(found)
    call.emit(shown, lambda: "\n".join(_lines(shown, exact)))


def _status(report: CheckReport) -> ExitCode:
    return ExitCode.OK if report.clean else ExitCode.DAMAGED


def _report(shown: CheckObject) -> str:
    lines = [render.clean(finding) for finding in shown["findings"]]
    found = shown["corruptions"] + shown["leaks"]
    if found > len(lines) > 0:
        lines.append(f"... {found - len(lines)} more")
    if lines:
        lines.append("")
    lines.append(
        render.fields(
            [
                ("Format", shown["format"]),
                ("Corruptions", str(shown["corruptions"])),
                ("Leaks", str(shown["leaks"])),
                ("Allocated", f"{shown['allocated']} of {shown['total']} clusters"),
                ("Compressed", str(shown["compressed"])),
            ]
        )
    )
    return "\n".join(lines)


def _lines(shown: InspectionObject, exact: bool) -> Iterator[str]:
    """Yield what there is to say, part by part."""
    kind = shown["format"] or "-"
    if shown["true_format"] not in (None, shown["format"]):
        kind = f"{kind}, by its content {shown['true_format']}"
    pairs = [
        ("Name", shown["name"]),
        ("Path", shown["path"]),
        ("Format", kind),
        ("Capacity", render.size(shown["capacity"], exact=exact)),
        ("Allocation", render.size(shown["allocation"], exact=exact)),
    ]
    if shown["image"] is not None:
        pairs += _header(shown["image"], exact)
    yield render.fields(pairs)
    yield from _concerns(shown["concerns"])
    if len(shown["chain"]) > 1:
        yield "\nBacking chain:"
        rows = [
            (each["name"], each["format"] or "not recorded", _size(each["capacity"], exact))
            for each in shown["chain"]
        ]
        yield render.table(("Image", "Format", ">Capacity"), rows)
        for layer in shown["chain"][1:]:
            yield from _concerns(layer["concerns"], layer["name"])
    yield from _uses(shown)
    yield from _inside(shown, exact)


def _header(image: ImageObject, exact: bool) -> list[tuple[str, str]]:
    """Return what a header says, as far as it says anything."""
    size = image["cluster_size"]
    pairs = (
        ("State", "" if image["state"] == "ok" else image["state"]),
        ("Version", image["compat"] or ("0.10" if image["format"] == "qcow2" else "")),
        ("Subformat", image["subformat"] or ""),
        ("Cluster size", render.size(size, exact=exact) if size else ""),
        ("Features", ", ".join(image["features"])),
        ("Compression", image["compression"] or ""),
        ("Encryption", image["encryption"] or ""),
        ("Backing file", image["backing"] or ""),
        ("Backing format", (image["backing_format"] or "-") if image["backing"] else ""),
        ("Data file", image["data_file"] or ""),
        ("Extents", ", ".join(image["extents"])),
    )
    return [pair for pair in pairs if pair[1]]


def _concerns(concerns: list[ConcernObject], name: str = "") -> Iterator[str]:
    for each in concerns:
        whose = f"{name}: " if name else ""
        yield render.clean(f"{each['level']}: {whose}{each['text']}")


def _uses(shown: InspectionObject) -> Iterator[str]:
    for each in shown["holders"]:
        guest = f"virtual machine '{each['guest']}', " if each["guest"] else ""
        how = "for writing " if each["writing"] else ""
        yield render.clean(f"open {how}by {guest}{each['command']} (pid {each['pid']})")
    for user in shown["used_by"]:
        yield render.clean(f"backing file of {user}")


def _inside(shown: InspectionObject, exact: bool) -> Iterator[str]:
    if shown["snapshots"]:
        yield "\nSnapshots:"
        rows = [
            (each["id"], each["name"], _time(each["taken"]), _size(each["capacity"], exact))
            for each in shown["snapshots"]
        ]
        yield render.table(("Id", "Name", "Taken", ">Capacity"), rows)
    if shown["bitmaps"]:
        yield "\nBitmaps:"
        states = (
            "unusable" if each["in_use"] else _on(each["enabled"]) for each in shown["bitmaps"]
        )
        sizes = (render.size(each["granularity"], exact=exact) for each in shown["bitmaps"])
        names = (each["name"] for each in shown["bitmaps"])
        table = zip(names, sizes, states, strict=True)
        yield render.table(("Name", "Granularity", "State"), table)


def _on(enabled: bool) -> str:
    return "on" if enabled else "off"


def _size(count: int, exact: bool) -> str:
    return render.size(count, exact=exact) if count else "-"


def _time(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):  # the image may say anything
        return "-"
