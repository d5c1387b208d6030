"""What it costs to move 512 MiB in and out of a volume."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import storaged
from tests.bench.measure import DURABILITIES, Durability, Report, repeat

ROUNDS = 5
SIZE = 512 << 20

#: Milliseconds that the C daemon takes for an upload; it writes nothing back before it answers.
UPLOAD = 344.0


def run(report: Report, directory: Path) -> None:
    """Measure upload and download from and to a file."""
    file = directory / "transfer.bin"
    block = os.urandom(1 << 20)
    with file.open("wb") as stream:
        for _ in range(SIZE >> 20):
            stream.write(block)
    for durability in DURABILITIES:
        _transfers(report, directory / f"transfers-{durability}", file, durability)
    file.unlink()


def _transfers(report: Report, place: Path, file: Path, durability: Durability) -> None:
    with storaged.open(place / "state", durability=durability) as storage:
        pool = storage.ensure_dir_pool("bench", place / "images")
        volume = pool.create("disk.raw", SIZE)
        uploads = repeat(ROUNDS, partial(volume.upload, file), before=os.sync)
        report.samples(
            "upload 512 MiB", uploads, durability=durability, reference=UPLOAD, goal=UPLOAD
        )
        if durability == "none":
            back = place / "back.bin"

            def clear() -> None:
                back.unlink(missing_ok=True)
                os.sync()

            downloads = repeat(ROUNDS, partial(volume.download, back), before=clear)
            report.samples("download 512 MiB", downloads)
            with file.open("rb") as sent, back.open("rb") as received:
                while piece := sent.read(1 << 20):
                    assert received.read(1 << 20) == piece, "the bytes came back changed"
            back.unlink()
        volume.delete()
