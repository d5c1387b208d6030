"""Empty images of all formats, as qemu-img sees them."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from storaged.errors import OperationFailed, OperationInvalid, OperationUnsupported
from storaged.formats.errors import WrongPassphrase
from storaged.qsd import CREATABLE, Image, ImageFile, create, export
from tests.formats import qemu
from tests.qsd.images import MIB, Watched, made, needed, opened

pytestmark = needed

KINDS: list[tuple[str, dict[str, Any]]] = [
    ("parallels", {}),
    ("qcow", {}),
    ("qcow2", {"version": "v2"}),
    ("qcow2", {"preallocation": "metadata", "cluster-size": 4096, "lazy-refcounts": True}),
    ("qed", {}),
    ("vdi", {}),
    ("vdi", {"preallocation": "metadata"}),
    ("vhdx", {}),
    ("vhdx", {"subformat": "fixed"}),
    ("vmdk", {}),
    ("vmdk", {"subformat": "streamOptimized"}),
    ("vpc", {}),
    ("vpc", {"subformat": "fixed"}),
]
#: What qemu-img can check.
CHECKED = ("parallels", "qcow2", "qed", "vdi", "vhdx", "vmdk")


@pytest.mark.parametrize(("format", "options"), KINDS, ids=str)
def test_create(tmp_path: Path, format: str, options: dict[str, Any]) -> None:
    path = made(tmp_path / "i", format, 3 * MIB, **options)
    argv = ["qemu-img", "info", "--output=json", "-f", format]
    assert f'"virtual-size": {3 * MIB}' in qemu.run(*argv, path)
    if format in CHECKED:
        qemu.run("qemu-img", "check", "-q", "-f", format, path)
    blank = tmp_path / "blank"
    blank.touch()
    os.truncate(blank, 3 * MIB)
    qemu.run("qemu-img", "compare", "-q", "-f", format, "-F", "raw", path, blank)


def test_all_are_tried() -> None:
    assert {format for format, _ in KINDS} | {"luks"} == CREATABLE


@pytest.mark.parametrize("format", ["luks", "qcow2"])
@pytest.mark.slow
def test_encrypted(tmp_path: Path, format: str) -> None:
    path = tmp_path / "i"
    with opened(path) as file:
        create(file, format, MIB, secret=b"p\xc3\xa4ss", iter_time=10)
        image = Image(file, format, secret=b"p\xc3\xa4ss")
        with export(image) as disk:
            disk.pwrite(b"clear text" * 100, 512)
            assert disk.pread(10, 512) == b"clear text"
        with (
            pytest.raises(WrongPassphrase) as caught,
            export(Image(file, format, secret=b"wrong")),
        ):
            pass
        assert "wrong" not in str(caught.value)
        assert "xc3" not in repr(image)
    assert b"clear text" not in path.read_bytes()
    secret = "secret,id=s,data=p\u00e4ss"
    file_options = f"driver={format},file.filename={path}"
    key = "key-secret" if format == "luks" else "encrypt.key-secret"
    argv = ["qemu-io", "--object", secret, "--image-opts", f"{file_options},{key}=s"]
    done = subprocess.run([*argv, "-c", "read -v 512 10"], capture_output=True, timeout=60)
    assert b"clear.text" in done.stdout, done.stderr


def test_full_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "i"
    path.write_bytes(b"precious")
    with opened(path) as file, pytest.raises(OperationInvalid, match="not empty"):
        create(file, "vdi", MIB)
    assert path.read_bytes() == b"precious"


def test_what_is_not_made(tmp_path: Path) -> None:
    with opened(tmp_path / "i") as file:
        with pytest.raises(OperationUnsupported, match="'dmg' are not created"):
            create(file, "dmg", MIB)
        with pytest.raises(OperationUnsupported, match="'vdi' are not encrypted"):
            create(file, "vdi", MIB, secret=b"s")
        with pytest.raises(OperationFailed, match="Unsupported VDI image size"):
            create(file, "vdi", 1 << 60)
        with pytest.raises(OperationFailed, match="nonsense' is unexpected"):
            create(file, "vdi", MIB, {"nonsense": 1})
        assert os.fstat(file.fd).st_size == 0
    with opened(tmp_path / "i", writable=False) as file, pytest.raises(OperationFailed):
        create(file, "vdi", MIB)


def test_progress_is_not_made_up(tmp_path: Path) -> None:
    """The daemon counts a create as one step, which is no number of bytes."""
    job = Watched()
    with opened(tmp_path / "i") as file:
        create(file, "vdi", MIB, job=job)
    assert not job.told
    assert job.threads


def test_nameless_file(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDWR | os.O_TMPFILE, 0o600)
    create(ImageFile(fd, writable=True), "vdi", MIB)
    assert os.pread(fd, 3, 0) == b"<<<"
    os.close(fd)


def test_threads_side_by_side(tmp_path: Path) -> None:
    """Each operation has its own daemon and its own loop, on whichever thread."""
    failures: list[BaseException] = []

    def work(name: str) -> None:
        try:
            made(tmp_path / name, "vdi", MIB)
        except BaseException as err:
            failures.append(err)

    threads = [threading.Thread(target=work, args=(f"i{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert all((tmp_path / f"i{number}").stat().st_size for number in range(4))


@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser makes loop devices")
def test_block_device(tmp_path: Path) -> None:
    """It may hold old data, and is opened with what devices need."""
    file = tmp_path / "disk"
    file.write_bytes(b"old data" * (MIB // 2))
    made_device = subprocess.run(
        ["losetup", "--find", "--show", file], capture_output=True, text=True, timeout=60
    )
    if made_device.returncode:
        pytest.skip(f"no loop devices here: {made_device.stderr}")
    device = Path(made_device.stdout.strip())
    try:
        with opened(device) as block:
            create(block, "qcow2", MIB)
            with export(Image(block, "qcow2")) as disk:
                assert disk.pread(MIB, 0) == bytes(MIB)
                disk.pwrite(b"new", 512)
            with export(Image(block, "raw")) as disk:
                assert disk.size() == 4 * MIB
                disk.write_zeroes(2 * MIB, MIB)
                assert disk.pread(MIB, 2 * MIB) == bytes(MIB)
        assert qemu.run("qemu-img", "info", "-f", "qcow2", device).startswith("image: ")
    finally:
        subprocess.run(["losetup", "--detach", device], check=True, timeout=60)
