"""What a program can and cannot do that was shut in, with every Python that may start it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from storaged.qsd import confine

SYSTEM_PYTHON = "/usr/bin/python3"
PYTHONS = sorted({sys.executable, SYSTEM_PYTHON})
NOBODY = 65534

pytestmark = pytest.mark.skipif(
    not Path(SYSTEM_PYTHON).exists(), reason="the programs that are shut in need a Python in /usr"
)

#: Tries what is written in its first argument and prints how each try ended.
PROBE = """
import ctypes, errno, json, os, resource, socket, sys
def tried(act):
    try:
        act()
    except OSError as err:
        return errno.errorcode[err.errno]
    return "done"
def capabilities():
    sets = (ctypes.c_uint * 6)()
    ctypes.CDLL(None).capget((ctypes.c_uint * 2)(0x20080522, 0), sets)
    return list(sets)
order = json.loads(sys.argv[1])
opened = {name: tried(lambda: os.open(name, flags)) for name, flags in order["open"].items()}
print(json.dumps({
    "open": opened,
    "capabilities": capabilities(),
    "bounding": [n for n in range(41) if ctypes.CDLL(None).prctl(23, n, 0, 0, 0) == 1],
    "tcp": tried(lambda: socket.create_connection(("127.0.0.1", order["port"]), 2)),
    "unix": tried(lambda: socket.socket(socket.AF_UNIX).connect(order["socket"])),
    "uring": ctypes.CDLL(None).syscall(425, 1, None),
    "list": tried(lambda: os.listdir("/")),
    "make": tried(lambda: os.open(order["folder"] + "/new", os.O_CREAT | os.O_WRONLY)),
    "limits": {n: resource.getrlimit(getattr(resource, "RLIMIT_" + n)) for n in order["limits"]},
}))
"""


def run(
    python: str, *arguments: str, keep: tuple[int, ...] = (), user: int | None = None
) -> subprocess.CompletedProcess[str]:
    # by a descriptor: another user may not reach the checkout
    with Path(confine.__file__).open() as script:
        argv = [python, "-I", "-S", f"/proc/self/fd/{script.fileno()}", *arguments]
        return subprocess.run(
            argv,
            pass_fds=(*keep, script.fileno()),
            capture_output=True,
            text=True,
            timeout=60,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
        )


def probe(tmp_path: Path, python: str, user: int | None = None) -> dict[str, Any]:
    """Shut the probe in with a file to read, one to write, and one that it may not have."""
    fds = {}
    for name in ("read", "write", "other"):
        path = tmp_path / name
        path.touch()
        path.chmod(0o666)
        fds[name] = os.open(path, os.O_RDWR)
    numbered = {name: f"/proc/self/fd/{fd}" for name, fd in fds.items()}
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "socket"))
        unix.listen()
        order = {
            "open": {
                numbered["read"]: os.O_RDONLY,
                numbered["write"]: os.O_RDWR,
                numbered["other"]: os.O_RDONLY,
                "/etc/passwd": os.O_RDONLY,
                "/usr/bin/env": os.O_RDONLY,
                "/proc/self/status": os.O_RDONLY,
            },
            "port": tcp.getsockname()[1],
            "socket": unix.getsockname(),
            "folder": str(tmp_path),
            "limits": ["CORE", "NOFILE"],
        }
        options = ["--read", str(fds["read"]), "--write", str(fds["write"])]
        options += ["--limit", "CORE=0", "--limit", "NOFILE=40", "--parent", str(os.getpid())]
        program = [SYSTEM_PYTHON, "-I", "-S", "-c", PROBE, json.dumps(order)]
        keep = tuple(fds.values())
        result = run(python, *options, "--", *program, keep=keep, user=user)
    for fd in fds.values():
        os.close(fd)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    found["open"] = {
        **{name: found["open"][path] for name, path in numbered.items()},
        **{path: how for path, how in found["open"].items() if "/fd/" not in path},
    }
    return {**found, "said": result.stderr}


def is_shut_in(found: dict[str, Any]) -> None:
    if confine.LACKING in found["said"]:
        pytest.skip(f"the kernel does not have it all: {found['said']}")
    assert found["open"] == {
        "read": "done",
        "write": "done",
        "other": "EACCES",
        "/etc/passwd": "EACCES",
        "/usr/bin/env": "done",
        "/proc/self/status": "EACCES",
    }
    assert (found["tcp"], found["unix"]) == ("EPERM", "EPERM")
    assert found["uring"] == -1
    assert (found["list"], found["make"]) == ("EACCES", "EACCES")
    assert found["limits"] == {"CORE": [0, 0], "NOFILE": [40, 40]}


@pytest.mark.parametrize("python", PYTHONS)
def test_shut_in(tmp_path: Path, python: str) -> None:
    found = probe(tmp_path, python)
    is_shut_in(found)
    kept = 0 if os.geteuid() else 1 << 1  # CAP_DAC_OVERRIDE
    assert found["capabilities"] == [kept, kept, 0, 0, 0, 0]
    if not os.geteuid():
        assert found["bounding"] == [1]


@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser can become another user")
def test_ordinary_user(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    found = probe(tmp_path, SYSTEM_PYTHON, NOBODY)
    is_shut_in(found)
    assert found["capabilities"] == [0] * 6


def test_parent_has_gone() -> None:
    result = run(SYSTEM_PYTHON, "--parent", "1", "--", "/usr/bin/env")
    assert (result.returncode, result.stdout) == (confine.REFUSED, "")
    assert result.stderr.endswith("who started it has gone\n")


def test_no_such_program() -> None:
    result = run(SYSTEM_PYTHON, "--parent", str(os.getpid()), "--", "/usr/bin/no-such")
    assert result.returncode == confine.REFUSED
    assert "cannot run /usr/bin/no-such: No such file" in result.stderr


def test_dies_with_who_started_it() -> None:
    code = (
        "import os, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-I', '-S', sys.argv[1], '--parent',"
        " str(os.getpid()), '--', '/usr/bin/sleep', '60'])\n"
        "print(child.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    argv = [SYSTEM_PYTHON, "-c", code, confine.__file__]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = Path("/proc") / parent.stdout.readline().decode().strip()
        wait_until(lambda: (child / "comm").read_text() == "sleep\n")
        parent.send_signal(signal.SIGKILL)
    wait_until(lambda: not child.exists() or "State:\tZ" in (child / "status").read_text())


def wait_until(true: Any) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_order() -> None:
    words = "--parent 5 --read 3 --write 4 --read 6 --limit AS=9 -- prog -- x"
    order = confine.Order(words.split())
    assert (order.parent, order.reads, order.writes) == (5, [3, 6], [4])
    assert (order.limits, order.program) == ([["AS", "9"]], ["prog", "--", "x"])
    for bad, why in (
        ("--parent 5", "not in list"),
        ("-- prog", "not enough values"),
        ("--parent 5 --read -- prog", "shorter"),
        ("--parent x -- prog", "invalid literal"),
    ):
        with pytest.raises(ValueError, match=why):
            confine.Order(bad.split())
