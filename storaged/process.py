"""Names for processes that hold also when their number is used again, and when the host has booted.

The number alone is another process's sooner or later. With the time of its start, and the boot in
which that was, it is one process for ever.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")


def start_time(pid: int) -> int | None:
    """Return when a process was started, in clock ticks since the boot; None if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
        # The second field is the program's name in brackets, and may hold spaces and brackets.
        return int(text.rpartition(b")")[2].split()[19])
    except (OSError, IndexError):  # it may end while we read
        return None


def this_boot() -> str:
    """Return what names this boot of the host; empty if the kernel does not tell."""
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return ""
