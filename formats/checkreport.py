"""What a check of an image's tables found: one value for all formats."""

from __future__ import annotations

from dataclasses import dataclass

#: More findings than this are counted, not told.
MAX_FINDINGS = 100


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The verdict on an image's tables.

    :param corruptions: contradictions that endanger data.
    :param leaks: clusters that are taken but used by nothing: lost space, no danger.
    :param findings: the first `MAX_FINDINGS`, one printable sentence each.
    :param end: where in the file the last thing ends that is used, in bytes.
    :param total: units (clusters or grains) of the disk.
    :param allocated: those of them that have room in the file, the compressed among them.
    """

    format: str
    corruptions: int = 0
    leaks: int = 0
    findings: tuple[str, ...] = ()
    end: int = 0
    total: int = 0
    allocated: int = 0
    compressed: int = 0

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return not self.corruptions and not self.leaks
