"""One life of a pool of each subject through the daemon: by Debian's virsh, and by storagectl."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import storaged
from storaged.backend import (
    Ability,
    Builds,
    ClonesVolumes,
    CreatesVolumes,
    DeletesVolumes,
    Resizes,
    Transfers,
    Wipes,
)
from storaged.poolxml import parse_pool
from storaged.volxml import parse_volume
from tests.clients import virsh
from tests.clients.daemons import Served
from tests.contract.subjects import MIB, Ground, Subject, parameters
from tests.daemon.running import Daemon, environment, storaged_daemon
from tests.kernel.programs import patience

#: each test starts programs
pytestmark = pytest.mark.slow

on_storage = pytest.mark.parametrize("subject", parameters())

#: More than a volume of any ground has; less is refused whoever asks for it.
_LARGER = 48 * MIB
#: What 9 means to storagectl: this pool type cannot do it.
_CANNOT = 9


@dataclass(frozen=True, slots=True)
class Step:
    """A command of a life.

    :param needs: what the pool's type must be able to do; it is refused otherwise.
    """

    words: str
    needs: type[Ability] | None = None


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon for all subjects, one after the other."""
    with storaged_daemon(tmp_path_factory.mktemp("daemon") / "root") as running:
        yield running


@pytest.fixture
def alone(daemon: Daemon, ground: Ground) -> Iterator[Daemon]:
    """The daemon, which has no pool before and after."""
    yield daemon
    with storaged.connect(daemon.uri()) as storage:
        for pool in storage.pools():
            if pool.active:
                pool.stop(force=True)
            pool.undefine()
    assert daemon.log == ""  # a daemon that is well is silent


class Plain(Served):
    """A daemon whose answers are taken as they are."""

    def outward(self, value: Any) -> Any:
        return value


class Virsh:
    """Runs commands with virsh, many in one process."""

    def __init__(self, daemon: Daemon, subject: Subject) -> None:
        self._served = Plain("storaged", daemon.root, daemon.socket, daemon.pid, daemon.root)
        self._subject = subject

    def run(self, *steps: Step) -> dict[str, str]:
        """Run commands and return what each printed, by its first word.

        Each has succeeded, or was refused with libvirt's text for what the pool's type lacks.
        """
        words = [step.words for step in steps]
        with virsh.begin(self._served, words) as process:
            printed = virsh.end(self._served, process, words)
        for step, answer in zip(steps, printed, strict=True):
            if step.needs is None or self._subject.can(step.needs):
                assert not answer.failed, (step.words, answer)
            else:
                assert step.needs.missing in answer.errors, (step.words, answer)
        return {
            step.words.split()[0]: each.output for step, each in zip(steps, printed, strict=True)
        }


def columns(table: str) -> list[list[str]]:
    """Return the rows of one of virsh's tables."""
    return [line.split() for line in table.splitlines()[2:] if line.strip()]


def field(listing: str, name: str) -> str:
    """Return the value of a line ``Name: value``."""
    found = re.search(rf"^{re.escape(name)}: +(.*)$", listing, re.MULTILINE)
    assert found is not None, listing
    return found[1]


def build_flag(ground: Ground) -> str:
    """Return the option of pool-build, with a blank in front of it."""
    return {None: "", False: " --no-overwrite", True: " --overwrite"}[ground.overwrite]


def write_document(place: Path, ground: Ground) -> Path:
    """Return a file with the pool's definition."""
    file = place / "ground.xml"
    file.write_text(ground.xml)
    return file


def write_data(place: Path) -> tuple[Path, bytes]:
    """Return a file to upload, and what is in it."""
    data = os.urandom(MIB + 512)
    file = place / "sent"
    file.write_bytes(data)
    return file, data


@pytest.mark.skipif(shutil.which("virsh") is None, reason="virsh is not installed (make setup)")
@on_storage
def test_virsh(subject: Subject, ground: Ground, alone: Daemon, tmp_path: Path) -> None:
    client = Virsh(alone, subject)
    formatted = f" --format {subject.formats[0]}" if subject.formats[0] else ""
    told = client.run(
        Step(f"pool-define {write_document(tmp_path, ground)} --validate"),
        Step(f"pool-build ground{build_flag(ground)}"),
        Step("pool-start ground"),
        Step("pool-autostart ground"),
        Step("pool-list --all"),
        Step("pool-info ground"),
        Step("pool-dumpxml ground"),
        Step(f"vol-create-as ground fresh 8M{formatted}", CreatesVolumes),
        Step("vol-list ground"),
    )
    assert columns(told["pool-list"]) == [["ground", "active", "yes"]]
    assert field(told["pool-info"], "State") == "running"
    assert field(told["pool-info"], "Autostart") == "yes"
    assert parse_pool(told["pool-dumpxml"], validate=True).type == subject.kind
    listed = dict(columns(told["vol-list"]))
    name = "fresh" if subject.can(CreatesVolumes) else min(listed)
    work_on_volume(client, subject, name, listed[name], tmp_path)
    names = set(listed) - {"lost+found"}
    told = client.run(
        *(Step(f"vol-delete {each} --pool ground", DeletesVolumes) for each in names),
        Step("pool-refresh ground"),
        Step("vol-list ground"),
        Step("pool-destroy ground"),
        Step("pool-list --inactive"),
        Step("pool-delete ground", Builds),
        Step("pool-undefine ground"),
        Step("pool-list --all"),
    )
    left = {row[0] for row in columns(told["vol-list"])} - {"lost+found"}
    assert left == (set() if subject.can(DeletesVolumes) else names)
    assert columns(told["pool-list"]) == []


def work_on_volume(client: Virsh, subject: Subject, name: str, path: str, place: Path) -> None:
    """Have virsh do to a volume what can be done, and check what came of it."""
    sent, data = write_data(place)
    back, copied, wiped = (place / each for each in ("back", "copied", "wiped"))
    at = f"{name} --pool ground"
    told = client.run(
        Step(f"vol-upload {at} --file {sent}", Transfers),
        Step(f"vol-download {at} --file {back} --length {len(data)}", Transfers),
        Step(f"vol-clone {at} --newname copy", ClonesVolumes),
        Step(f"vol-resize {at} --capacity {_LARGER}", Resizes),
        Step(f"vol-info {at} --bytes"),
        Step(f"vol-dumpxml {at}"),
    )
    if subject.can(Transfers):
        assert back.read_bytes() == data
    capacity = int(field(told["vol-info"], "Capacity").split()[0])
    if subject.can(Resizes):
        assert capacity == _LARGER
    described = parse_volume(told["vol-dumpxml"], subject.kind, validate=True)
    assert (described.name, described.path, described.capacity) == (name, path, capacity)
    if subject.can(ClonesVolumes):
        client.run(
            Step(f"vol-download copy --pool ground --file {copied} --length {len(data)}"),
            Step("vol-delete copy --pool ground"),
        )
    client.run(
        Step(f"vol-wipe {at}", Wipes),
        Step(f"vol-download {at} --file {wiped} --length {len(data)}", Transfers),
    )
    if subject.can(Wipes) and subject.can(Transfers):
        assert not any(wiped.read_bytes())
    if subject.can(ClonesVolumes):
        assert copied.read_bytes() == data


#: Runs storagectl on each line of its input, a list of words, and answers with status and output.
_MANY = """
import contextlib, io, json, sys
from storaged.cli.main import main
for line in sys.stdin:
    said, wrong = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(wrong):
        status = main(json.loads(line))
    print(json.dumps([status, said.getvalue(), wrong.getvalue()]), flush=True)
"""


class Ctl:
    """Runs commands of storagectl, all in one process: to begin one costs the most."""

    def __init__(self, daemon: Daemon, subject: Subject) -> None:
        self._common = ["--connect", daemon.uri(), "--json"]
        self._subject = subject
        self._process = subprocess.Popen(
            [sys.executable, "-c", _MANY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )

    def __enter__(self) -> Ctl:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=patience(10))

    def run(self, *words: str, needs: type[Ability] | None = None) -> Any:
        """Run a command and return its answer; None if the pool's type lacks what it needs."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([*self._common, *words]), file=self._process.stdin, flush=True)
        status, said, wrong = json.loads(self._process.stdout.readline())
        told = [line for line in map(json.loads, wrong.splitlines()) if "progress" not in line]
        if needs is None or self._subject.can(needs):
            assert (status, told) == (0, []), words
            return json.loads(said)
        assert (status, len(told)) == (_CANNOT, 1), (words, said)
        assert needs.missing in told[0]["error"]["message"]
        return None


@on_storage
def test_storagectl(subject: Subject, ground: Ground, alone: Daemon, tmp_path: Path) -> None:
    with Ctl(alone, subject) as ctl:
        ctl.run("pool", "define", str(write_document(tmp_path, ground)), "--validate")
        ctl.run("pool", "build", "ground", *build_flag(ground).split())
        ctl.run("pool", "start", "ground")
        ctl.run("pool", "autostart", "ground")
        (listed,) = ctl.run("pool", "list", "--all")
        assert (listed["state"], listed["type"]) == ("running", subject.kind)
        assert (listed["autostart"], listed["problems"]) == (True, [])
        formatted = ["--format", subject.formats[0]] if subject.formats[0] else []
        ctl.run("vol", "create-as", "ground", "fresh", "8M", *formatted, needs=CreatesVolumes)
        volumes = named(ctl.run("vol", "list", "ground"))
        name = "fresh" if subject.can(CreatesVolumes) else min(volumes)
        drive(ctl, f"ground/{name}", tmp_path)
        for each in volumes:
            ctl.run("vol", "delete", f"ground/{each}", needs=DeletesVolumes)
        ctl.run("pool", "refresh", "ground")
        left = named(ctl.run("vol", "list", "ground"))
        assert set(left) == (set() if subject.can(DeletesVolumes) else set(volumes))
        ctl.run("pool", "stop", "ground")
        assert ctl.run("pool", "info", "ground")["state"] == "inactive"
        ctl.run("pool", "delete", "ground", needs=Builds)
        ctl.run("pool", "undefine", "ground")
        assert ctl.run("pool", "list", "--all") == []


def named(volumes: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return volumes by name, without what a fresh file system has by itself."""
    return {each["name"]: each for each in volumes if each["type"] != "dir"}


def drive(ctl: Ctl, volume: str, place: Path) -> None:
    """Have storagectl do to a volume what can be done, and check what came of it."""
    sent, data = write_data(place)
    length = ("--length", str(len(data)))

    def read(which: str) -> bytes | None:
        file = place / f"read-{which.partition('/')[2]}"
        answer = ctl.run("vol", "download", which, str(file), *length, needs=Transfers)
        return None if answer is None else file.read_bytes()

    if ctl.run("vol", "upload", volume, str(sent), needs=Transfers) is not None:
        assert read(volume) == data
    copy = ctl.run("vol", "clone", volume, "copy", needs=ClonesVolumes)
    if copy is not None:
        assert read("ground/copy") == data
        ctl.run("vol", "delete", "ground/copy")
    resized = ctl.run("vol", "resize", volume, str(_LARGER), needs=Resizes)
    wiped = ctl.run("vol", "wipe", volume, needs=Wipes)
    shown = ctl.run("vol", "info", volume)
    for answer in (resized, wiped):
        assert answer is None or answer["volume"]["capacity"] == shown["capacity"]
    if wiped is not None:
        assert not any(read(volume) or b"")
