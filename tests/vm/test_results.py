"""What is told of a run: also of tests that never came to run."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.vm import results
from tests.vm.batches import Batch
from tests.vm.run import clear

REPORT = """<?xml version="1.0"?>
<testsuites><testsuite name="pytest">
<testcase classname="tests.a" name="good"/>
<testcase classname="tests.a" name="bad"><failure message="no">text</failure></testcase>
<testcase classname="tests.a" name="broken"><error message="no">text</error></testcase>
<testcase classname="tests.a" name="left out"><skipped type="pytest.skip" message="why"/></testcase>
<testcase classname="tests.a" name="known"><skipped type="pytest.xfail" message="why"/></testcase>
</testsuite></testsuites>
"""


def leave(out: Path, name: str, status: str, report: str | None) -> Batch:
    (out / f"{name}.status").write_text(f"{status} 12\n")
    if report is not None:
        (out / f"{name}.xml").write_text(report)
    return Batch(name, tuple(f"tests/a.py::{number}" for number in range(5)))


def test_outcomes(tmp_path: Path) -> None:
    outcome = results.read([leave(tmp_path, "01", "1", REPORT)], tmp_path)
    assert outcome.passed == 2
    assert outcome.failed == ["tests.a::bad", "tests.a::broken"]
    assert outcome.skipped == ["tests.a::left out: why"]
    assert outcome.lost == []
    assert outcome.times == {"01": 12}
    assert not outcome.good
    assert outcome.lines()[-1] == "in the guest: 2 passed, 2 failed, 1 skipped"


def test_a_batch_that_was_killed_is_lost(tmp_path: Path) -> None:
    outcome = results.read([leave(tmp_path, "01", "143", None)], tmp_path)
    assert len(outcome.lost) == 5
    assert not outcome.good
    assert "NOT RUN tests/a.py::0" in outcome.lines()


def test_a_batch_that_ended_early(tmp_path: Path) -> None:
    report = REPORT.replace('<testcase classname="tests.a" name="good"/>', "")
    outcome = results.read([leave(tmp_path, "01", "2", report)], tmp_path)
    assert outcome.lost == ["01: 1 tests"]
    assert "01: pytest ended with status 2" in outcome.failed


def test_nothing_is_not_good(tmp_path: Path) -> None:
    assert not results.read([], tmp_path).good


def test_one_file_of_all(tmp_path: Path) -> None:
    plan = [leave(tmp_path, name, "1", REPORT) for name in ("01", "02")]
    plan.append(leave(tmp_path, "03", "143", None))
    results.merge(plan, tmp_path)
    assert len(list(ET.parse(tmp_path / "junit.xml").iter("testcase"))) == 10


def test_only_results_are_cleared(tmp_path: Path) -> None:
    precious = tmp_path / "checkout"
    precious.mkdir()
    (precious / "file").touch()
    with pytest.raises(SystemExit, match="left alone"):
        clear(precious)
    assert (precious / "file").exists()
    (precious / "job").touch()
    clear(precious)
    assert not precious.exists()
    clear(precious)
