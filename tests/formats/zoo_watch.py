"""``python -m tests.formats.zoo_watch DIRECTORY``: put all its files to every use, under watch.

Each is opened once. Whatever else is opened, started or connected meanwhile is told and ends the
program with status 1. It prints how many files there were.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

from storaged.formats.errors import FormatError
from storaged.formats.file import FileHandle
from tests.formats.memory import MemoryHandle
from tests.formats.zoo import whole
from tests.formats.zoo_use import USES

_WATCHED = (
    "open", "os.", "subprocess.", "socket.", "ctypes.", "shutil.", "pty.", "import", "exec",
    "tempfile.", "urllib.", "mmap.",
)  # fmt: skip
_HARMLESS = ("os.putenv", "os.listdir")


def main(directory: Path) -> int:
    """Watch the uses of all files; return 1 if any does what it must not."""
    for case in whole():  # what is loaded at first use is loaded now
        _use(MemoryHandle(case.data))
    allowed: list[str] = []
    told: list[str] = []

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if not allowed or not event.startswith(_WATCHED) or event in _HARMLESS:
            return
        if event == "open" and str(arguments[0]) == allowed[0]:
            return
        told.append(f"{allowed[0]!a}: {event} {arguments}")

    paths = sorted(directory.iterdir())
    sys.addaudithook(hook)
    with suppress(FileNotFoundError):
        os.close(os.open("/watch-begins", os.O_RDONLY))
    for path in paths:
        allowed[:] = [str(path)]
        with FileHandle(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as handle:
            _use(handle)
        allowed.clear()
    with suppress(FileNotFoundError):
        os.close(os.open("/watch-ends", os.O_RDONLY))
    print(len(paths))
    print(*told, sep="\n", file=sys.stderr)
    return min(len(told), 1)


def _use(handle: FileHandle | MemoryHandle) -> None:
    for use in USES.values():
        with suppress(FormatError):
            use(handle)


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]).absolute()))
