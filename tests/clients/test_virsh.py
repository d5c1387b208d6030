"""Debian's virsh: its commands on libvirt's daemon and on storaged's print the same."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.clients import virsh
from tests.clients.daemons import Daemons, Served
from tests.clients.differences import compare
from tests.clients.stories import ALONE, DATA, FILES, MADE, OTHER_TYPES, READ_ONLY, STORIES

#: In libvirt's order.
POOL_TYPES = (
    "dir",
    "fs",
    "netfs",
    "logical",
    "disk",
    "iscsi",
    "iscsi-direct",
    "scsi",
    "mpath",
    "rbd",
    "sheepdog",
    "gluster",
    "zfs",
    "vstorage",
)


@pytest.fixture(scope="module")
def prepared(daemons: Daemons) -> Daemons:
    """The daemons, with the files that the stories read."""
    for served in daemons:
        files = served.directory / "files"
        files.mkdir()
        for name, text in FILES.items():
            (files / name).write_text(served.inward(text))
        for name, (pieces, size) in DATA.items():
            _write(files / name, pieces, size)
    return daemons


def _write(path: Path, pieces: Iterable[tuple[int, bytes]], size: int) -> None:
    with path.open("wb") as file:
        for offset, data in pieces:
            file.seek(offset)
            file.write(data)
        file.truncate(size)


def both(
    daemons: Daemons, story: str, commands: list[str], *options: str, **environ: str
) -> list[virsh.Printed]:
    """Run commands on both daemons at once, compare all they print, and return ours."""
    with ExitStack() as stack:
        running = [
            stack.enter_context(virsh.begin(served, commands, *options, environ=environ))
            for served in daemons
        ]
        printed = [
            virsh.end(served, process, commands)
            for served, process in zip(daemons, running, strict=True)
        ]
    theirs, ours = ({f"{n:02} {c}": p for n, (c, p) in enumerate(zip(commands, found, strict=True))}
                    for found in printed)  # fmt: skip
    compare(story, _texts(theirs), _texts(ours))
    return printed[1]


def _texts(printed: dict[str, virsh.Printed]) -> dict[str, str]:
    return {name: f"{found.output}{found.errors}" for name, found in printed.items()}


def contents(served: Served, name: str) -> tuple[int, int, str]:
    """Return size, used space and digest of a file that virsh made."""
    path = served.directory / "files" / name
    status = path.stat()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return status.st_size, status.st_blocks, digest


@pytest.mark.parametrize("story", STORIES)
def test_story(prepared: Daemons, story: str) -> None:
    both(prepared, story, STORIES[story])
    for name in MADE.get(story, ()):
        theirs, ours = (contents(served, name) for served in prepared)
        assert ours == theirs, name


def served_types(served: Served) -> set[str]:
    """Return the pool types that a daemon serves."""
    _, printed = virsh.alone(served, "pool-capabilities")
    return set(re.findall(r"<pool type='([^']*)' supported='yes'>", printed.output))


@pytest.mark.parametrize("kind", OTHER_TYPES)
def test_other_type(prepared: Daemons, kind: str) -> None:
    """Pools that are described alike, where both daemons serve their type."""
    commands = [
        f"pool-define-as other {kind} {OTHER_TYPES[kind]}",
        "pool-dumpxml other",
        "pool-info other",
        f"pool-list --all --type {kind}",
        "pool-undefine other",
        f"find-storage-pool-sources-as {kind}",
    ]
    lacking = [served for served in prepared if kind not in served_types(served)]
    if not lacking:
        both(prepared, kind, commands)
    for served in lacking:
        _, printed = virsh.alone(served, *commands[0].split())
        assert (
            f"internal error: missing backend for pool type {POOL_TYPES.index(kind)} ({kind})"
            in (printed.errors)
        )


def look_at(daemons: Daemons, name: str) -> None:
    """Have a pool with one volume ``v``."""
    both(
        daemons,
        "what is looked at",
        [
            f"pool-define-as {name} dir --target $DIR/{name}",
            f"pool-build {name}",
            f"pool-start {name}",
            f"vol-create-as {name} v 4096",
        ],
    )


def test_read_only(prepared: Daemons) -> None:
    look_at(prepared, "seen")
    printed = both(prepared, "read only", READ_ONLY, "-r")
    refused = [p for p in printed if "read only access prevents" in p.errors]
    assert len(refused) == len(READ_ONLY) - READ_ONLY.index("pool-start seen") + 2
    both(prepared, "afterwards", ["pool-list --all", "vol-list seen --details"])


def test_read_only_socket(prepared: Daemons) -> None:
    """The socket for those who may only look refuses the same as the option does."""
    look_at(prepared, "shown")
    sockets = Daemons(
        *(
            dataclasses.replace(served, socket=served.socket.with_name(f"{served.socket.name}-ro"))
            for served in prepared
        )
    )
    commands = [command.replace("seen", "shown") for command in READ_ONLY]
    printed = both(sockets, "read only", commands)
    assert sum("read only access prevents" in found.errors for found in printed) == len(
        READ_ONLY
    ) - READ_ONLY.index("pool-start seen") + 2  # fmt: skip


def test_exit_status(prepared: Daemons) -> None:
    look_at(prepared, "status")
    for command in ALONE:
        words = [word.replace("seen", "status") for word in command.split()]
        theirs, ours = (virsh.alone(served, *words) for served in prepared)
        compare(
            command,
            {"status": theirs[0], "output": theirs[1].output, "errors": theirs[1].errors},
            {"status": ours[0], "output": ours[1].output, "errors": ours[1].errors},
        )


def test_edit(prepared: Daemons, tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text("#!/bin/sh\nsed -i 's,/edit<,/edited<,' \"$1\"\n")
    editor.chmod(0o755)
    commands = ["pool-edit edit", "pool-dumpxml edit", "pool-undefine edit"]
    both(prepared, "edit", ["pool-define-as edit dir --target $DIR/edit"])
    printed = both(prepared, "edit", commands, EDITOR=str(editor))
    assert "/edited</path>" in printed[1].output


class Watcher:
    """``virsh pool-event`` at work on a daemon."""

    def __init__(self, served: Served, *words: str) -> None:
        self.served = served
        self.process = virsh.start(served, "pool-event", *words)

    def wait_until_registered(self, marker: str) -> None:
        """Make a pool come and go until the watcher has heard of it."""
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        deadline = time.monotonic() + 20
        while not self.process.stdout.readline():
            assert time.monotonic() < deadline, f"no event from {self.served.name}"
            virsh.alone(self.served, f"pool-define-as {marker} dir --target $DIR/{marker}; "
                        f"pool-undefine {marker}")  # fmt: skip
        os.set_blocking(self.process.stdout.fileno(), True)

    def finish(self, marker: str) -> list[str]:
        """End the watcher and return what it printed, without the marker's lines."""
        time.sleep(0.2)  # what is on its way arrives
        self.process.terminate()
        output, _ = self.process.communicate(timeout=30)
        return [
            line
            for line in self.served.outward(output).splitlines()
            if line and marker not in line and not line.startswith("events received")
        ]


EVENTFUL = [
    "pool-define-as heard dir --target $DIR/heard",
    "pool-build heard",
    "pool-start heard",
    "pool-define-as other dir --target $DIR/other",
    "vol-create-as heard v 4096",
    "pool-refresh heard",
    "vol-delete v --pool heard",
    "pool-start heard",
    "pool-destroy heard",
    "pool-delete heard",
    "pool-undefine heard",
    "pool-undefine other",
]


@pytest.mark.parametrize("event", ["lifecycle", "refresh"])
def test_events(prepared: Daemons, event: str) -> None:
    heard = []
    for served in prepared:
        watcher = Watcher(served, "--event", event, "--loop")
        if event == "refresh":
            time.sleep(0.3)  # there is nothing harmless to try it with
        else:
            watcher.wait_until_registered("marker")
        virsh.end(served, virsh.begin(served, EVENTFUL), EVENTFUL)
        heard.append(watcher.finish("marker"))
    theirs, ours = heard
    compare(f"events: {event}", "\n".join(theirs), "\n".join(ours))
    assert len(ours) == {"lifecycle": 8, "refresh": 1}[event]


def test_one_event_of_one_pool(prepared: Daemons) -> None:
    both(prepared, "one event", ["pool-define-as single dir --target $DIR/single"])
    printed = []
    for served in prepared:
        watcher = virsh.start(served, "pool-event --pool single --event lifecycle --timeout 20")
        time.sleep(0.3)
        virsh.alone(served, "pool-define-as elsewhere dir --target $DIR/elsewhere; "
                    "pool-undefine elsewhere; pool-undefine single")  # fmt: skip
        output, errors = watcher.communicate(timeout=30)
        printed.append(served.outward(f"{watcher.returncode} {output}{errors}"))
    assert printed[0] == printed[1]
    assert "event 'lifecycle' for storage pool single: Undefined" in printed[1]


def test_pretty_names_of_a_session(prepared: Daemons) -> None:
    """A system's daemon is none of a session."""
    theirs, ours = (
        virsh.start(served, "pool-list", uri=f"storage:///session?socket={served.socket}")
        for served in prepared
    )
    printed = [process.communicate(timeout=30)[1] for process in (theirs, ours)]
    assert printed[0] == printed[1]
    assert "unexpected storage URI path '/session'" in printed[1]


def test_other_drivers(prepared: Daemons) -> None:
    errors = []
    for served in prepared:
        uri = f"qemu:///system?socket={served.socket}"
        process = virsh.start(served, "pool-list", uri=uri)
        errors.append(process.communicate(timeout=30)[1])
        assert process.returncode == 1
    assert errors[0] == errors[1]


def test_many_commands_on_one_connection(prepared: Daemons) -> None:
    commands = ["pool-list --all"] * 100
    printed = both(prepared, "many commands", commands)
    assert len({found.output for found in printed}) == 1
