"""Images on the command line: what is printed, what programs get, how it ends."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import get_type_hints

import pytest

from storaged.cli.imageobjects import (
    BitmapObject,
    CheckObject,
    ConcernObject,
    HolderObject,
    ImageObject,
    InspectionObject,
    LayerObject,
    SnapshotObject,
)
from tests.cli.conftest import Ctl

#: each test starts programs
pytestmark = pytest.mark.slow

BOTH_WAYS = True
WITHOUT_DAEMON = ("test_secrets_come_from_files",)


@pytest.fixture
def chain(pool: Ctl) -> Ctl:
    """A pool with the image base and its overlay top."""
    pool.out("vol", "create-as", "t", "base", "1M", "--format", "qcow2")
    pool.out("vol", "clone", "t", "base", "top", "--linked")
    return pool


def qemu_img(*words: str | Path) -> None:
    subprocess.run(
        ["qemu-img", *[os.fspath(word) for word in words]], check=True, capture_output=True
    )


def test_a_clean_image(chain: Ctl) -> None:
    assert chain.out("vol", "check", "t/base").splitlines() == [
        "Format:         qcow2",
        "Corruptions:    0",
        "Leaks:          0",
        "Allocated:      0 of 16 clusters",
        "Compressed:     0",
    ]
    found = chain.json("vol", "check", "t/base")
    assert found.keys() == set(get_type_hints(CheckObject))
    assert (found["clean"], found["format"], found["findings"]) == (True, "qcow2", [])


def test_a_damaged_image(chain: Ctl) -> None:
    with (chain.images / "base").open("r+b") as file:
        file.truncate(file.seek(0, 2) + 65536)
        table = int.from_bytes(os.pread(file.fileno(), 8, 48), "big")
        block = int.from_bytes(os.pread(file.fileno(), 8, table), "big")
        os.pwrite(file.fileno(), b"\0\1", block + 2 * 4)
    done = chain.run("vol", "check", "t/base", status=13)
    assert b"Leaks:          1" in done.stdout
    assert done.stderr == b""
    found = chain.json("vol", "check", "t/base", status=13)
    assert (found["leaks"], len(found["findings"])) == (1, 1)
    chain.out("vol", "convert", "t/base")
    assert chain.json("vol", "check", "t/base")["clean"] is True


def test_what_has_no_tables(pool: Ctl) -> None:
    pool.out("vol", "create-as", "t", "r", "1M")
    assert "volumes of format raw have no tables" in pool.error("vol", "check", "t/r", status=9)


def test_inspect(chain: Ctl) -> None:
    text = chain.out("vol", "inspect", "t/top")
    assert f"Backing file:   {chain.images}/base" in text
    assert "Backing chain:\n" in text
    assert "backing file of t/top\n" in chain.out("vol", "inspect", "t/base")
    assert "1048576" in chain.out("vol", "inspect", "t/base", "--bytes")


def test_what_programs_get(chain: Ctl) -> None:
    qemu_img("snapshot", "-c", "before", chain.images / "top")
    qemu_img("bitmap", "--add", chain.images / "top", "b1")
    found = chain.json("vol", "inspect", "t/top")
    assert found.keys() == set(get_type_hints(InspectionObject))
    assert found["image"].keys() == set(get_type_hints(ImageObject))
    assert [layer["format"] for layer in found["chain"]] == ["qcow2", "qcow2"]
    assert found["chain"][0].keys() == set(get_type_hints(LayerObject))
    [snapshot], [bitmap] = found["snapshots"], found["bitmaps"]
    assert snapshot.keys() == set(get_type_hints(SnapshotObject))
    assert bitmap.keys() == set(get_type_hints(BitmapObject))
    assert (snapshot["name"], bitmap["name"], bitmap["enabled"]) == ("before", "b1", True)
    assert chain.json("vol", "inspect", "t/base")["used_by"] == ["t/top"]
    with (chain.images / "base").open("rb") as file:
        [holder] = [
            each
            for each in chain.json("vol", "inspect", "t/base")["holders"]
            if each["pid"] == os.getpid()
        ]
        assert file.readable()
    assert holder.keys() == set(get_type_hints(HolderObject))
    text = chain.out("vol", "inspect", "t/top")
    assert "before" in text
    assert "b1" in text


def test_names_out_of_an_image_are_escaped(pool: Ctl) -> None:
    evil = "x\x1b[31m\n\u202e"
    qemu_img("create", "-u", "-f", "qcow2", "-b", evil, "-F", "raw", pool.images / "v", "1M")
    text = pool.out("vol", "inspect", "t/v")
    assert "danger: " in text
    assert "\\x1b[31m" in text
    assert not {"\x1b", "\u202e"} & set(text)
    found = pool.json("vol", "inspect", "t/v")
    assert found["image"]["backing"] == evil
    assert found["concerns"][0].keys() == set(get_type_hints(ConcernObject))
    assert found["concerns"][0]["level"] == "danger"


def test_rebase(chain: Ctl) -> None:
    chain.out("vol", "rebase", "t/top", "--no-backing")
    assert len(chain.json("vol", "inspect", "t/top")["chain"]) == 1
    done = chain.json("vol", "rebase", "t/top", "--backing", "base")
    assert (done["action"], done["volume"]["name"]) == ("rebased", "top")
    assert chain.json("vol", "inspect", "t/top")["image"]["backing_format"] == "qcow2"
    words = ("vol", "rebase", "t/top", "--backing", "none", "--backing-format", "raw")
    assert "inaccessible backing store" in chain.error(*words, status=4)
    chain.out(*words, "--force")
    text = chain.error("vol", "rebase", "t/top", "--set-backing-format", "qcow2", status=4)
    assert "none" in text
    chain.out("vol", "rebase", "t/top", "--set-backing-format", "qcow2", "--force")
    assert chain.json("vol", "inspect", "t/top")["image"]["backing_format"] == "qcow2"


@pytest.mark.parametrize(
    "words",
    [
        ("rebase", "t/top"),
        ("rebase", "t/top", "--no-backing", "--backing", "x"),
        ("rebase", "t/top", "--no-backing", "--backing-format", "raw"),
        ("amend", "t/top"),
        ("convert", "t/top", "--compress", "lzma"),
        ("clone", "t", "base", "x", "--linked", "--keep-backing"),
        ("clone", "t", "base", "x", "--secret-file", "-", "--source-secret-file", "-"),
    ],
)
def test_wrong_command_lines(chain: Ctl, words: tuple[str, ...]) -> None:
    chain.error("vol", *words, status=2)


def test_amend_and_convert(chain: Ctl) -> None:
    chain.out("vol", "amend", "t/top", "--lazy-refcounts")
    assert chain.json("vol", "inspect", "t/top")["image"]["features"] == ["lazy_refcounts"]
    text = chain.error("vol", "amend", "t/top", "--compat", "0.10", status=9)
    assert "hint: Write it anew: storagectl vol convert" in text
    text = chain.out("vol", "convert", "t/top", "--flatten", "--compress", "zstd",
                     "--cluster-size", "4K", "--no-lazy-refcounts")  # fmt: skip
    assert text.startswith("volume top converted: qcow2, ")
    image = chain.json("vol", "inspect", "t/top")["image"]
    assert (image["backing"], image["compression"], image["cluster_size"]) == (None, "zstd", 4096)
    assert image["features"] == []
    done = chain.json("vol", "convert", "t/top", "--format", "raw")
    assert (done["action"], done["volume"]["format"]) == ("converted", "raw")


def test_what_an_overlay_has_on_record(chain: Ctl) -> None:
    text = chain.error("vol", "convert", "t/base", "--format", "raw", status=11)
    assert "t/top" in text
    chain.out("vol", "convert", "t/base", "--format", "raw", "--force")


def test_clones(chain: Ctl) -> None:
    made = chain.json("vol", "clone", "t", "base", "copy", "--sparse", "--durability", "none")
    assert made["volume"]["format"] == "qcow2"
    assert len(chain.json("vol", "inspect", "t/copy")["chain"]) == 1
    chain.out("vol", "create-as", "t", "r", "1M")
    full = chain.json("vol", "clone", "t", "r", "full", "--full")["volume"]
    assert full["allocation"] >= full["capacity"]


def test_secrets_come_from_files(pool: Ctl, tmp_path: Path) -> None:
    pool.out("vol", "create-as", "t", "v", "1M", "--format", "qcow2")
    secret = tmp_path / "secret"
    words = ("vol", "convert", "t/v", "--secret-file")
    assert "cannot read" in pool.error(*words, str(secret), status=4)
    for content in (b"", b"\n", b"x" * 70000):
        secret.write_bytes(content)
        assert "passphrase has 1 to 65536 bytes" in pool.error(*words, str(secret), status=8)
    secret.write_bytes(b"hunter2\n")
    for given in (
        pool.run(*words, str(secret), status=8),
        pool.run(*words, "-", stdin=b"hunter2", status=8),
    ):
        assert b"which is not encrypted" in given.stderr
        assert b"hunter2" not in given.stdout + given.stderr


def test_notes_are_told_when_an_image_is_copied(pool: Ctl, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    qemu_img("create", "-f", "raw", outside, "1M")
    qemu_img("create", "-f", "qcow2", "-b", outside, "-F", "raw", pool.images / "v")
    pool.run("pool", "refresh", "t")
    warning = f"warning: volume v: its backing file lies outside the pool: {outside}\n"
    for words in (("clone", "t", "v", "c"), ("convert", "t/v", "--cluster-size", "4K")):
        done = pool.run("vol", *words)
        assert done.stderr.decode() == warning
        assert done.stdout


def test_an_overlay_that_cannot_be_opened(chain: Ctl) -> None:
    (chain.images / "base").unlink()
    text = chain.error("vol", "clone", "t", "top", "next", "--linked", status=11)
    assert "its backing chain is not complete" in text
    done = chain.run("vol", "create-as", "t", "next", "1M", "--format", "qcow2",
                     "--backing-vol", "top")  # fmt: skip
    assert b"warning: volume next: its backing file" in done.stderr
    assert b"is not there" in done.stderr


def test_a_clone_onto_a_name_that_is_taken(chain: Ctl) -> None:
    assert "already in use" in chain.error("vol", "clone", "t", "base", "top", status=5)


def test_what_is_no_version(chain: Ctl) -> None:
    for words in (
        ("amend", "t/top", "--compat", "2"),
        ("convert", "t/top", "--compat", "7"),
        ("create-as", "t", "x", "1M", "--format", "qcow2", "--compat", "7"),
    ):
        text = chain.error("vol", *words, status=8)
        assert "unknown qcow2 compatibility level" in text
        assert "hint: There are 0.10 and 1.1." in text


def test_a_wrong_secret(pool: Ctl, tmp_path: Path) -> None:
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_bytes(b"hunter2")
    wrong.write_bytes(b"hunter3")
    pool.out("vol", "create-as", "t", "v", "1M", "--secret-file", str(right))
    words = ("vol", "clone", "t", "v", "copy", "--source-secret-file")
    text = pool.error(*words, str(wrong), status=8)
    assert "Invalid secret: volume 'v': no key slot opens with this passphrase" in text
    pool.out(*words, str(right))
