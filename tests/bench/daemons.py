"""The daemon through its socket, beside libvirt's own, with libvirt's own client."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.bench.images import Template, fill
from tests.bench.measure import Report, Row
from tests.clients.daemons import SYSTEM_PYTHON
from tests.daemon.running import PROJECT, storaged_daemon
from tests.storaged.libvirtd import libvirtd

ROUNDS = 5
CALLS = 500
IMAGES = 10_000
ASKED = 2_000
CREATES = 50
TRANSFER = 512 << 20

#: What our figure may be of libvirt's, by the beginning of a row's name; else `SLOWER`.
SHARES = {
    "create qcow2": 0.2,
    "create vmdk": 0.2,
    "refresh, unchanged": 1 / 3,
    "resident memory": 1.5,
}
SLOWER = 1.2
#: What a figure may be, whatever libvirt's is.
BOUNDS = {"99 of 100 pool infos": 10.0}


def run(report: Report, directory: Path) -> None:
    """Have a client of both daemons do all of it, in turn."""
    template = Template.make(directory)
    for name in ("theirs", "ours"):
        (directory / name).mkdir()
        fill(directory / name / "images", IMAGES, template)
    with (
        libvirtd(directory / "libvirtd") as theirs,
        storaged_daemon(directory / "storaged") as ours,
    ):
        sides = [
            (theirs.uri, theirs.pid, str(directory / "theirs")),
            (ours.uri(), ours.pid, str(directory / "ours")),
        ]
        for line in _measured(sides):
            report.add(_row(line))


def _measured(sides: list[tuple[str, int, str]]) -> list[str]:
    sizes = {
        "rounds": ROUNDS,
        "calls": CALLS,
        "images": IMAGES,
        "asked": min(ASKED, IMAGES),
        "creates": CREATES,
        "transfer": TRANSFER,
    }
    task = json.dumps({"sizes": sizes, "sides": sides})
    command = [SYSTEM_PYTHON, "-m", "tests.bench.daemonpeer", task]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=PROJECT)
    return done.stdout.splitlines()


def _row(line: str) -> Row:
    """Return a row whose ratio is the median of those of the pairs."""
    found = json.loads(line)
    name = found["name"]
    share = next((share for start, share in SHARES.items() if name.startswith(start)), SLOWER)
    bound = next((bound for start, bound in BOUNDS.items() if name.startswith(start)), None)
    return Row.of_pairs(found | {"name": f"socket: {name}"}, share, bound=bound)
