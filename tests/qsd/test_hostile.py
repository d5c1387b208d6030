"""Hostile images in the daemon: no other file is opened, and every end is a clear error."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

import pytest

from storaged.errors import CommandFailed, OperationFailed, OperationUnsupported, StorageError
from storaged.qsd import FORMATS, Daemon, Image, export
from storaged.qsd import daemon as daemon_module
from tests.formats import qemu
from tests.formats.zoo import cases
from tests.formats.zoo_case import Case
from tests.qsd.images import MIB, children, image, made, needed, open_files, opened

pytestmark = needed

#: Becomes the daemon without any protection, traced: so its graph alone keeps it from opening.
TRACED = """
import os, sys
program = sys.argv[sys.argv.index("--") + 1:]
argv = ["strace", "-D", "-f", "-q", "-o", {log!r}, "-e", "trace=%file,connect,socket", *program]
os.execvp("strace", argv)
"""


@pytest.fixture
def traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where to find what the daemons have opened."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    script, log = tmp_path / "traced.py", tmp_path / "trace"
    script.write_text(TRACED.format(log=str(log)))
    monkeypatch.setattr(daemon_module, "_CONFINE", script)
    monkeypatch.setenv("PATH", os.environ["PATH"])
    monkeypatch.setattr(
        daemon_module, "environment", lambda _: {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
    )
    return log


def opens_only_itself(log: Path, *names: str) -> None:
    """None of *names* was touched, nor was any socket made. The log may be a little late."""
    end = time.monotonic() + 10
    while "+++ " not in (text := log.read_text()):
        assert time.monotonic() < end
        time.sleep(0.02)
    assert "/proc/self/fd/" in text
    assert "AF_INET" not in text
    for name in names:
        assert name not in text


def with_backing(path: Path, reference: str, *, data_file: str | None = None) -> Path:
    """Make a qcow2 whose header names something, which qemu-img does not open."""
    qemu.run("qemu-img", "create", "-q", "-f", "qcow2", path, "1M")
    qemu.run("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", reference, "-F", "raw", path)
    return path


@pytest.mark.parametrize(
    "reference",
    [
        "/etc/passwd",
        'json:{"driver":"file","filename":"/etc/passwd"}',
        "nbd://127.0.0.1:10809/x",
        "itself",
    ],
)
def test_backing_is_not_followed(tmp_path: Path, traced: Path, reference: str) -> None:
    path = tmp_path / "i"
    with_backing(path, str(path) if reference == "itself" else reference)
    with image(path, "qcow2", writable=False) as hostile, export(hostile) as disk:
        assert disk.pread(MIB, 0) == bytes(MIB)
        assert not [extent for extent in disk.map(0, MIB) if extent.data]
    opens_only_itself(traced, "/etc/passwd", str(path))


def test_data_file_is_not_followed(tmp_path: Path, traced: Path) -> None:
    path = tmp_path / "i"
    qemu.run("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path}/d", path, "1M")
    with (
        image(path, "qcow2", writable=False) as hostile,
        pytest.raises(OperationUnsupported, match="keeps its data in another file"),
        export(hostile),
    ):
        pass
    with (
        opened(path, writable=False) as file,
        opened(tmp_path / "d", writable=False) as data,
        export(Image(file, "qcow2", data_file=data)) as disk,
    ):
        assert disk.pread(512, 0) == bytes(512)
    opens_only_itself(traced, f"{tmp_path}/d")


@pytest.mark.parametrize("descriptor", ["plain", "hidden", "none"])
def test_extents_are_not_followed(tmp_path: Path, descriptor: str) -> None:
    """A vmdk without extents aborts the daemon; one that names others' files opens them."""
    path = tmp_path / "i"
    extents = "" if descriptor == "none" else 'RW 2048 FLAT "/etc/passwd" 0\n'
    text = f'# Disk DescriptorFile\nversion=1\ncreateType="monolithicFlat"\n{extents}'
    if descriptor == "hidden":
        data = bytearray(made(path, "vmdk", MIB).read_bytes())
        data[12:20] = bytes(8)  # the capacity: look into the descriptor
        data[512 : 512 + len(text)] = text.encode()
        path.write_bytes(data)
    else:
        path.write_text(text)
    with (
        image(path, "vmdk", writable=False) as hostile,
        pytest.raises(OperationUnsupported, match="not one sparse extent"),
        export(hostile),
    ):
        pass
    assert not children()


def test_daemon_that_aborts(tmp_path: Path) -> None:
    """Should an image kill it, that is one clear error. QEMU 7.2 stumbles over this one."""
    path = tmp_path / "i"
    text = '# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType="vmfs"\n'
    path.write_text(text.ljust(1024, "\n"))

    def look() -> None:
        with opened(path, writable=False) as file, Daemon("look", [file]) as daemon:
            node = {"driver": "file", "node-name": "f", "filename": daemon.path(file)}
            daemon.add({**node, "read-only": True})
            daemon.add({"driver": "vmdk", "node-name": "v", "file": "f", "read-only": True})
            daemon.execute("query-named-block-nodes")

    with pytest.raises(CommandFailed, match=r"(?s)fatal signal 6.*Assertion"):
        look()


def test_encrypted_without_its_header(tmp_path: Path) -> None:
    """It says that it is encrypted with LUKS, but has no LUKS header."""
    data = bytearray(made(tmp_path / "sound", "qcow2", MIB).read_bytes())
    data[32:36] = (2).to_bytes(4)
    path = tmp_path / "i"
    path.write_bytes(data)
    with (
        opened(path, writable=False) as file,
        pytest.raises(OperationFailed, match="cannot open an image of format 'qcow2'"),
        export(Image(file, "qcow2", secret=b"s")),
    ):
        pass


def test_formats_that_are_none(tmp_path: Path) -> None:
    with opened(tmp_path / "i") as file:
        for bad in ("vvfat", "nbd", "file", "json:{}", "", "blkdebug"):
            with pytest.raises(OperationUnsupported, match="not opened"), export(Image(file, bad)):
                pass
        raw = Image(file, "raw")
        for wrong in (
            Image(file, "vdi", backing=raw),
            Image(file, "vdi", data_file=file),
            Image(file, "qcow2", data_file=file),
            Image(file, "vdi", secret=b"s"),
        ):
            with pytest.raises(OperationUnsupported), export(wrong):
                pass
    assert not children()


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [case for case in cases() if case.format in FORMATS], ids=lambda case: case.name
)
def test_zoo(tmp_path: Path, case: Case) -> None:
    """Every inhabitant is a disk or an error of ours, in bounded time."""
    path = tmp_path / "i"
    path.write_bytes(case.data)
    started = time.monotonic()
    with (
        image(path, case.format, writable=False) as hostile,
        suppress(StorageError, OSError),
        export(hostile) as disk,
    ):
        (pid,) = children()
        named = {name for name in open_files(pid) if not name.endswith("(deleted)")}
        assert named <= {"/dev/null", str(path)}
        disk.pread(MIB, 0)
        list(disk.map(0, 16 * MIB))
    assert time.monotonic() - started < 20
