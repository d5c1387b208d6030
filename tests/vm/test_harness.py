"""The parts of the harness that need no guest: cache, packages, kernel, initrd, QEMU's words."""

from __future__ import annotations

import gzip
import lzma
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from tests.vm import cache, initrd, packages
from tests.vm.__main__ import main, parse
from tests.vm.guest import Machine, pick_accelerator
from tests.vm.kernel import unpack_image
from tests.vm.packages import PreparationError
from tests.vm.run import copy_checkout

HERE = Path(__file__).parent


def test_what_stands_after_the_dashes_is_for_pytest() -> None:
    options, others = parse(["--timeout", "600", "--", "-k", "dm", "--", "-x"])
    assert options.timeout == 600
    assert others == ("-k", "dm", "--", "-x")


@pytest.mark.parametrize(
    "words", [["--timeout", "60"], ["--guests", "0"], ["--command"], ["-k", "dm"]]
)
def test_wrong_arguments(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(words)
    assert caught.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_the_cache_is_where_xdg_says() -> None:
    assert cache.default_directory({"HOME": "/h"}) == Path("/h/.cache/storaged/vm")
    assert cache.default_directory({"XDG_CACHE_HOME": "/c"}) == Path("/c/storaged/vm")
    assert cache.default_directory({"HOME": "/h", "XDG_CACHE_HOME": "relative"}) == Path(
        "/h/.cache/storaged/vm"
    )


def test_what_a_killed_run_left_goes_and_what_is_in_use_stays(tmp_path: Path) -> None:
    left = tmp_path / "run-left"
    left.mkdir()
    (left / "disk.img").touch()
    with cache.run_directory(tmp_path) as one:
        assert not left.exists()
        with cache.run_directory(tmp_path) as two:
            assert one.exists()
            assert two.exists()
        assert not two.exists()
    assert not one.exists()


def test_clean_keeps_what_is_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = tmp_path / "storaged/vm"
    (place / "debs").mkdir(parents=True)
    (place / "vm-1").mkdir()
    with cache.locked(place / "vm-1", shared=True):
        assert main(["--clean"]) == 0
        assert [path.name for path in place.iterdir() if path.is_dir()] == ["vm-1"]
    assert main(["--clean"]) == 0
    assert not place.exists()
    assert main(["--clean"]) == 0


def test_the_list_of_packages() -> None:
    names = packages.parse_list((HERE / "packages.txt").read_text())
    assert len(set(names)) == len(names) > 20
    assert packages.parse_list("# all\na1  # why\n\n b+\n") == ("a1", "b+")
    with pytest.raises(PreparationError, match="is no name of a package"):
        packages.parse_list("two words")


def test_what_apt_would_install() -> None:
    text = (
        "Reading package lists...\n"
        "Inst lvm2 (2.03.16-2 Debian:12/stable [amd64])\n"
        "Inst tgt [1:1.0-1] (1:1.0.85-1 Debian:12/stable [amd64]) []\n"
        "Conf lvm2 (2.03.16-2 Debian:12/stable [amd64])\n"
    )
    assert packages.parse_simulation(text) == {"lvm2": "2.03.16-2", "tgt": "1:1.0.85-1"}


def test_a_program_that_fails_tells_why() -> None:
    with pytest.raises(PreparationError, match="exit 1"):
        packages.run("false")
    with pytest.raises(PreparationError, match="is not installed"):
        packages.run("no-such-program")


def image(payload: bytes) -> bytes:
    """Return a bzImage with a set-up of two sectors."""
    header = bytearray(1024)
    header[0x1F1] = 1
    header[0x202:0x206] = b"HdrS"
    struct.pack_into("<2I", header, 0x248, 16, len(payload))
    return bytes(header) + bytes(16) + payload + b"rest"


def test_unpacking_a_kernel() -> None:
    kernel = b"\x7fELF" + bytes(100)
    assert unpack_image(image(lzma.compress(kernel))) == kernel
    assert unpack_image(image(gzip.compress(kernel))) == kernel
    other = image(b"\x28\xb5\x2f\xfd")  # zstd: left to the guest
    assert unpack_image(other) == other
    with pytest.raises(PreparationError, match="no bzImage"):
        unpack_image(bytes(4096))


def test_modules_are_loaded_after_those_they_need() -> None:
    table = (
        "kernel/9p/9p.ko: kernel/net/9pnet.ko kernel/net/cache.ko\n"
        "kernel/net/9pnet.ko: kernel/net/cache.ko\n"
        "kernel/net/cache.ko:\n"
        "kernel/over-lay.ko.xz:\n"
    )
    assert initrd.load_order(table, ("over_lay", "built-in", "9p", "9pnet")) == [
        "kernel/over-lay.ko.xz",
        "kernel/net/cache.ko",
        "kernel/net/9pnet.ko",
        "kernel/9p/9p.ko",
    ]


@pytest.mark.skipif(shutil.which("7z") is None, reason="7z is not installed (make setup)")
def test_others_read_the_initrd(tmp_path: Path) -> None:
    archive = initrd.Archive()
    archive.file("a/b/file", b"content", executable=True)
    archive.directory("a/c")
    (tmp_path / "archive.cpio").write_bytes(archive.close())
    subprocess.run(
        ["7z", "x", "archive.cpio"], cwd=tmp_path, check=True, timeout=30, capture_output=True
    )
    assert (tmp_path / "a/b/file").read_bytes() == b"content"
    assert os.access(tmp_path / "a/b/file", os.X_OK)
    assert (tmp_path / "a/c").is_dir()


def test_an_archive_has_headers_of_110_digits() -> None:
    archive = initrd.Archive()
    archive.device("dev/console", 5, 1)
    data = archive.close()
    assert data.startswith(b"070701")
    assert len(data) % 4 == 0
    assert data[110:114] == b"dev\0"
    assert data.rstrip(b"\0").endswith(b"TRAILER!!!")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "vmlinux", tmp_path / "layer", tmp_path)


def test_the_words_for_qemu(machine: Machine) -> None:
    words = machine.words("tcg")
    assert words[:3] == ["setpriv", "--pdeathsig", "KILL"]
    serials = [word.rpartition("=")[2] for word in words if ",serial=" in word]
    assert serials == ["scratch", "DISK0", "DISK1", "LUN0", "LUN1"]
    root = next(word for word in words if "mount_tag=host" in word)
    assert "readonly=on" in root


def test_the_accelerator_is_remembered_until_the_next_boot(
    machine: Machine, tmp_path: Path
) -> None:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    memory = tmp_path / "accel"
    memory.write_text(f"{boot} kvm\n")
    assert pick_accelerator(machine, memory, {}) == "kvm"
    assert pick_accelerator(machine, memory, {"VM_ACCEL": "tcg"}) == "tcg"
    with pytest.raises(PreparationError, match="VM_ACCEL is 'xen'"):
        pick_accelerator(machine, memory, {"VM_ACCEL": "xen"})


def test_the_guest_sees_the_checkout_as_it_was(tmp_path: Path) -> None:
    root, tree = tmp_path / "checkout", tmp_path / "tree"
    (root / ".git").mkdir(parents=True)
    (root / "tests").mkdir()
    (root / "tests/file").write_text("before")
    os.utime(root / "tests/file", ns=(1, 1))
    (root / "link").symlink_to("tests")
    copy_checkout(root, tree)
    (root / "tests/file").write_text("after")
    copy = tree / root.relative_to("/")
    assert (copy / "link/file").read_text() == "before"
    assert (copy / "tests/file").stat().st_mtime_ns == 1
    assert (copy / "link").is_symlink()
    assert not (copy / ".git").exists()


@pytest.mark.parametrize("script", ["init.sh", "guest.sh"])
def test_scripts_parse(script: str) -> None:
    subprocess.run(["bash", "-n", HERE / script], check=True, timeout=30)
