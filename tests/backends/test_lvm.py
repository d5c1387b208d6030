"""What of LVM needs no kernel: its reports, its names, what it says when it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged.backend import CloneOptions, Host
from storaged.backends import _lvmmake, _lvmplan, _lvmtool
from storaged.backends import _lvmnames as names
from storaged.backends._blockclone import HEADER_ROOM
from storaged.backends._lvmplan import Kind, Wish
from storaged.backends._lvmrecord import group_problems, record, records
from storaged.backends._lvmreport import Group, LogicalVolume, parse
from storaged.backends.logical import Logical
from storaged.errors import (
    Cancelled,
    CommandFailed,
    CommandTimeout,
    ConfigUnsupported,
    InternalError,
    InvalidArgument,
    MissingProgram,
    NameTaken,
    NoSpace,
    OperationUnsupported,
    StorageError,
    Timeout,
    Unsupported,
    VolumeBusy,
)
from storaged.job import Job
from storaged.model import (
    BackingStore,
    Encryption,
    PoolDef,
    PoolType,
    SourceExtent,
    VolumeDef,
)
from tests.doubles import eventually

EXTENT = 4 << 20
HEAD = {
    "vg_name": "vg",
    "vg_uuid": "u",
    "vg_size": str(100 * EXTENT),
    "vg_free": str(10 * EXTENT),
    "vg_extent_size": str(EXTENT),
}


def row(name: str, attributes: str = "-wi-a-----", **more: str) -> dict[str, str]:
    return {
        "lv_uuid": f"uuid-{name}",
        "lv_name": name,
        "lv_attr": attributes,
        "lv_size": str(EXTENT),
        **more,
    }


def segment(name: str, devices: str = "/dev/sda(0)", **more: str) -> dict[str, str]:
    basic = {"segtype": "linear", "stripes": "1", "seg_size": str(EXTENT)}
    return {"lv_uuid": f"uuid-{name}", "devices": devices, **basic, **more}


def group(
    *rows: Any, segments: tuple[Any, ...] = (), devices: tuple[Any, ...] = (), said: str = ""
) -> Group:
    return parse(HEAD, {"lv": rows, "seg": segments, "pv": devices}, said)


def volume(name: str = "lv", **values: Any) -> LogicalVolume:
    given: dict[str, Any] = {"attributes": "-wi-a-----", "size": EXTENT, **values}
    return LogicalVolume(name, f"uuid-{name}", **given)


def holding(*found: LogicalVolume) -> Group:
    return replace(group(), volumes={one.name: one for one in found})


# Reports


def test_extents_are_as_libvirt_shows_them() -> None:
    found = group(
        row("two"),
        row("stripes"),
        row("image"),
        segments=(
            segment("two", "/dev/sda(3)"),
            segment("stripes", "/dev/sda(9),/dev/sdb(1)", segtype="striped", stripes="2"),
            segment("two", "/dev/sdb(7)", seg_size=str(2 * EXTENT)),
            segment("image", "image_rimage_0(0),image_rimage_1(0)", segtype="raid1", stripes="2"),
        ),
    )
    listed = {name: one.extra or {} for name, one in records(found, "/dev/vg").items()}
    assert listed["two"]["extents"] == (
        SourceExtent("/dev/sda", 3 * EXTENT, 4 * EXTENT),
        SourceExtent("/dev/sdb", 7 * EXTENT, 9 * EXTENT),
    )
    assert listed["stripes"]["extents"] == (
        SourceExtent("/dev/sda", 9 * EXTENT, 10 * EXTENT),
        SourceExtent("/dev/sdb", EXTENT, 2 * EXTENT),
    )
    assert listed["image"]["extents"] == (
        SourceExtent("image_rimage_0", 0, EXTENT),
        SourceExtent("image_rimage_1", 0, EXTENT),
    )


def test_a_device_may_have_brackets_and_commas_in_its_name() -> None:
    found = group(row("lv"), segments=(segment("lv", "/dev/a(1),b(2)(3)"),))
    assert found.volumes["lv"].segments[0].devices == (("/dev/a", 1), ("b(2)", 3))


def test_an_odd_row_costs_that_row_alone() -> None:
    found = group(
        row("good"),
        {"lv_name": "bare"},
        row("short", "-wi"),
        row("huge", lv_size="much"),
        "no row",
        None,
        segments=(segment("good"), segment("good", stripes="x"), {"devices": 3}, 7),
    )
    assert list(found.volumes) == ["good"]
    assert len(found.odd) == 8
    assert any("'short'" in text for text in found.odd)
    assert group_problems(found) == found.odd


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["lv_uuid", "lv_name", "lv_attr", "lv_size", "origin", "lv_tags"]),
        st.one_of(st.text(max_size=12), st.none(), st.integers()),
    )
)
def test_no_row_stops_a_report(odd: dict[str, Any]) -> None:
    found = group(row("good"), odd)
    assert "good" in found.volumes
    assert records(found, "/dev/vg")["good"].capacity == EXTENT


def test_what_is_not_active_or_not_whole_is_not_listed() -> None:
    mark = names.building_mark("host", 3)
    found = group(
        row("on"), row("off", "-wi-------"), row("made", lv_tags=mark), row("tagged", lv_tags="a,b")
    )
    assert sorted(records(found, "/dev/vg")) == ["on", "tagged"]


@pytest.mark.parametrize(
    ("one", "capacity", "allocation", "kind"),
    [
        (volume(attributes="swi-a-s---", origin="o", origin_size=8 * EXTENT), 8, 1, "raw"),
        (volume(attributes="Vwi-a-tz--", size=8 * EXTENT, pool="p", data=25.0), 8, 2, "raw"),
        (volume(attributes="twi-aotz--", size=4 * EXTENT, data=50.0), 4, 4, "thin-pool"),
        (volume(attributes="owi-a-s---", size=2 * EXTENT, origin_size=2 * EXTENT), 2, 2, "raw"),
    ],
)
def test_sizes(one: LogicalVolume, capacity: int, allocation: int, kind: str) -> None:
    made = record(one, holding(one), "/dev/vg")
    assert (made.capacity, made.allocation) == (capacity * EXTENT, allocation * EXTENT)
    assert made.format == kind
    assert (made.key, made.path, made.type) == ("uuid-lv", "/dev/vg/lv", "block")


def test_a_hidden_origin_is_no_backing_store() -> None:
    found = group(row("sparse", "swi-a-s---", origin="[sparse_vorigin]", origin_size="8388608"))
    made = records(found, "/dev/vg")["sparse"]
    assert "backing" not in (made.extra or {})
    assert made.capacity == 8 << 20


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (volume(attributes="twi-aotz--", data=80.0, metadata=10.0), "80 % of its space for data"),
        (volume(attributes="twi-aotz--", data=8.0, metadata=91.5), "91.5 % of its space for meta"),
        (volume(attributes="swi-a-s---", data=99.0), "99 % of its space for changes"),
        (volume(attributes="swi-I-s---"), "it is invalid"),
        (volume(attributes="-wi-s-----"), "it is suspended"),
        (volume(attributes="-wi-X-----"), "device-mapper does not tell"),
        (volume(attributes="-wi-a---p-"), "physical volumes that it lies on are missing"),
        (volume(attributes="rwi-a-r---", health="mismatches exist"), "its copies differ"),
        (volume(attributes="-wi-Q-----"), "a state of its own: 'Q'"),
        (volume(attributes="twi-aotz--", health="something new"), "something new"),
    ],
)
def test_what_is_wrong_is_told(one: LogicalVolume, said: str) -> None:
    assert said in (record(one, holding(one), "/dev/vg").problem or "")


@pytest.mark.parametrize(
    "one",
    [
        volume(attributes="twi-aotz--", data=79.99, metadata=12.0),
        volume(attributes="Vwi-a-tz--", pool="p", data=99.0),  # its pool is what fills up
        volume(),
    ],
)
def test_nothing_is_wrong(one: LogicalVolume) -> None:
    assert record(one, holding(one), "/dev/vg").problem is None


def test_missing_devices_are_named_by_where_they_were() -> None:
    said = "  WARNING: VG vg is missing PV abc-1 (last written to /dev/sdz).\n"
    there = {"pv_name": "/dev/sda", "pv_uuid": "x", "pv_missing": ""}
    gone = {"pv_name": "[unknown]", "pv_uuid": "abc-1", "pv_missing": "missing"}
    found = group(devices=(there, gone), said=said)
    assert found.devices == ("/dev/sda",)
    assert group_problems(found) == (
        "volume group 'vg': a physical volume is missing: abc-1 (it was /dev/sdz)",
    )


def test_what_is_lost_with_a_volume() -> None:
    base = volume("base")
    linked = volume("linked", attributes="Vwi-a-tz--", pool="pool", origin="base")
    above = volume("above", attributes="Vwi-a-tz--", pool="other", origin="linked")
    found = holding(THICK, SNAP, POOL, THIN, base, linked, above)
    assert set(found.lost_with("base")) == {"base", "linked", "above"}
    assert set(found.lost_with("thick")) == {"thick", "snap"}
    assert set(found.lost_with("pool")) == {"pool", "thin", "linked", "above"}
    assert found.lost_with("thin") == ("thin",)


def test_the_room_of_a_thin_pool() -> None:
    found = holding(replace(POOL, data=25.0), THICK)
    assert found.free_in("pool") == 6 * EXTENT
    assert found.free_in("thick") is found.free_in(None) is found.free_in("none") is None


def test_five_thousand_volumes_are_parsed_quickly() -> None:
    count = 5000
    text = json.dumps(
        {
            "report": [
                {
                    "vg": [HEAD],
                    "pv": [],
                    "lv": [row(f"lv{n}") for n in range(count)],
                    "seg": [segment(f"lv{n}", f"/dev/sda({n})") for n in range(count)],
                }
            ]
        }
    )
    begun = time.process_time()
    found = records(parse(HEAD, json.loads(text)["report"][0], ""), "/dev/vg")
    assert time.process_time() - begun < 2  # 0.1 s where nothing else runs
    assert len(found) == count


# Names


@pytest.mark.parametrize("name", ["a", "web-1.img", "A_b+c", "_x", ".hidden", "1", "x" * 127])
def test_names_that_lvm_takes(name: str) -> None:
    names.check_name(name)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "empty"),
        ("..", "only dots"),
        ("-x", "hyphen"),
        ("a b", "' '"),
        ("a/b", "'/'"),
        ("ä", r"\\xe4"),
        ("a\n", r"\\n"),
        ("x" * 128, "128 characters"),
        ("snapshot1", "begin with 'snapshot'"),
        ("pvmove0", "begin with 'pvmove'"),
        ("my_tdata", "'_tdata'"),
        ("x_mlog_y", "'_mlog'"),
    ],
)
def test_names_that_lvm_refuses(name: str, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        names.check_name(name)


def test_mapped_names() -> None:
    assert names.mapped_name("my-vg", "a-b.c") == "my--vg-a--b.c"
    assert names.is_mapped("my--vg-a--b.c", "my-vg")
    assert not names.is_mapped("my--vg-a", "my")
    assert not names.is_mapped("my--vg", "my-vg")
    assert not names.is_mapped("my-", "my")


@settings(max_examples=100, deadline=None)
@given(*[st.text("ab-", min_size=1, max_size=6).filter(lambda t: t[0] != "-") for _ in range(3)])
def test_a_mapped_name_belongs_to_its_group_alone(one: str, other: str, name: str) -> None:
    assert names.is_mapped(names.mapped_name(one, name), other) == (one == other)


def test_marks_of_the_living_and_the_dead() -> None:
    ours = names.building_mark("host", 7)
    assert names.is_building((ours,))
    assert not names.is_building(("x", "storaged.buildings"))
    assert not names.is_abandoned((ours,), "host")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    parts = ours.split("/")
    dead = "/".join([*parts[:2], str(ended.pid), *parts[3:]])
    assert names.is_abandoned(("x", dead), "host")
    assert not names.is_abandoned((dead,), "another")
    reused = "/".join([*parts[:3], "1", *parts[4:]])  # the number is a younger process's
    assert names.is_abandoned((reused,), "host")
    assert not names.is_abandoned(
        ("storaged.building/host", "storaged.building/host/x/1/2"), "host"
    )


# Plans


def settled(found: Group, name: str = "new", capacity: int = EXTENT, **more: Any) -> VolumeDef:
    return _lvmplan.settle(VolumeDef(name, capacity, **more), found, "/dev/vg")


def wished(found: Group, **more: Any) -> Wish:
    return _lvmplan.wish(settled(found, **more), found)


THICK = volume("thick", size=4 * EXTENT)
SNAP = volume("snap", attributes="swi-a-s---", origin="thick", origin_size=4 * EXTENT)
POOL = volume("pool", attributes="twi-aotz--", size=8 * EXTENT)
THIN = volume("thin", attributes="Vwi-a-tz--", size=4 * EXTENT, pool="pool")
FULL = holding(THICK, SNAP, POOL, THIN)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"capacity": 5}, Wish(Kind.PLAIN, "new", EXTENT)),
        ({"capacity": EXTENT + 1}, Wish(Kind.PLAIN, "new", 2 * EXTENT)),
        ({"allocation": 0}, Wish(Kind.PLAIN, "new", EXTENT)),
        (
            {"capacity": 9 * EXTENT, "allocation": 1},
            Wish(Kind.SPARSE, "new", 9 * EXTENT, EXTENT),
        ),
        ({"format": "thin-pool"}, Wish(Kind.THIN_POOL, "new", EXTENT)),
        (
            {"backing": BackingStore("/dev/vg/pool"), "capacity": 99 * EXTENT},
            Wish(Kind.THIN, "new", 99 * EXTENT, parent="pool"),
        ),
        (
            {"backing": BackingStore("thick")},
            Wish(Kind.SNAPSHOT, "new", 4 * EXTENT, EXTENT, "thick"),
        ),
        (
            {"backing": BackingStore("vg/thick"), "capacity": 0},
            Wish(Kind.SNAPSHOT, "new", 4 * EXTENT, 4 * EXTENT, "thick"),
        ),
        (
            {"backing": BackingStore("/dev/vg/thick"), "allocation": 3 * EXTENT},
            Wish(Kind.SNAPSHOT, "new", 4 * EXTENT, 3 * EXTENT, "thick"),
        ),
        (
            {"backing": BackingStore("/dev/vg/thin"), "capacity": 0},
            Wish(Kind.THIN_SNAPSHOT, "new", 4 * EXTENT, parent="thin"),
        ),
        (
            {"encryption": Encryption("luks")},
            Wish(Kind.PLAIN, "new", 2 * EXTENT),
        ),
        # what is allocated in full, or encrypted, fits into the extents that it is rounded up to
        ({"capacity": 5 << 20, "allocation": 5 << 20}, Wish(Kind.PLAIN, "new", 2 * EXTENT)),
        (
            {"capacity": 5 << 20, "encryption": Encryption("luks")},
            Wish(Kind.PLAIN, "new", 2 * EXTENT),
        ),
        (
            {"capacity": 5 << 20, "allocation": 5 << 20, "encryption": Encryption("luks")},
            Wish(Kind.PLAIN, "new", 2 * EXTENT),
        ),
        (
            {"capacity": 2 * EXTENT - HEADER_ROOM, "encryption": Encryption("luks")},
            Wish(Kind.PLAIN, "new", 2 * EXTENT),
        ),
    ],
)
def test_what_is_made(more: dict[str, Any], expected: Wish) -> None:
    assert wished(FULL, **more) == expected


@given(st.integers(1, 1 << 41))
@settings(max_examples=100, deadline=None)
def test_a_sparse_copy_has_room_for_its_data(space: int) -> None:
    """LVM keeps a table beside them."""
    sparse = VolumeDef("new", 1 << 42, allocation=space)
    made = _lvmplan.wish(sparse, FULL, filled=True)
    assert made.kind is Kind.SPARSE
    assert made.room >= space
    assert made.space - _lvmplan.wish(sparse, FULL).space <= space // 200 + 2 * EXTENT


@pytest.mark.parametrize(
    ("more", "error", "text"),
    [
        ({"name": "thick"}, NameTaken, "already exists"),
        ({"name": "a b"}, InvalidArgument, "' '"),
        ({"capacity": 0}, Unsupported, "volume capacity required"),
        ({"format": "qcow2"}, ConfigUnsupported, "no format 'qcow2'"),
        ({"backing": BackingStore("/dev/vg/snap")}, OperationUnsupported, "snapshots of snapshots"),
        ({"backing": BackingStore("/dev/other/x")}, ConfigUnsupported, "not in volume group 'vg'"),
        ({"backing": BackingStore("/dev/vg/\0")}, ConfigUnsupported, "not in volume group"),
        ({"backing": BackingStore("/dev/vg/thin")}, InvalidArgument, "smaller than its origin"),
        (
            {"backing": BackingStore("pool"), "format": "thin-pool"},
            ConfigUnsupported,
            "no backing volume",
        ),
        (
            {"backing": BackingStore("thick"), "encryption": Encryption("luks")},
            ConfigUnsupported,
            "cannot be encrypted",
        ),
        ({"encryption": Encryption("qcow")}, ConfigUnsupported, "'qcow' is not supported"),
    ],
)
def test_what_is_not_made(more: dict[str, Any], error: type[StorageError], text: str) -> None:
    with pytest.raises(error, match=text):
        settled(FULL, **more)


def test_a_clone_with_other_bytes_shares_nothing() -> None:
    """A snapshot of an encrypted volume is encrypted as that is."""
    source = records(FULL, "/dev/vg")["thin"]
    clone = settled(FULL)
    assert _lvmmake._shareable(clone, source, FULL, CloneOptions())
    assert not _lvmmake._shareable(clone, source, FULL, CloneOptions(source_secret=b"x"))
    locked = settled(FULL, encryption=Encryption("luks"))
    assert not _lvmmake._shareable(locked, source, FULL, CloneOptions(secret=b"x"))


def test_a_name_of_an_inactive_volume_is_taken_too() -> None:
    with pytest.raises(NameTaken) as caught:
        settled(holding(volume("new", attributes="-wi-------")))
    assert "lvchange -ay vg/new" in (caught.value.advice or "")


# What LVM says


@pytest.fixture
def lvm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in LVM's place: the test writes what it does."""
    program = tmp_path / "lvm"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return program


def act(program: Path, script: str) -> None:
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


@pytest.mark.parametrize(
    ("said", "error", "text"),
    [
        (
            'Volume group "vg" has insufficient free space (1 extents): 25 required.',
            NoSpace,
            "25 required",
        ),
        ("Insufficient suitable allocatable extents for logical volume x", NoSpace, "suitable"),
        ("Logical volume vg/x contains a filesystem in use.", VolumeBusy, "filesystem in use"),
        ("Logical volume vg/x is used by another device.", VolumeBusy, "another device"),
        ("Snapshots of snapshots are not supported.", OperationUnsupported, "of snapshots"),
        (
            "/usr/sbin/thin_check: execvp failed: No such file or directory",
            MissingProgram,
            "thin_check is not installed",
        ),
        ("Something else.", CommandFailed, "Something else"),
    ],
)
def test_refusals_have_a_meaning(
    lvm: Path, said: str, error: type[StorageError], text: str
) -> None:
    act(lvm, f"echo '  WARNING: noise' >&2; echo '  {said}' >&2; exit 5")
    with pytest.raises(error, match=text):
        _lvmtool.change(("lvcreate", "x"))


@pytest.mark.parametrize(
    "printed", ["Kein Bericht", "{", '{"report": 3}', "[1]", '{"report": [1]}']
)
def test_garbage_is_an_error_that_shows_it(lvm: Path, printed: str) -> None:
    act(lvm, f"echo '{printed}'")
    with pytest.raises(InternalError, match="is no report: b'") as caught:
        _lvmtool.ask(("lvs",))
    assert printed[:5] in caught.value.detail


def test_lvm_is_asked_in_one_language_and_units(lvm: Path, tmp_path: Path) -> None:
    act(lvm, f'echo "$LC_ALL $@" > {tmp_path}/asked; echo \'{{"report": []}}\'')
    sections, _ = _lvmtool.ask(("pvs", "-o", "pv_name"))
    assert sections == {}
    asked = (tmp_path / "asked").read_text()
    assert asked.startswith("C.UTF-8 pvs ")
    assert "--reportformat json --units b --nosuffix -o pv_name" in asked


def test_a_report_that_is_not_complete_is_better_than_none(lvm: Path) -> None:
    """One broken group makes a question about all groups fail, after the others were told of."""
    found = '{"report": [{"pv": [{"pv_name": "/dev/sda"}]}]}'
    act(lvm, f"echo '{found}'; echo '  VG other is broken.' >&2; exit 5")
    sections, output = _lvmtool.ask(("pvs",))
    assert sections == {"pv": [{"pv_name": "/dev/sda"}]}
    assert _lvmtool.reason(output.stderr) == "VG other is broken."
    for printed, status in (('{"report": [{"pv": []}]}', 5), ("{", 5), (found, 3)):
        act(lvm, f"echo '{printed}'; echo '  It is broken.' >&2; exit {status}")
        with pytest.raises(CommandFailed, match="It is broken"):
            _lvmtool.ask(("pvs",))


def test_a_tool_that_hangs_is_not_waited_for_without_end(
    lvm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = tmp_path / "done"
    act(lvm, f"sleep 1; touch {done}")
    with monkeypatch.context() as patched:
        patched.setattr(_lvmtool, "ASKING", 0.2)
        with pytest.raises(CommandTimeout, match="it took more than"):
            _lvmtool.ask(("pvs",))
    job: Job[None] = Job("refresh", "vg")
    threading.Timer(0.2, job.cancel).start()
    with pytest.raises(Cancelled):
        _lvmtool.ask(("pvs",), job)
    time.sleep(1.2)
    assert not done.exists()  # what only asks is killed
    with pytest.raises(CommandTimeout, match="and goes on as process"):
        _lvmtool.change(("lvcreate", "x"), timeout=0.2)
    eventually(done.exists)  # what changes the group is not


class Recorded:
    """LVM's answers about a group, and what it was told to do."""

    def __init__(self, program: Path) -> None:
        self.directory = program.parent
        self._program = program

    def answer(self, *rows: dict[str, str], refuse: str = "none") -> None:
        """Report these volumes from now on, and refuse one command."""
        report = {"report": [{"vg": [HEAD], "pv": [], "lv": list(rows), "seg": []}]}
        (self.directory / "report").write_text(json.dumps(report))
        act(
            self._program,
            f"cd {self.directory}; echo $1 >> told; case $1 in fullreport) cat report;;"
            f" {refuse}) echo '  Check of pool vg/tp failed.' >&2; exit 5;; esac",
        )

    def told(self) -> list[str]:
        """The commands but for questions, since this was asked last."""
        file = self.directory / "told"
        commands = file.read_text().split() if file.exists() else []
        file.unlink(missing_ok=True)
        return [command for command in commands if command != "fullreport"]

    def pool(self) -> Logical:
        return Logical(PoolDef(PoolType.LOGICAL, "vg"), Host(id="testhost"))


@pytest.fixture
def recorded(lvm: Path) -> Recorded:
    return Recorded(lvm)


def test_what_cannot_be_activated_keeps_nothing_from_the_rest(recorded: Recorded) -> None:
    pool = recorded.pool()
    asleep = row("thin", "Vwi---tz--", pool_lv="tp")
    skipped = row("skipped", "Vwi---tz-k", pool_lv="tp")
    recorded.answer(row("well"), asleep, skipped, refuse="vgchange")
    pool.start(Job("start", "vg"))
    seen = pool.refresh({}, Job("refresh", "vg"))
    assert seen.volumes.keys() == {"well"}
    assert seen.problems == (
        "logical volume 'thin' could not be activated: Check of pool vg/tp failed.",
    )
    recorded.answer(row("well"), {**asleep, "lv_attr": "Vwi-a-tz--"})
    assert pool.refresh({}, Job("refresh", "vg")).problems == ()
    recorded.answer(asleep, refuse="vgchange")
    with pytest.raises(CommandFailed, match="Check of pool"):
        pool.start(Job("start", "vg"))


def test_nothing_is_removed_if_a_part_of_it_is_in_use(recorded: Recorded) -> None:
    pool = recorded.pool()
    recorded.answer(
        row("tp", "twi-aotz--"),
        row("idle", "Vwi-a-tz--", pool_lv="tp"),
        row("busy", "Vwi-aotz--", pool_lv="tp"),
        row("base", "-wi-a-----"),
        row("linked", "Vwi-aotz--", pool_lv="tp", origin="base"),
    )
    found = pool.refresh({}, Job("refresh", "vg")).volumes
    for name, user in (("tp", "busy"), ("base", "linked")):
        with pytest.raises(VolumeBusy, match=f"'{user}' is in use"):
            pool.delete(found[name], Job("delete", "vg"), force=True)
    assert recorded.told() == []
    pool.delete(found["idle"], Job("delete", "vg"))
    assert recorded.told() == ["lvremove"]


LOCKED = "echo '  {path}: flock failed: Resource temporarily unavailable' >&2; exit 5"


def test_a_lock_that_is_given_back_is_waited_for(lvm: Path, tmp_path: Path) -> None:
    act(
        lvm,
        f"if [ -e {tmp_path}/tried ]; then exit 0; fi; touch {tmp_path}/tried;"
        + LOCKED.format(path="/run/lock/x"),
    )
    _lvmtool.change(("lvremove", "x"))


def test_who_holds_the_lock_is_named(
    lvm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_lvmtool, "LOCK_PATIENCE", 0.1)
    lock = tmp_path / "V_vg"
    act(lvm, LOCKED.format(path=lock))
    holder = subprocess.Popen(
        [sys.executable, "-c", "import fcntl,sys; f=open(sys.argv[1], 'w'); fcntl.flock(f, 2);"
         " print(flush=True); sys.stdin.read()", str(lock)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(Timeout, match=rf"{lock}' is held by python.* \(process {holder.pid}\)"):
            _lvmtool.change(("lvcreate", "x"))
        holder.kill()


def test_waiting_for_a_lock_is_ended_by_a_cancel(lvm: Path) -> None:
    act(lvm, LOCKED.format(path="/run/lock/x"))
    job: Job[None] = Job("create", "vg")
    job.cancel()
    with pytest.raises(Cancelled):
        _lvmtool.change(("lvcreate", "x"), job)
