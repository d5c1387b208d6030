"""The examples of the documents run as they stand."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

import storaged
from storaged.backends import BUILTIN

TOP = Path(__file__).parent.parent
_BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def blocks(document: str) -> list[str]:
    return _BLOCK.findall((TOP / document).read_text())


@pytest.mark.parametrize("code", blocks("docs/library.md"))
def test_recipe_runs(code: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(code, "docs/library.md", "exec"), {"storaged": storaged, "root": tmp_path})
    assert not list(tmp_path.rglob(".storaged-*"))


def test_readme_session_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    library, names = blocks("README.md")
    exec(compile(library, "README.md", "exec"), {})
    assert "web1.qcow2" in capsys.readouterr().out
    exec(compile(names, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("images [2, ")


def test_readme_commands_run(tmp_path: Path) -> None:
    text = (TOP / "README.md").read_text()
    shutil.copy(TOP / "README.md", tmp_path)
    words = ("    storagectl ", "    storaged ", "    virsh ")
    lines = [line.strip() for line in text.splitlines() if line.startswith(words)]
    assert len(lines) >= 13
    shim = (
        f'storagectl() {{ "{sys.executable}" -m storaged.cli "$@"; }}\n'
        f'storaged() {{ "{sys.executable}" -m storaged.daemon "$@"; }}\n'
        'trap "kill \\$(cat try/run/virtstoraged.pid)" EXIT'
    )
    if shutil.which("virsh") is None:
        shim += "\nvirsh() { :; }"
    done = subprocess.run(
        ["bash", "-euc", "\n".join([shim, *lines])],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(TOP)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "web2.qcow2" in done.stdout
    assert "images" in done.stdout.splitlines()[-1]  # through the daemon
    assert not (tmp_path / "try/images/copy.raw").exists()


def test_backend_example_runs(tmp_path: Path) -> None:
    (code,) = blocks("docs/backends.md")
    assert code.count("\n") < 80
    names: dict[str, object] = {"__name__": "example"}
    exec(compile(code, "docs/backends.md", "exec"), names)
    backend = names["Ram"]
    with storaged.open(tmp_path, backends={"ram": backend}) as storage:  # type: ignore[dict-item]
        pool = storage.define_pool("<pool type='ram'><name>r</name></pool>")
        pool.start()
        volume = pool.create("a", 1 << 20)
        (tmp_path / "given").write_bytes(b"x" * 4096)
        volume.upload(tmp_path / "given", offset=8192)
        volume.resize(2 << 20)
        volume.download(tmp_path / "got")
        content = bytes(8192) + b"x" * 4096 + bytes((2 << 20) - 12288)
        assert (tmp_path / "got").read_bytes() == content
        assert volume.info().capacity == 2 << 20
        assert "<path>ram:r/a</path>" in volume.xml()
        with pytest.raises(storaged.VolumeExists):
            pool.create("a", 1)
        files = storage.ensure_dir_pool("d", tmp_path / "d")
        copy = files.clone(volume, "copy.qcow2", format="qcow2")
        assert copy.info().capacity == 2 << 20
        with pytest.raises(storaged.Unsupported, match="wiping"):
            volume.wipe()
        pool.refresh()
        assert pool.names() == ["a"]
        volume.delete()
        assert pool.names() == []
        with pytest.raises(storaged.StorageError):
            pool.create("b" * 250, 4096)  # memfd_create refuses such names
        assert pool.names() == []
        work_beside_refreshes(pool)
        pool.stop()


def work_beside_refreshes(pool: storaged.Pool) -> None:
    """Have volumes come and go under scans and looks: nothing but errors of ours may come of it."""

    def work(number: int) -> None:
        for _ in range(40):
            pool.create(f"v{number}", 4096).delete()

    with ThreadPoolExecutor(3) as threads:
        workers = [threads.submit(work, number) for number in range(3)]
        while not all(worker.done() for worker in workers):
            pool.refresh()
            for volume in pool.volumes():
                with suppress(storaged.NoSuchVolume, storaged.OperationInvalid):
                    volume.info()
        for worker in workers:
            worker.result()
    assert pool.names() == []


#: What every pool type's section tells, in this order.
_KEYS = ["Needs", "Source", "Target", "Operations", "Limits", "Differences from libvirt"]


@pytest.mark.parametrize("kind", BUILTIN)
def test_every_pool_type_is_described(kind: str) -> None:
    text = (TOP / "docs/backends.md").read_text()
    _, _, section = text.partition(f"\n### {kind}\n")
    section = re.split(r"\n##+ ", section)[0]
    assert re.findall(r"^- \*\*(.*?)\*\*:", section, re.MULTILINE) == _KEYS
    assert f"| `{kind}` | `" in text
