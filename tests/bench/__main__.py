"""Measure storaged on this machine: ``python -m tests.bench --help``."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import pytest

from tests.bench import daemons, formats, hosts, memory, programs, rbd, scans, transfers, volumes
from tests.bench.measure import Report, file_system

GROUPS = {
    "programs": programs.run,
    "scans": scans.run,
    "formats": formats.run,
    "volumes": volumes.run,
    "transfers": transfers.run,
    "memory": memory.run,
    "daemons": daemons.run,
    "rbd": rbd.run,
    "hosts": hosts.run,
}


def main() -> int:
    """Run the chosen groups and print one line a figure."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument(
        "--directory",
        type=Path,
        default=Path("/var/tmp"),
        help="where to work: a file system on a disk with 3 GiB free (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--only", action="append", choices=GROUPS, help="measure this group")
    parser.add_argument(
        "--many",
        type=int,
        default=memory.COUNT,
        metavar="N",
        help="volumes of the pool whose memory is measured (default: %(default)s)",
    )
    options = parser.parse_args()
    kind = file_system(options.directory)
    if kind == "tmpfs":
        parser.error(f"{options.directory} is in memory: its figures would mean nothing")
    report = Report(sys.stdout)
    print(f"on {kind} at {options.directory}, Python {sys.version.split()[0]}")
    report.head()
    for name in options.only or GROUPS:
        with tempfile.TemporaryDirectory(prefix="storaged-bench-", dir=options.directory) as place:
            try:
                if name == "memory":
                    memory.run(report, Path(place), options.many)
                else:
                    GROUPS[name](report, Path(place))
            except pytest.skip.Exception as err:
                print(f"{name}: left out: {err}")
            os.sync()  # what one group wrote is not paid for by the next
    if options.json:
        report.save(options.json, options.directory)
    missed = [row.name for row in report.rows if row.met is False]
    if missed:
        print(f"\n{len(missed)} missed their goal: {'; '.join(missed)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
