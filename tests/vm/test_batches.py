"""What runs in the guest: the selection, the batches, the script for the shell there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernel.features import missing
from tests.vm import batches
from tests.vm.batches import Batch

ROOT = Path(__file__).parent.parent.parent


def test_a_batch_is_a_file_and_the_longest_come_first() -> None:
    found = batches.split(
        ["tests/test_y.py::two", "tests/a/test_x.py::one", "tests/a/test_x.py::three[a::b]"]
    )
    assert found == [
        Batch("02-a-test_x", ("tests/a/test_x.py::one", "tests/a/test_x.py::three[a::b]")),
        Batch("01-test_y", ("tests/test_y.py::two",)),
    ]
    assert found[0].limit > found[1].limit


def test_the_limit_of_a_batch_has_a_limit() -> None:
    assert Batch("many", ("test",) * 1000).limit == Batch("more", ("test",) * 2000).limit


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        ("-k dm -x", "-k dm -x"),
        ("tests/vm -x", "-x"),
        ("tests/vm/test_batches.py::test_collecting -vv", "-vv"),
        ("-k tests", "-k tests"),  # a word, although there is a directory of that name
        ("-k tests tests", "-k tests"),
    ],
)
def test_paths_only_select(arguments: str, kept: str) -> None:
    assert batches.without_paths(arguments.split(), ROOT) == kept.split()


@pytest.mark.parametrize("early", [True, False])
def test_the_script_for_the_guest(tmp_path: Path, early: bool) -> None:
    plan = [Batch("01-one", ("tests/a.py::b[it's]",)), Batch("02-two", ("tests/c.py::d",))]
    batches.write_job(
        plan,
        tmp_path,
        python=Path("/venv/bin/python"),
        root=Path("/a place"),
        arguments=["-k", "a or b", *(["-x"] if early else [])],
        coverage=True,
    )
    assert (tmp_path / "01-one.tests").read_text() == "tests/a.py::b[it's]\n"
    # as guest.sh does, with a `batch` that only tells its arguments, and fails
    script = 'batch() { printf "<%s>" "$@"; false; }; cd() { :; }; touch() { :; }; . "$0"'
    told = subprocess.run(
        ["bash", "-c", script, tmp_path / "job"], capture_output=True, text=True, check=False
    ).stdout
    assert told.startswith("<01-one><180><env><COVERAGE_FILE=/out/.coverage.01-one><")
    assert "<-k><a or b>" in told
    assert ("<02-two>" in told) is not early


def test_collecting(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "@pytest.mark.kernel('loop')\n"
        "def test_one(): pass\n"
        "@pytest.mark.kernel('loop')\n"
        "def test_two(): pass\n"
        "def test_three(): pass\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = kernel: test\n")
    arguments = ("-k", "one or three", "-c", str(tmp_path / "pytest.ini"), str(tmp_path))
    found = batches.collect(Path(sys.executable), ROOT, arguments, tmp_path / "ids")
    assert isinstance(found, list)
    assert [test.rpartition("::")[2] for test in found] == ["test_one"]


def test_collecting_what_this_machine_lacks(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "@pytest.mark.kernel('disks')\n"
        "def test_one(): pass\n"
        "@pytest.mark.kernel('parted')\n"
        "def test_two(): pass\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = kernel: test\n")
    arguments = ("-c", str(tmp_path / "pytest.ini"), str(tmp_path))
    found = batches.collect(Path(sys.executable), ROOT, arguments, tmp_path / "ids", lacking=True)
    assert isinstance(found, list)
    here = [] if missing("parted") is None else ["test_two"]
    assert [test.rpartition("::")[2] for test in found] == ["test_one", *here]


def test_collecting_tells_why_it_cannot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("tests/vm/test_nowhere.py",)
    assert batches.collect(Path(sys.executable), ROOT, arguments, tmp_path / "ids") == 4
    assert "test_nowhere.py" in capsys.readouterr().out
