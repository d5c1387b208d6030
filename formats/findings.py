"""What a prober gathers on its way: the worst state and every reason."""

from __future__ import annotations

from storaged.formats.image import ImageInfo, ImageState

#: From good to bad.
SEVERITY = (ImageState.OK, ImageState.SUSPICIOUS, ImageState.UNSUPPORTED, ImageState.CORRUPT)


class Findings:
    """The verdict on one image so far. The worst state wins, no reason is lost."""

    __slots__ = ("harmless", "reasons", "state")

    def __init__(self) -> None:
        self.state = ImageState.OK
        self.reasons: list[str] = []
        self.harmless: list[str] = []

    def suspicious(self, reason: str) -> None:
        """Record what is readable but odd."""
        self._add(ImageState.SUSPICIOUS, reason)

    def note(self, reason: str) -> None:
        """Record what is odd but says nothing against reading the image."""
        self._add(ImageState.SUSPICIOUS, reason)
        self.harmless.append(reason)

    def unsupported(self, reason: str) -> None:
        """Record a version or a feature that nobody here knows."""
        self._add(ImageState.UNSUPPORTED, reason)

    def corrupt(self, reason: str) -> None:
        """Record a contradiction within the image or with its file's size."""
        self._add(ImageState.CORRUPT, reason)

    def info(self, format: str, capacity: int) -> ImageInfo:
        """Return an image that has nothing to say but its format, capacity and state."""
        return ImageInfo(
            format,
            capacity,
            state=self.state,
            reasons=tuple(self.reasons),
            harmless=tuple(self.harmless),
        )

    def _add(self, state: ImageState, reason: str) -> None:
        self.reasons.append(reason)
        if SEVERITY.index(state) > SEVERITY.index(self.state):
            self.state = state
