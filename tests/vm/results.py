"""What came back from the guest: the outcome of each test, from the files in junit's format."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.vm.batches import Batch


@dataclass(slots=True)
class Results:
    """The outcomes of all batches; *lost* are the tests that were to run and have none."""

    passed: int = 0
    failed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    #: what each batch took, in seconds
    times: dict[str, int] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        """Whether all passed."""
        return not self.failed and not self.lost and not self.skipped and self.passed > 0

    def lines(self) -> list[str]:
        """Return the summary, for people."""
        told = [f"  {name}: {seconds} s" for name, seconds in self.times.items()]
        for word, tests in (
            ("SKIPPED", self.skipped),
            ("NOT RUN", self.lost),
            ("FAILED", self.failed),
        ):
            told += [f"{word} {test}" for test in tests]
        counts = f"{self.passed} passed, {len(self.failed)} failed, {len(self.skipped)} skipped"
        if self.lost:
            counts += f", {len(self.lost)} not run"
        return [*told, f"in the guest: {counts}"]


def read(batches: Sequence[Batch], out: Path) -> Results:
    """Read what the batches have left in *out*."""
    results = Results()
    for batch in batches:
        _read_batch(batch, out, results)
    return results


def _read_batch(batch: Batch, out: Path, results: Results) -> None:
    status = _words(out / f"{batch.name}.status")
    if len(status) == 2:
        results.times[batch.name] = int(status[1])
    try:
        root = ET.parse(out / f"{batch.name}.xml").getroot()
    except (OSError, ET.ParseError):
        results.lost += batch.tests
        return
    cases = {_case_name(case): case for case in root.iter("testcase")}
    for name, case in cases.items():
        _count(name, case, results)
    missing = len(batch.tests) - len(cases)
    if missing > 0:
        results.lost.append(f"{batch.name}: {missing} tests")
    if status[:1] not in (["0"], ["1"]):
        ended = status[0] if status else "none"
        results.failed.append(f"{batch.name}: pytest ended with status {ended}")


def _words(file: Path) -> list[str]:
    return file.read_text().split() if file.exists() else []


def _case_name(case: ET.Element) -> str:
    return f"{case.get('classname')}::{case.get('name')}"


def _count(name: str, case: ET.Element, results: Results) -> None:
    if case.find("failure") is not None or case.find("error") is not None:
        results.failed.append(name)
        return
    skipped = case.find("skipped")
    if skipped is not None and skipped.get("type") != "pytest.xfail":
        results.skipped.append(f"{name}: {skipped.get('message')}")
    else:
        results.passed += 1


def merge(batches: Sequence[Batch], out: Path) -> None:
    """Write one file, junit.xml, of those of the batches."""
    suites = ET.Element("testsuites")
    for batch in batches:
        try:
            suites.extend(ET.parse(out / f"{batch.name}.xml").getroot())
        except (OSError, ET.ParseError):
            continue  # the summary tells of it
    ET.ElementTree(suites).write(out / "junit.xml", encoding="utf-8", xml_declaration=True)
