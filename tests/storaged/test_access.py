"""Who stops whom on the way to a file; the kernel itself is asked for the truth."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from storaged.access import AccessReport, check_access
from storaged.errors import InvalidArgument, SystemFailure

USER = "nobody"
UID, GID = 65534, 65534
GROUP = 4321

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can try as another user")


@pytest.fixture
def tree() -> Iterator[Path]:
    """A directory that everybody may enter, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(dir="/tmp")).resolve()
    path.chmod(0o755)
    (path / "images").mkdir()
    (path / "images/disk").write_bytes(b"data")
    (path / "images/disk").chmod(0o666)
    yield path
    shutil.rmtree(path)


def setfacl(*arguments: str | Path) -> None:
    tool = shutil.which("setfacl")
    if tool is None:
        pytest.skip("setfacl is not installed (package acl)")
    done = subprocess.run([tool, *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"no access lists here: {done.stderr.strip()}")


#: Becomes the user within Python, which the user may not be allowed to start.
_TRY = """
import os, sys
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
try:
    open(sys.argv[1], sys.argv[2]).close()
except PermissionError:
    sys.exit(77)
"""


def can(path: Path, mode: str) -> bool:
    """Try it as the user."""
    done = subprocess.run([sys.executable, "-SEc", _TRY, path, mode], capture_output=True)
    assert done.returncode in (0, 77), done.stderr
    return done.returncode == 0


def report(path: Path, *, writing: bool = True) -> AccessReport:
    """Ask, and have the kernel confirm it."""
    answer = check_access(str(path), USER, writing=writing)
    if os.geteuid() == 0:
        assert answer.allowed is can(path, "r+b" if writing else "rb")
    return answer


def mended(answer: AccessReport) -> None:
    """Run what was advised, after which nothing may be in the way."""
    for obstacle in answer.obstacles:
        assert obstacle.command is not None
        subprocess.run(obstacle.command, shell=True, check=True)
    assert report(Path(answer.path)).allowed


def test_allowed(tree: Path) -> None:
    answer = report(tree / "images/disk")
    assert answer.allowed
    assert str(answer) == f"user {USER} can use {tree}/images/disk"


@needs_root
def test_directory_above(tree: Path) -> None:
    (tree / "images").chmod(0o700)
    answer = report(tree / "images/disk")
    (obstacle,) = answer.obstacles
    assert (obstacle.path, obstacle.doing) == (str(tree / "images"), "enter")
    assert obstacle.why == "owner root, group root, mode 0700"
    assert obstacle.command in (
        f"setfacl -m u:{USER}:x {tree}/images", f"chmod o+x {tree}/images",
    )  # fmt: skip
    assert f"user {USER} cannot enter {tree}/images (owner root" in str(answer)
    mended(answer)


@needs_root
def test_several_at_once(tree: Path) -> None:
    tree.chmod(0o711)
    (tree / "images").chmod(0o600)
    (tree / "images/disk").chmod(0o600)
    answer = report(tree / "images/disk")
    assert [Path(one.path).name for one in answer.obstacles] == ["images", "disk"]
    mended(answer)


@needs_root
def test_own_file(tree: Path) -> None:
    """The owner has the owner's rights, even where others have more."""
    disk = tree / "images/disk"
    os.chown(disk, UID, GID)
    disk.chmod(0o066)
    answer = report(disk)
    assert answer.obstacles[0].command == f"chmod u+rw {disk}"
    mended(answer)


@needs_root
def test_group_shuts_out(tree: Path) -> None:
    disk = tree / "images/disk"
    os.chown(disk, 0, GID)
    disk.chmod(0o606)
    assert not report(disk).allowed


@needs_root
def test_reading_only(tree: Path) -> None:
    (tree / "images/disk").chmod(0o644)
    assert report(tree / "images/disk", writing=False).allowed
    answer = report(tree / "images/disk")
    assert answer.obstacles[0].doing == "read and write"


@needs_root
@pytest.mark.parametrize(
    ("entries", "allowed"),
    [
        (f"u:{UID}:rw", True),
        (f"u:{UID}:r,o::rw", False),
        (f"u:{UID}:rw,m::r", False),
        (f"g:{GID}:rw", True),
        (f"g:{GID}:r,g:{GROUP}:rw,o::rw", False),
        (f"u:{UID + 1}:rw", False),
        (f"u:{UID + 1}:rw,o::rw", True),
    ],
)
def test_access_lists(tree: Path, entries: str, allowed: bool) -> None:
    disk = tree / "images/disk"
    disk.chmod(0o600)
    setfacl("-m", entries, disk)
    answer = report(disk)
    assert answer.allowed is allowed
    if not allowed:
        assert "access list grants" in answer.obstacles[0].why
        mended(answer)


@needs_root
def test_links_are_followed(tree: Path) -> None:
    (tree / "deep").mkdir(mode=0o700)
    (tree / "deep/disk").touch(mode=0o666)
    (tree / "images/up").symlink_to("../deep")
    answer = report(tree / "images/up/disk")
    assert [one.path for one in answer.obstacles] == [str(tree / "deep"), str(tree / "deep/disk")]
    (tree / "images/absolute").symlink_to(tree / "images/disk")
    assert report(tree / "images/absolute").allowed


def test_links_in_circles(tree: Path) -> None:
    (tree / "a").symlink_to("b")
    (tree / "b").symlink_to("a")
    with pytest.raises(SystemFailure, match="Too many levels of symbolic links"):
        check_access(str(tree / "a"), USER)


def test_no_such_file(tree: Path) -> None:
    with pytest.raises(SystemFailure) as caught:
        check_access(str(tree / "images/missing"), USER)
    assert str(caught.value) == (
        f"cannot stat file '{tree}/images/missing': No such file or directory"
    )
    with pytest.raises(SystemFailure, match="Not a directory"):
        check_access(str(tree / "images/disk/x"), USER)


def test_who(tree: Path) -> None:
    path = str(tree / "images/disk")
    assert check_access(path, "0").user == "root"
    assert check_access(path, UID).user == USER
    assert check_access(path, 54321).user == "54321"
    with pytest.raises(InvalidArgument, match="there is no user 'no-such-user'"):
        check_access(path, "no-such-user")
    with pytest.raises(InvalidArgument, match="there is no user '²'"):
        check_access(path, "²")
    with pytest.raises(InvalidArgument, match="is not absolute"):
        check_access("disk", USER)


@needs_root
def test_root_is_never_stopped(tree: Path) -> None:
    (tree / "images").chmod(0)
    assert check_access(str(tree / "images/disk"), "root").allowed


@needs_root
def test_names_are_quoted_in_commands(tree: Path) -> None:
    odd = tree / "a b;c"
    odd.mkdir(mode=0o700)
    (odd / "disk").touch()
    (odd / "disk").chmod(0o666)
    mended(report(odd / "disk"))


def test_read_only_file_system(loop_mount: object, tree: Path) -> None:
    target = loop_mount("ext4", mebibytes=32)  # type: ignore[operator]
    (target / "disk").touch(mode=0o666)
    subprocess.run(["mount", "-o", "remount,ro", target], check=True)
    answer = check_access(str(target / "disk"), "root")
    (obstacle,) = answer.obstacles
    assert (obstacle.doing, obstacle.why) == ("write", "its file system is mounted read-only")
