"""Names, numbers and signatures, compared with those of the real libvirt-python."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from storaged import libvirt

PROJECT = Path(__file__).parents[2]
CLASSES = ("virConnect", "virStoragePool", "virStorageVol", "virSecret", "virStream")
FUNCTIONS = ("open", "openReadOnly", "openAuth", "getVersion", "registerErrorHandler")
PREFIXES = ("STORAGE", "SECRET", "STREAM", "ERR", "WAR", "FROM", "CRED", "EVENT", "CONNECT")

ASK = """
import inspect, json, libvirt
def parameters(function):
    return [[p.name, None if p.default is p.empty else repr(p.default)]
            for p in inspect.signature(function).parameters.values()]
functions = [n for n in dir(libvirt) if n.startswith(("vir", "open")) or n in %r]
print(json.dumps({
    "constants": {n: getattr(libvirt, n) for n in dir(libvirt) if n.startswith("VIR_")},
    "classes": {c: {n: parameters(f) for n, f in vars(getattr(libvirt, c)).items()
                    if inspect.isfunction(f)} for c in %r},
    "functions": {n: parameters(getattr(libvirt, n)) for n in functions
                  if inspect.isfunction(getattr(libvirt, n))},
}))
"""


@pytest.fixture(scope="module")
def real() -> dict[str, Any]:
    done = subprocess.run(
        ["/usr/bin/python3", "-c", ASK % (FUNCTIONS, CLASSES)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip("python3-libvirt is not installed")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def parameters(function: Any) -> list[list[str | None]]:
    return [
        [each.name, None if each.default is each.empty else repr(each.default)]
        for each in inspect.signature(function).parameters.values()
    ]


def test_constants(real: dict[str, Any]) -> None:
    ours = {name: value for name, value in vars(libvirt).items() if name.startswith("VIR_")}
    wanted = re.compile(rf"VIR_({'|'.join(PREFIXES)})_")
    theirs = {name: value for name, value in real["constants"].items() if wanted.match(name)}
    assert ours == theirs


@pytest.mark.parametrize("kind", CLASSES)
def test_methods(real: dict[str, Any], kind: str) -> None:
    ours = getattr(libvirt, kind)
    for name, wanted in real["classes"][kind].items():
        if name.startswith("_dispatch") or name == "__init__":
            continue
        method = getattr(ours, name)  # all are there
        if "refuse" not in method.__code__.co_name:
            assert parameters(method) == wanted, name


def test_functions(real: dict[str, Any]) -> None:
    for name, wanted in real["functions"].items():
        if not (name.startswith("virEvent") and name[8:9].islower()):
            assert parameters(getattr(libvirt, name)) == wanted, name


def test_error_prints(real: dict[str, Any], tmp_path: Path) -> None:
    code = """
try: libvirt.open("storage:///system?socket=/nonexistent")
except libvirt.libvirtError as err: print(err.err)
"""
    told = []
    for python, module in (
        (sys.executable, "from storaged import libvirt"),
        ("/usr/bin/python3", "import libvirt"),
    ):
        done = subprocess.run(
            [python, "-c", module + code], capture_output=True, text=True, cwd=PROJECT
        )
        told.append((done.stdout, done.stderr))
    assert told[0] == told[1]
    assert told[0][1].startswith("libvirt: XML-RPC error : Failed to connect socket")


def test_import_is_light() -> None:
    code = "import sys; from storaged import libvirt; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT
    )
    heavy = {"lxml", "pyudev", "asyncio", "click", "rich", "fcntl", "pwd", "grp", "logging"}
    heavy |= {"subprocess", "storaged.driver", "ctypes"}
    assert not heavy & set(done.stdout.split())


SAMPLE = """
from storaged import libvirt

def paths(conn: libvirt.virConnect) -> list[str]:
    pool: libvirt.virStoragePool = conn.storagePoolLookupByName("images")
    volume = pool.createXML("<volume/>", libvirt.VIR_STORAGE_VOL_CREATE_PREALLOC_METADATA)
    stream = conn.newStream(libvirt.VIR_STREAM_NONBLOCK)
    volume.upload(stream, 0, 0)
    size: int = stream.send(b"data")
    state: list[int] = pool.info()
    return [each.path() for each in pool.listAllVolumes()] + [str(size + state[0])]

try:
    with libvirt.open("storage:///system") as conn:
        paths(conn)
except libvirt.libvirtError as err:
    code: int | None = err.get_error_code()
"""


@pytest.mark.slow
def test_typed(tmp_path: Path) -> None:
    sample = tmp_path / "sample.py"
    sample.write_text(SAMPLE)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--config-file",
            "/dev/null",
            "--cache-dir",
            str(tmp_path / "cache"),
            "--follow-imports",
            "silent",
            str(sample),
        ],
        capture_output=True,
        text=True,
        cwd=PROJECT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
