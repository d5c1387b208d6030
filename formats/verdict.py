"""What a check gathers on its way: how much is wrong, and the first of it in words."""

from __future__ import annotations

from storaged.formats.checkreport import MAX_FINDINGS


class Verdict:
    """The verdict on an image's tables so far.

    A text comes with its values apart, so that only what is kept is put into words: a hostile image
    may hold millions of contradictions.
    """

    __slots__ = ("corruptions", "findings", "leaks")

    def __init__(self) -> None:
        self.corruptions = 0
        self.leaks = 0
        self.findings: list[str] = []

    def corrupt(self, text: str, *values: object, times: int = 1) -> None:
        """Count a contradiction that endangers data.

        :param times: how often it is met on the way from the header.
        """
        self.corruptions += times
        self.note(text, *values)

    def leaked(self, text: str, *values: object) -> None:
        """Count a unit that is taken but used by nothing, or counted too often."""
        self.leaks += 1
        self.note(text, *values)

    def note(self, text: str, *values: object) -> None:
        """Tell what is odd but no contradiction.

        :param text: a `str.format` template for *values*.
        """
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(text.format(*values))
