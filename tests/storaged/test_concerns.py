"""The two levels of concern, by what a header says and by what real images are."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from storaged.backends._record import OPEN_FLAGS, Recorder
from storaged.concerns import Concern, Level, concerns, dangers
from storaged.formats.image import BackingRef, ImageInfo, ImageState
from storaged.model import VolumeRecord
from tests.formats import qemu

TARGET = "/pool/vms"
MIB = 1 << 20


def of(**facts: object) -> list[tuple[Level, str]]:
    found = concerns(ImageInfo("qcow2", MIB, **facts), TARGET)  # type: ignore[arg-type]
    return [(concern.level, concern.text) for concern in found]


def test_nothing_to_say() -> None:
    assert concerns(None, TARGET) == ()
    assert of() == []
    assert of(backing=BackingRef(b"base", "raw")) == []
    assert of(backing=BackingRef(b"/pool/vms/base", "qcow2")) == []
    assert of(data_file=b"data") == []
    assert of(extents=(b"disk-s001.vmdk", b"disk-s002.vmdk")) == []


def test_notes() -> None:
    outside = of(backing=BackingRef(b"/srv/base", "raw"))
    assert outside == [(Level.NOTE, "its backing file lies outside the pool: /srv/base")]
    (unrecorded,) = of(backing=BackingRef(b"base"))
    assert unrecorded[0] is Level.NOTE
    assert "storagectl vol rebase POOL/VOLUME --set-backing-format" in unrecorded[1]
    assert len(of(backing=BackingRef(b"/srv/base"))) == 2
    state = ImageState.SUSPICIOUS
    assert of(state=state, reasons=("odd",), harmless=("odd",)) == [(Level.NOTE, "odd")]


def test_what_a_format_cannot_record_is_not_asked_for() -> None:
    image = ImageInfo("qed", MIB, backing=BackingRef(b"base"))
    [found] = concerns(image, TARGET)
    assert found.level is Level.NOTE
    assert found.text == (
        "the format of its backing file is not recorded, and qed has no place for it"
    )


@pytest.mark.parametrize(
    "facts",
    [
        {"backing": BackingRef(b"json:{}", "raw")},
        {"backing": BackingRef(b"nbd://h/x", "raw")},
        {"backing": BackingRef(b"/dev/vda", "raw")},
        {"backing": BackingRef(b"a\0b", "raw")},
        {"data_file": b"/etc/passwd"},
        {"data_file": b"../data"},
        {"data_file": b"sub/data"},
        {"data_file": b"json:{}"},
        {"extents": (b"fine", b"/etc/passwd")},
        {"extents": (b"..",)},
        {"state": ImageState.CORRUPT},
        {"state": ImageState.UNSUPPORTED, "reasons": ("version 9",)},
        {
            "state": ImageState.SUSPICIOUS,
            "reasons": ("the file is also iso", "x"),
            "harmless": ("x",),
        },
    ],
)
def test_dangers(facts: dict[str, object]) -> None:
    found = of(**facts)
    assert found[0][0] is Level.DANGER
    assert dangers([Concern(*one) for one in found]) == [found[0][1]]


def test_secrets_are_not_told() -> None:
    ((_, text),) = of(backing=BackingRef(b"https://ann:pw@host/x", "raw"))
    assert text == "its backing file is on a network: https://host/x"


def test_an_image_outside_the_pool() -> None:
    image = ImageInfo("qcow2", MIB, backing=BackingRef(b"next", "raw"), data_file=b"data")
    levels = [concern.level for concern in concerns(image, "/srv", TARGET)]
    assert levels == [Level.DANGER, Level.NOTE]  # the data of a stranger are not read


def recorded(path: Path) -> VolumeRecord:
    fd = os.open(path, OPEN_FLAGS)
    try:
        return Recorder(str(path.parent)).of_file(path.name, fd, os.fstat(fd))
    finally:
        os.close(fd)


def test_an_image_in_use_is_worth_a_note(tmp_path: Path) -> None:
    """A machine that crashed leaves it so: it can be read all the same."""
    path = qemu.create(tmp_path / "disk", MIB, "lazy_refcounts=on")
    with path.open("r+b") as file:
        file.seek(72)
        file.write(struct.pack(">Q", 1))
    record = recorded(path)
    assert [concern.level for concern in record.concerns] == [Level.NOTE]
    assert record.problem == "the image was not closed cleanly: its refcounts may be wrong"
    with path.open("r+b") as file:
        file.seek(72)
        file.write(struct.pack(">Q", 2))
    assert [concern.level for concern in recorded(path).concerns] == [Level.DANGER]


def test_two_formats_in_one_file(tmp_path: Path) -> None:
    path = qemu.create(tmp_path / "disk", MIB)
    with path.open("r+b") as file:
        file.seek(32769)
        file.write(b"CD001")
    assert dangers(recorded(path).concerns)


def test_equal_images_are_judged_once(tmp_path: Path) -> None:
    recorder = Recorder(str(tmp_path))
    qemu.create(tmp_path / "base", MIB)
    records = []
    for name in ("a", "b"):
        qemu.run(
            "qemu-img", "create", "-f", "qcow2", "-b", "/srv/base", "-F", "raw", "-u",
            tmp_path / name, "1M",
        )  # fmt: skip
        fd = os.open(tmp_path / name, OPEN_FLAGS)
        records.append(recorder.of_file(name, fd, os.fstat(fd)))
        os.close(fd)
    assert records[0].concerns
    assert records[0].concerns is records[1].concerns
