"""Check of a qcow2 image: every reference is counted and compared with the refcounts.

The verdict is that of ``qemu-img check``. Where the header itself contradicts the format or the
file's size it is all that is judged, because nothing that follows from it can be trusted. More
strictly than there, an area of tables that anything else uses as well is a corruption even if the
refcount allows for it, and so is a zero flag where the version or the features know none.

Bounded: memory by the number of clusters of the file, time by its length less its holes.

Source: the qcow2 specification.
"""

from __future__ import annotations

from storaged.formats.checkreport import CheckReport
from storaged.formats.errors import CorruptImage, UnsupportedFormat
from storaged.formats.handle import Checkpoint, Handle
from storaged.formats.image import ImageState
from storaged.formats.qcow2 import Autoclear, ExtensionType, Incompatible
from storaged.formats.qcow2_check_areas import claim_bitmaps, claim_encryption, claim_snapshots
from storaged.formats.qcow2_check_counts import StoredCounts
from storaged.formats.qcow2_check_maps import MapCheck
from storaged.formats.qcow2_header import SoundHeader, examine_header
from storaged.formats.qcow2_references import References
from storaged.formats.verdict import Verdict


def check(
    handle: Handle, *, data_file_size: int | None = None, checkpoint: Checkpoint | None = None
) -> CheckReport:
    """Examine all tables of an image. Nothing is written; the data are not looked at.

    The caller holds QEMU's locks on the image, or knows that nobody writes to it.

    :param data_file_size: length of the external data file, None if it is not known.
    :param checkpoint: called with bytes of the file done and its size.
    :raise UnsupportedFormat: for a version or a feature that nobody here knows, and for a file of
        more clusters than can be counted.
    :raise FormatError: if it is no qcow2 image.
    """
    verdict = Verdict()
    try:
        sound = examine_header(handle)
    except CorruptImage as err:
        verdict.corrupt("{}", err)
        return CheckReport("qcow2", verdict.corruptions, 0, tuple(verdict.findings))
    info = sound.info
    if info.state is ImageState.UNSUPPORTED:
        raise UnsupportedFormat("; ".join(info.reasons))
    if info.state is ImageState.CORRUPT:
        for reason in info.reasons:
            verdict.corrupt("{}", reason)
        return CheckReport("qcow2", verdict.corruptions, 0, tuple(verdict.findings))
    marked = ("the image is marked as corrupt",) if sound.header.has(Incompatible.CORRUPT) else ()
    for reason in (*marked, *info.reasons):
        verdict.note("{}", reason)
    return _Check(handle, sound, verdict).run(data_file_size, checkpoint)


class _Check:
    """One image under examination, its header found to be sound."""

    def __init__(self, handle: Handle, sound: SoundHeader, verdict: Verdict) -> None:
        self.handle = handle
        self.header = sound.header
        self.extensions = sound.extensions
        self.verdict = verdict
        self.references = References(sound.file_size, self.header.cluster_size, verdict)

    def run(self, data_file_size: int | None, checkpoint: Checkpoint | None) -> CheckReport:
        """Count, then compare."""
        handle, header, references = self.handle, self.header, self.references
        fixed = header.fixed
        stored = StoredCounts(handle, header, references)
        stored.load(checkpoint)
        maps = MapCheck(handle, header, references, stored.counts)
        self.claim_areas()
        maps.add_active(fixed.l1_table_offset, fixed.l1_size)
        maps.add_snapshots(claim_snapshots(handle, header, references))
        maps.follow(checkpoint)
        stored.compare()
        stored.require_single_blocks()
        maps.require_single_use()
        self.require_single_areas(stored)
        if data_file_size is not None and maps.data_end > data_file_size:
            self.verdict.note("the data file of {} bytes is too short", data_file_size)
        return CheckReport(
            "qcow2",
            self.verdict.corruptions,
            self.verdict.leaks,
            tuple(self.verdict.findings),
            end=self.end(stored),
            total=-(-fixed.size // header.cluster_size),
            allocated=maps.mapped.allocated,
            compressed=maps.mapped.compressed,
        )

    def claim_areas(self) -> None:
        """Count everything whose place the header knows, but what snapshots have."""
        fixed, references = self.header.fixed, self.references
        size = self.header.cluster_size
        references.claim("header", 0, size)
        references.claim("L1 table", fixed.l1_table_offset, 8 * fixed.l1_size)
        table = fixed.refcount_table_clusters * size
        references.claim("refcount table", fixed.refcount_table_offset, table)
        claim_encryption(self.extensions.get(ExtensionType.ENCRYPTION), references)
        if self.header.autoclear & Autoclear.BITMAPS:
            claim_bitmaps(self.handle, self.extensions.get(ExtensionType.BITMAPS), references)

    def require_single_areas(self, stored: StoredCounts) -> None:
        """Report each area that something else uses as well, unless its refcounts tell."""
        counts = self.references.counts
        for claim in self.references.claims:
            for cluster in counts.other_than_one(claim.first, claim.count):
                if stored.counts[cluster] >= counts[cluster]:
                    text = "cluster {} of the {} is used for something else"
                    self.verdict.corrupt(text, cluster, claim.name)

    def end(self, stored: StoredCounts) -> int:
        """Return where the last cluster ends that is used or counted."""
        last = max(self.references.counts.last(), stored.counts.last())
        return (last + 1) * self.header.cluster_size
