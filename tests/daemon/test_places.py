"""Where a daemon's own files are, and the file with its process id."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from storaged.daemon.options import parse
from storaged.daemon.pidfile import PidFile
from storaged.daemon.places import places
from storaged.errors import ResourceBusy, SystemFailure


def test_the_hosts() -> None:
    found = places(root=None, session=False, environ={})
    assert found.rw == Path("/run/libvirt/virtstoraged-sock")
    assert found.ro == Path("/run/libvirt/virtstoraged-sock-ro")
    assert found.admin == Path("/run/libvirt/virtstoraged-admin-sock")
    assert found.config == Path("/etc/libvirt/virtstoraged.conf")
    assert found.pid_file == Path("/run/virtstoraged.pid")
    assert found.token == Path("/run/libvirt/common/system.token")
    assert found.log == Path("/var/log/libvirt/virtstoraged.log")


def test_a_users() -> None:
    environ = {"HOME": "/h", "XDG_RUNTIME_DIR": "/r"}
    found = places(root=None, session=True, environ=environ)
    assert found.rw == Path("/r/libvirt/virtstoraged-sock")
    assert found.ro is None
    assert found.config == Path("/h/.config/libvirt/virtstoraged.conf")
    assert found.pid_file == Path("/r/libvirt/virtstoraged.pid")
    assert found.token == Path("/r/libvirt/common/system.token")
    assert found.log == Path("/h/.cache/libvirt/log/virtstoraged.log")
    found = places(root=None, session=True, environ={"HOME": "/h", "XDG_CONFIG_HOME": "/c"})
    assert found.rw == Path("/h/.cache/libvirt/virtstoraged-sock")
    assert found.config == Path("/c/libvirt/virtstoraged.conf")


def test_those_below_a_root() -> None:
    for session in (False, True):
        found = places(root="/x", session=session, environ={"HOME": "/h"})
        assert found.rw == Path("/x/run/libvirt/virtstoraged-sock")
        assert (found.ro is None) == session
        assert found.config == Path("/x/etc/libvirt/virtstoraged.conf")
        assert found.pid_file == Path("/x/run/virtstoraged.pid")


def test_paths_hold_when_the_directory_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = parse(["--root", "r", "-f", "c", "-p", "p", "-t", "5", "-v", "--session"])
    assert (found.root, found.config) == (str(tmp_path / "r"), str(tmp_path / "c"))
    assert found.pid_file == str(tmp_path / "p")
    assert (found.timeout, found.verbose, found.session, found.daemon) == (5, True, True, False)
    assert parse([]).session == (os.geteuid() != 0)


def test_a_pid_file_is_one_processs(tmp_path: Path) -> None:
    path = tmp_path / "run/x.pid"
    first = PidFile(path)
    assert path.read_text() == f"{os.getpid()}\n"
    assert path.stat().st_mode & 0o777 == 0o644
    with pytest.raises(ResourceBusy, match=f"is in use by process {os.getpid()}") as caught:
        PidFile(path)
    assert caught.value.pid == os.getpid()
    first.remove()
    first.remove()
    assert not path.exists()
    path.write_text("99999999\n")  # of a daemon that was killed
    PidFile(path).remove()


def test_a_pid_file_of_another_is_left(tmp_path: Path) -> None:
    path = tmp_path / "x.pid"
    ours = PidFile(path)
    path.unlink()
    path.write_text("1\n")
    ours.remove()
    assert path.read_text() == "1\n"
    link = tmp_path / "link.pid"
    link.symlink_to(path)
    with pytest.raises(SystemFailure):
        PidFile(link)
