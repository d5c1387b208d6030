"""Exit statuses and what stands on standard error, by real failures."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import Ctl

#: each test starts programs; together they take most of a minute
pytestmark = pytest.mark.slow

BOTH_WAYS = True
WITHOUT_DAEMON = ("test_wrong_command_lines", "test_a_broken_file_is_a_warning")


def test_no_such_pool(ctl: Ctl):
    text = ctl.error("pool", "info", "default", status=4)
    assert text.splitlines()[0] == (
        "error: Storage pool not found: no storage pool with matching name 'default'"
    )
    assert text.splitlines()[1].startswith("hint: ")


def test_no_such_volume_and_a_bare_name(pool: Ctl):
    assert "no storage vol" in pool.error("vol", "info", "t/none", status=4)
    pool.out("vol", "create-as", "t", "a", "1M")
    assert "hint: A bare name needs its pool; write t/a." in pool.error(
        "vol", "info", "a", status=4
    )
    assert "--pool POOL or POOL/NAME" in pool.error("vol", "info", "zz", status=4)
    assert "hint: There is no pool 'none'." in pool.error("vol", "info", "none/a", status=4)


def test_no_such_file(pool: Ctl):
    assert "cannot read 'none.xml'" in pool.error("pool", "define", "none.xml", status=4)


def test_exists(pool: Ctl):
    pool.out("vol", "create-as", "t", "a", "1M")
    text = pool.error("vol", "create-as", "t", "a", "1M", status=5)
    assert text.startswith("error: storage volume 'a' exists already\n")
    (pool.images / "dir").mkdir()
    pool.error("vol", "create-as", "t", "dir", "1M", status=5)
    text = pool.error("pool", "define-as", "t", "dir", "--target", "/elsewhere", status=5)
    assert text.startswith("error: operation failed: pool 't' already exists with uuid ")
    text = pool.error("pool", "define-as", "u", "dir", "--target", str(pool.images), status=5)
    assert "Storage source conflict with pool: 't'" in text


@pytest.mark.parametrize(
    "words",
    [
        ("pool", "define", "-"),
        ("vol", "create", "t", "-"),
        ("vol", "resize", "t/a", "512K"),
    ],
)
def test_invalid(pool: Ctl, words: tuple[str, ...]):
    pool.out("vol", "create-as", "t", "a", "1M")
    done = pool.run(*words, stdin=b"<nonsense", status=8)
    assert done.stderr.startswith(b"error: ")


def test_unsupported(pool: Ctl):
    pool.error("vol", "create-as", "t", "a", "1M", "--format", "nonsense", status=9)


def test_snapshots_where_there_are_none(pool: Ctl):
    pool.out("vol", "create-as", "t", "a", "1M")
    text = pool.error("vol", "delete", "t/a", "--snapshots", status=9)
    assert "storage pool does not support snapshots of volumes" in text
    assert (pool.images / "a").exists()


def test_no_space(pool: Ctl):
    text = pool.error("vol", "create-as", "t", "a", "4E", "--allocation", "4E", status=10)
    assert text.startswith("error: ")
    assert list(pool.images.iterdir()) == []


def test_state(pool: Ctl):
    assert "already active" in pool.error("pool", "start", "t", status=11)
    pool.out("pool", "stop", "t")
    text = pool.error("vol", "list", "t", status=11)
    assert text.startswith(
        "error: Requested operation is not valid: storage pool 't' is not active\n"
    )


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("nonsense",),
        ("pool",),
        ("pool", "nonsense"),
        ("pool", "start"),
        ("pool", "start", "t", "--overwrite", "--no-overwrite"),
        ("pool", "ensure", "default"),
        ("pool", "policy", "t", "--clear", "--mode", "0600"),
        ("vol", "create-as", "t", "a", "12Q"),
        ("vol", "create-as", "t", "a", "1M", "--mode", "0999"),
        ("vol", "create-as", "t", "a", "1M", "--owner", "no such user"),
        ("vol", "clone", "t"),
        ("vol", "wipe", "t/a", "--algorithm", "fire"),
        ("--session", "pool", "list"),
    ],
    ids=" ".join,
)
def test_wrong_command_lines(ctl: Ctl, words: tuple[str, ...]):
    done = ctl.run(*words, status=2)
    assert done.stderr
    assert not (ctl.root / "etc").exists()


def test_a_reader_that_goes_away(pool: Ctl):
    for number in range(50):
        (pool.images / f"{number:0200}").touch()
    for words in (("vol", "list", "t"), ("vol", "list", "t", "--json")):
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(
            pool.argv(*words),
            env=pool.environment(),
            stdout=write,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
        os.close(write)
        assert (done.returncode, done.stderr) == (141, b"")


def test_a_reader_of_a_download_that_goes_away(pool: Ctl):
    pool.out("vol", "create-as", "t", "a", "8M")
    command = subprocess.Popen(
        pool.argv("vol", "download", "t/a", "-"),
        env=pool.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert command.stdout is not None
    command.stdout.read(10)
    command.stdout.close()
    _, said = command.communicate(timeout=60)
    assert (command.returncode, said) == (141, b"")


def test_an_output_that_is_full(pool: Ctl):
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            pool.argv("pool", "list"),
            env=pool.environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    assert done.returncode == 10
    assert b"No space left" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_bug_of_ours(monkeypatch, capsys):
    from storaged.cli import invocation, main

    def break_down(_: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(invocation.Invocation, "look", break_down)
    assert main.main(["pool", "list"]) == 70
    said = capsys.readouterr().err
    assert said.startswith("error: internal error: ZeroDivisionError: oops\nhint: This is a bug")
    assert "Traceback" not in said
    assert main.main(["pool", "list", "--verbose"]) == 70
    assert "Traceback" in capsys.readouterr().err


def test_a_broken_file_is_a_warning(pool: Ctl):
    broken = pool.root / "etc/libvirt/storage/broken.xml"
    broken.write_text("<pool")
    done = pool.run("pool", "list", "--name")
    assert done.stdout == b"t\n"
    assert done.stderr.startswith(b"warning: ")
    assert b"broken.xml" in done.stderr
    assert broken.read_text() == "<pool"
