"""Storagectl over a daemon that runs: jobs, events, long lists, and what it costs."""

from __future__ import annotations

import json
import os
import select
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cli.conftest import Ctl, beside
from tests.cli.test_many import median
from tests.cli.test_terminal import PATIENCE, fill, running, wait_for
from tests.daemon.running import Daemon, storaged_daemon

#: each test starts programs; together they take most of a minute
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with storaged_daemon(tmp_path_factory.mktemp("served")) as running:
        yield running


@pytest.fixture
def served(daemon: Daemon, tmp_path: Path, compiled: Path) -> Iterator[Ctl]:
    """Storagectl beside a daemon, with one running pool ``t``."""
    with beside(daemon.root, tmp_path, compiled) as ctl:
        yield ctl


def test_the_daemon_does_the_work(daemon: Daemon, served: Ctl):
    by_uri = replace(served, uri=daemon.uri())
    assert by_uri.json("pool", "info", "t")["uuid"] == served.json("pool", "info", "t")["uuid"]
    said = served.error("--embedded", "vol", "create-as", "t", "a", "1M", status=6)
    assert "is in use by process" in said
    assert served.json("--embedded", "vol", "list", "t") == []  # reading takes no lock


def test_an_uri_in_the_environment(daemon: Daemon, served: Ctl, tmp_path: Path):
    argv = [*served.argv()[:3], "pool", "list", "--name"]
    here = subprocess.run(
        argv, env=served.environment(STORAGED_URI=daemon.uri()), capture_output=True, check=True
    )
    assert here.stdout == b"t\n"
    typed = served.run(
        *("pool", "list", "--name"), env={"STORAGED_URI": f"storage:///system?socket={tmp_path}/x"}
    )
    assert typed.stdout == b"t\n"  # --root stands on the command line
    served.error("-c", daemon.uri(), "pool", "list", status=2)


def wiping(served: Ctl) -> tuple[str, ...]:
    """Return the words of a command that takes a while."""
    served.out("vol", "create-as", "t", "a", "1536M")
    fill(served.images / "a", 1536)
    return "vol", "wipe", "t/a", "--algorithm", "gutmann"


@pytest.mark.slow
def test_jobs_are_listed_and_cancelled(served: Ctl):
    assert served.json("job", "list") == []
    with running(served, *wiping(served)) as wipe:
        wait_for(lambda: served.json("job", "list") != [])
        [job] = served.json("job", "list")
        assert (job["kind"], job["pool"], job["volume"], job["state"]) == (
            "wipe", "t", "a", "running",
        )  # fmt: skip
        assert _offered(served, "job", "cancel", "") == [str(job["id"])]
        lines = served.out("job", "list").splitlines()
        assert lines[0].split() == ["Id", "Kind", "Pool", "Volume", "Done", "Elapsed"]
        assert lines[1].split()[:4] == [str(job["id"]), "wipe", "t", "a"]
        assert (
            served.out("job", "cancel", str(job["id"])) == f"job {job['id']} (wipe a) cancelled\n"
        )
        _, said = wipe.communicate(timeout=PATIENCE)
    assert wipe.returncode == 130
    assert said.endswith(b"error: operation aborted: wipe was cancelled\n")
    assert served.json("job", "list") == []
    served.error("job", "cancel", str(job["id"]), status=8)


def _offered(served: Ctl, *words: str) -> list[str]:
    """Return what bash would offer for the last word."""
    asked = {
        "_STORAGECTL_COMPLETE": "bash_complete",
        "COMP_WORDS": shlex.join(["storagectl", *words]),
        "COMP_CWORD": str(len(words)),
        "STORAGED_ROOT": str(served.root),
    }
    done = subprocess.run(
        served.argv()[:3], env=served.environment(**asked), capture_output=True, check=True
    )
    return [line.partition(",")[2] for line in done.stdout.decode().splitlines()]


@pytest.mark.slow
def test_progress_and_the_job_of_another_command(served: Ctl):
    with running(served, *wiping(served), "--json") as wipe:
        assert wipe.stderr is not None
        told = json.loads(wipe.stderr.readline())["progress"]
        assert (told["kind"], told["volume"]) == ("wipe", "a")
        assert 0 < told["done"] < told["total"]
        number = str(told["job"])
        with running(served, "job", "watch", number, "--json") as watch:
            assert watch.stderr is not None
            seen = json.loads(watch.stderr.readline())["progress"]
            assert seen["done"] > told["done"]
            watch.send_signal(signal.SIGINT)
            assert watch.wait(PATIENCE) == 130
        assert [job["id"] for job in served.json("job", "list")] == [told["job"]]
        with running(served, "job", "watch", number, "--json") as watch:
            assert watch.stderr is not None
            watch.stderr.readline()
            served.run("job", "cancel", number)
            _, said = watch.communicate(timeout=PATIENCE)
        assert watch.returncode == 130, said


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_command_that_ends_ends_its_work(served: Ctl, how: int):
    with running(served, *wiping(served)) as wipe:
        wait_for(lambda: served.json("job", "list") != [])
        wipe.send_signal(how)
        _, said = wipe.communicate(timeout=PATIENCE)
    if how == signal.SIGINT:
        assert wipe.returncode == 130
        assert b"cancelling wipe a; Ctrl-C again leaves at once\n" in said
    wait_for(lambda: served.json("job", "list") == [])


def test_events_as_they_come(served: Ctl):
    with running(served, "event", "--loop", "--json", "--pool", "t") as event:
        assert event.stdout is not None
        wait_for(lambda: refreshed(served, event))
        served.run("pool", "stop", "t")
        served.run("pool", "start", "t")
        told = [json.loads(event.stdout.readline()) for _ in range(3)]
        while told[-1]["event"] == "refreshed":
            told.append(json.loads(event.stdout.readline()))
        event.send_signal(signal.SIGINT)
        assert event.wait(PATIENCE) == 130
    words = [each["event"] for each in told if each["event"] != "refreshed"]
    assert ["stopped", "started"][: len(words)] == words
    assert told[0]["event"] == "refreshed"
    assert told[0]["pool"]["name"] == "t"


def refreshed(ctl: Ctl, process: subprocess.Popen[bytes]) -> bool:
    """Refresh the pool, and tell whether the process has printed something by now."""
    ctl.run("pool", "refresh", "t")
    assert process.stdout is not None
    return bool(select.select([process.stdout], [], [], 0.2)[0])


def test_one_event(served: Ctl):
    with running(served, "event", "--timestamp") as event:
        wait_for(lambda: refreshed(served, event))
        said, _ = event.communicate(timeout=PATIENCE)
    assert event.returncode == 0
    assert said.endswith(b" pool t refreshed\n")
    assert said[:2] == b"20"


def test_no_event_in_time(served: Ctl):
    assert served.run("event", "--timeout", "0.1", status=12).stderr == b""
    assert served.out("event", "--timeout", "0.1", "--loop") == ""
    assert served.out("event", "--timeout", "0.1", "--loop", "--pool", "none") == ""


def test_events_need_a_daemon(ctl: Ctl):
    said = ctl.error("event", status=1)
    assert said.startswith(
        "error: operation failed: event needs a daemon, and none answers\nhint: "
    )
    assert f"{ctl.root}/run/libvirt/virtstoraged-sock (No such file or directory)" in said


def test_who_waits_for_events_hears_that_the_daemon_ends(ctl: Ctl, tmp_path: Path):
    with storaged_daemon(ctl.root) as daemon, running(ctl, "event", "--loop") as event:
        other = Ctl(ctl.root, ctl.images, ctl.env)
        other.start_pool()
        wait_for(lambda: refreshed(other, event))
        daemon.stop()
        _, said = event.communicate(timeout=PATIENCE)
    assert event.returncode == 1
    assert said == b"error: operation failed: the daemon has ended\n"


def test_a_broken_file_is_a_warning(ctl: Ctl):
    broken = ctl.root / "etc/libvirt/storage/broken.xml"
    broken.parent.mkdir(parents=True)
    broken.write_text("<pool")
    with storaged_daemon(ctl.root):
        done = ctl.run("pool", "list", "--name")
    assert done.stderr.startswith(b"warning: ")
    assert b"broken.xml" in done.stderr


def test_a_list_loads_no_engine(served: Ctl):
    script = (
        "import sys; from storaged.cli.main import main;"
        f"code = main(['--root', {str(served.root)!r}, 'pool', 'list']);"
        "heavy = {'rich', 'lxml', 'ctypes', 'asyncio', 'pyudev', 'logging', 'storaged.model',"
        " 'storaged.driver', 'storaged.state', 'storaged.backend', 'storaged.service'};"
        "print(code, sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [*served.argv()[:1], "-c", script],
        env=served.environment(),
        capture_output=True,
        check=True,
    )
    assert done.stderr == b"0 []\n"


@pytest.mark.slow
def test_a_list_is_quick(served: Ctl):
    assert median(served, "pool", "list") < 0.45  # 0.15 s is the goal on a quiet machine


@pytest.mark.slow
def test_20_000_volumes(daemon: Daemon, served: Ctl):
    """More than fit in one answer of libvirt's protocol."""
    for number in range(20_000):
        (served.images / f"volume-{number:05}").touch()
    served.run("pool", "refresh", "t")
    listed = served.json("vol", "list", "t")
    assert [volume["name"] for volume in listed] == [f"volume-{n:05}" for n in range(20_000)]
    assert len(served.out("vol", "list", "t").splitlines()) == 20_001


#: Runs storagectl as nobody; Python itself may lie where nobody may not read.
_AS_NOBODY = """
import os, sys, pkgutil
import click.shell_completion, json, grp, storaged.cli, storaged.client, storaged.storage
for package in (storaged.cli, storaged.client):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            __import__(module.name)
from storaged.cli.main import main
os.setegid(65534)
os.seteuid(65534)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_who_may_only_read(compiled: Path):
    with tempfile.TemporaryDirectory() as found:  # those of pytest are for root alone
        top = Path(found)
        top.chmod(0o755)
        ctl = Ctl(top / "root", top / "images", {"PYTHONPYCACHEPREFIX": str(compiled)})
        with storaged_daemon(ctl.root):
            ctl.start_pool()
            ctl.out("vol", "create-as", "t", "a", "1M")
            _only_reads(ctl)


def _only_reads(served: Ctl) -> None:
    def as_nobody(*words: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [*served.argv()[:1], "-c", _AS_NOBODY, "--root", str(served.root), *words],
            env=served.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    assert as_nobody("pool", "list", "--name") == (0, "t\n", "")
    assert as_nobody("vol", "info", "t/a")[0] == 0
    assert as_nobody("event", "--timeout", "0.1")[0] == 12
    status, _, said = as_nobody("pool", "refresh", "t")
    assert status == 7
    assert "Permission denied" in said
    assert "hint: " in said
    assert "storagectl --session" in said
    status, _, said = as_nobody("vol", "download", "t/a", "-")
    assert (status, said) == (
        7,
        "error: operation forbidden: read only access prevents virStorageVolDownload\n",
    )
