"""Images that go up and down, by Ceph's own tool and by others beside it."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.bench.pairs import Rows


class Moves(Protocol):
    """Who moves an image up and down; it has a name of its own on the cluster."""

    name: str

    def upload(self) -> None:
        """Make an image of the data."""

    def download(self) -> None:
        """Bring the data of the image back."""

    def remove(self) -> None:
        """Remove the image."""


@dataclass(frozen=True)
class Transfer:
    """What goes up and comes back.

    :param conf: of the cluster.
    :param pool: of Ceph's.
    :param data: a file that has it.
    :param back: a file for it to come back to.
    """

    conf: str
    pool: str
    data: str
    back: str


class Tool:
    """``rbd import`` and ``rbd export``."""

    name = "tool"

    def __init__(self, transfer: Transfer) -> None:
        self._transfer = transfer
        self._image = f"{transfer.pool}/{self.name}"

    def upload(self) -> None:
        self._run("import", self._transfer.data, self._image)

    def download(self) -> None:
        self._run("export", self._image, self._transfer.back)

    def remove(self) -> None:
        self._run("rm", self._image)

    def _run(self, verb: str, *words: str) -> None:
        program = ("rbd", "-c", self._transfer.conf, "--name", "client.libvirt", "--no-progress")
        subprocess.run([*program, verb, *words], check=True, stderr=subprocess.DEVNULL)


def time_transfers(rows: Rows[Moves], transfer: Transfer) -> None:
    """Time both ways: each upload makes a new image, each download a new file."""
    size = Path(transfer.data).stat().st_size / (1 << 20)
    there: dict[str, Moves] = {}

    def clear(side: Moves) -> None:
        if side.name in there:
            side.remove()
        there[side.name] = side

    def forget(_: Moves) -> None:
        Path(transfer.back).unlink(missing_ok=True)

    rows.speed("upload", lambda side: side.upload(), size, before=clear)
    rows.speed("download", lambda side: side.download(), size, before=forget)
    for side in there.values():
        side.remove()
