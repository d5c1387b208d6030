"""What speaks against trusting an image: notes for people, and dangers that refuse work.

It is told from the header alone, by words, and costs no system call: a scan must not wait for a
server that an image names. What really lies behind a name is looked at when it is used.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from storaged.formats.image import BackingRef, ImageInfo, ImageState
from storaged.references import Reference, ReferenceKind, refer

_UNRECORDED = "the format of its backing file is not recorded"
_RECORD_IT = "storagectl vol rebase POOL/VOLUME --set-backing-format FORMAT"
_KINDS = {
    ReferenceKind.NETWORK: "on a network",
    ReferenceKind.JSON: "a json: description",
    ReferenceKind.DEVICE: "a device",
    ReferenceKind.UNUSABLE: "no name of a file",
}


class Level(StrEnum):
    """How much a concern weighs."""

    #: worth knowing
    NOTE = "note"
    #: whoever opens the image as what it says it is may come to harm: it is not cloned, converted,
    #: resized or used as a backing file; it is deleted and downloaded as it is
    DANGER = "danger"


@dataclass(frozen=True, slots=True)
class Concern:
    """What is odd about an image or what it refers to, in one sentence."""

    level: Level
    text: str


def concerns(
    image: ImageInfo | None, directory: str, target: str | None = None
) -> tuple[Concern, ...]:
    """Return what speaks against an image, the dangers first.

    :param image: what its header says; None is plain data, against which nothing does.
    :param directory: absolute path of the directory that it lies in.
    :param target: absolute path of its pool's target; None if that is the directory.
    """
    if image is None or is_plain(image):
        return ()
    found = [*_of_content(image), *_of_references(image, directory, target or directory)]
    return tuple(sorted(dict.fromkeys(found), key=lambda concern: concern.level is Level.NOTE))


def is_plain(image: ImageInfo) -> bool:
    """Tell whether an image is sound and refers to nothing, as most do."""
    return (
        image.state is ImageState.OK
        and image.backing is None
        and image.data_file is None
        and not image.extents
    )


def dangers(found: Iterable[Concern]) -> list[str]:
    """Return the texts of those that refuse work."""
    return [concern.text for concern in found if concern.level is Level.DANGER]


def obstacle(backing: BackingRef, reference: Reference, format: str) -> Concern | None:
    """Return why a backing file must not be opened, None if it may be looked for.

    :param reference: what its name refers to.
    :param format: of the image that names it.
    """
    if reference.kind is not ReferenceKind.FILE:
        return _danger("its backing file is", reference)
    # It would have to be probed, and what a guest wrote into it would decide what is opened next.
    if backing.format is not None:
        return None
    more = f": {_RECORD_IT}" if format == "qcow2" else f", and {format} has no place for it"
    return Concern(Level.NOTE, f"{_UNRECORDED}{more}")


def _of_content(image: ImageInfo) -> list[Concern]:
    if image.state is ImageState.OK:
        return []
    # That the data lie elsewhere is judged by where that is.
    reasons = [reason for reason in image.reasons if reason not in image.harmless]
    found = [Concern(Level.DANGER, reason) for reason in reasons]
    if not image.reasons:
        found.append(Concern(Level.DANGER, f"the image is {image.state}"))
    return found + [Concern(Level.NOTE, reason) for reason in image.harmless]


def _of_references(image: ImageInfo, directory: str, target: str) -> list[Concern]:
    found = []
    if image.backing is not None:
        reference = refer(image.backing.name, directory, target)
        if reference.kind is ReferenceKind.FILE and not reference.inside:
            text = f"its backing file lies outside the pool: {reference}"
            found.append(Concern(Level.NOTE, text))
        why = obstacle(image.backing, reference, image.format)
        if why is not None:
            found.append(why)
    if image.data_file is not None:
        reference = refer(image.data_file, directory, target)
        found += _beside("external file with its data", reference)
    for name in image.extents:
        found += _beside("extent", refer(name, directory, target))
    return found


def _beside(what: str, reference: Reference) -> list[Concern]:
    """Judge a file that holds an image's data: it must lie beside the image, in the pool."""
    if reference.kind is not ReferenceKind.FILE:
        return [_danger(f"its {what} is", reference)]
    if not reference.is_plain:
        text = f"its {what} is not named as a file beside it: {reference}"
    elif not reference.inside:
        text = f"its {what} lies outside the pool: {reference}"
    else:
        return []
    return [Concern(Level.DANGER, text)]


def _danger(what: str, reference: Reference) -> Concern:
    return Concern(Level.DANGER, f"{what} {_KINDS[reference.kind]}: {reference}")
