"""What images are told of and asked for on the wire: there and back it is the same."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged import imagerecords as records
from storaged.concerns import Concern, Level
from storaged.errors import InvalidArgument
from storaged.formats.checkreport import CheckReport
from storaged.formats.image import BackingRef, ImageInfo, ImageState
from storaged.imagelock import Holder
from storaged.imaging import (
    CloneBacking,
    CloneOptions,
    Compression,
    ConvertOptions,
    DirtyBitmap,
    Durability,
    HeaderChange,
    Inspection,
    InternalSnapshot,
    Layer,
)
from storaged.rpc import images as rpc
from storaged.rpc.storage import StoragePool, StorageVol

FEW = settings(max_examples=60, deadline=None)
VOL = StorageVol("p", "v", "/p/v")
POOL = StoragePool("p", bytes(16))

#: file names: any bytes but NUL
NAMES = st.binary(max_size=20).map(lambda data: data.replace(b"\0", b""))
TEXTS = NAMES.map(lambda data: data.decode("utf-8", "surrogateescape"))
SIZES = st.integers(0, 2**64 - 1)
MAYBE = st.none() | TEXTS
FEATURES = st.none() | st.frozensets(st.sampled_from(["lazy_refcounts", "extended_l2"]))

concerns = st.lists(st.builds(Concern, st.sampled_from(Level), TEXTS), max_size=3).map(tuple)
reports = st.builds(
    CheckReport, st.just("qcow2"), SIZES, SIZES, st.lists(TEXTS, max_size=3).map(tuple),
    SIZES, SIZES, SIZES, SIZES,
)  # fmt: skip
images = st.builds(
    ImageInfo,
    format=TEXTS,
    capacity=SIZES,
    encryption=MAYBE,
    compat=MAYBE,
    cluster_size=SIZES,
    features=FEATURES,
    backing=st.none() | st.builds(BackingRef, NAMES, MAYBE),
    data_file=st.none() | NAMES,
    snapshots=st.integers(0, 65536),
    refcount_bits=st.sampled_from([1, 16, 64]),
    compression=MAYBE,
    subformat=MAYBE,
    extents=st.lists(NAMES, max_size=3).map(tuple),
    bitmaps=st.integers(0, 65535),
    state=st.sampled_from(ImageState),
    reasons=st.lists(TEXTS, max_size=3).map(tuple),
    harmless=st.lists(TEXTS, max_size=3).map(tuple),
)
inspections = st.builds(
    Inspection,
    name=TEXTS,
    path=TEXTS,
    format=MAYBE,
    true_format=MAYBE,
    capacity=SIZES,
    allocation=SIZES,
    physical=SIZES,
    image=st.none() | images,
    chain=st.lists(st.builds(Layer, TEXTS, MAYBE, MAYBE, SIZES, concerns), max_size=3).map(tuple),
    concerns=concerns,
    holders=st.lists(
        st.builds(Holder, st.integers(1, 2**22), TEXTS, st.booleans(), MAYBE), max_size=3
    ).map(tuple),
    used_by=st.lists(TEXTS, max_size=3).map(tuple),
    snapshots=st.lists(
        st.builds(InternalSnapshot, TEXTS, TEXTS, SIZES, SIZES, SIZES), max_size=3
    ).map(tuple),
    bitmaps=st.lists(
        st.builds(DirtyBitmap, TEXTS, SIZES, st.booleans(), st.booleans()), max_size=3
    ).map(tuple),
)
choices = st.none() | st.booleans()
secrets = st.none() | st.binary(max_size=20)
conversions = st.builds(
    ConvertOptions,
    MAYBE,
    MAYBE,
    SIZES,
    choices,
    choices,
    st.none() | st.sampled_from(Compression),
    MAYBE,
    st.booleans(),
    st.none() | st.sampled_from(Durability),
    secrets,
)
clones = st.builds(
    CloneOptions,
    st.sampled_from(CloneBacking),
    st.none() | st.sampled_from(Compression),
    st.none() | st.sampled_from(Durability),
    secrets,
    secrets,
)


@FEW
@given(reports)
def test_reports(report: CheckReport) -> None:
    sent = records.report_record(report).pack()
    assert records.report_of(rpc.VolCheckRet.unpack(sent)) == report


@FEW
@given(inspections)
def test_inspections(found: Inspection) -> None:
    sent = records.inspection_record(found).pack()
    assert records.inspection_of(rpc.VolInspectRet.unpack(sent)) == found


@FEW
@given(choices, MAYBE)
def test_changes(lazy: bool | None, compat: str | None) -> None:
    change = HeaderChange(lazy, compat)
    sent = records.amend_record(VOL, change).pack()
    assert records.change_of(rpc.VolAmendArgs.unpack(sent)) == change


@FEW
@given(conversions)
def test_conversions(options: ConvertOptions) -> None:
    sent = records.convert_record(VOL, options).pack()
    assert records.convert_options(rpc.VolConvertArgs.unpack(sent)) == options


@FEW
@given(clones)
def test_clones(options: CloneOptions) -> None:
    sent = records.clone_record(POOL, "<volume/>", VOL, 3, options).pack()
    assert records.clone_options(rpc.VolCloneArgs.unpack(sent)) == options


def test_what_is_too_much_is_cut() -> None:
    report = CheckReport("qcow2", findings=("x",) * (rpc.LIST_MAX + 1))
    assert len(records.report_record(report).findings) == rpc.LIST_MAX
    image = ImageInfo("qcow2", 2**70, extents=(b"x",) * (rpc.LIST_MAX + 1))
    found = Inspection("v", "/v", "qcow2", "qcow2", 0, 0, 0, image, used_by=("/x",) * 5000)
    sent = records.inspection_record(found)
    assert rpc.VolInspectRet.unpack(sent.pack()) == sent
    assert sent.image is not None
    assert (len(sent.used_by), len(sent.image.extents)) == (rpc.LIST_MAX,) * 2
    assert sent.image.capacity == 2**64 - 1


def test_what_nobody_knows() -> None:
    known = records.clone_record(POOL, "", VOL, 0, CloneOptions())
    for field in ("backing", "compress", "durability"):
        wrong = rpc.VolCloneArgs(**{**vars(known), field: "nonsense"})
        with pytest.raises(InvalidArgument, match="nonsense"):
            records.clone_options(wrong)
    with pytest.raises(InvalidArgument, match="lazy_refcounts cannot be 3"):
        records.change_of(rpc.VolAmendArgs(VOL, 3, None))


def test_secrets_are_not_shown() -> None:
    options = CloneOptions(secret=b"hunter2", source_secret=b"hunter2")
    shown = [
        records.clone_record(POOL, "", VOL, 0, options),
        records.convert_record(VOL, ConvertOptions(secret=b"hunter2")),
        rpc.VolCreateArgs(POOL, "", 0, b"hunter2"),
        rpc.VolResizeArgs(VOL, 0, 0, b"hunter2"),
    ]
    assert not [record for record in shown if "hunter2" in repr(record)]
