"""The client half starts fast, and off Linux."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

#: Of this half, only these need the engine.
_ENGINE = ("embedded", "locallink", "localstream")

#: What no Python off Linux has, or what takes longer to load than all of ours.
_BLOCKED = (
    *("lxml", "pyudev", "asyncio", "click", "rich", "ctypes", "inspect", "dataclasses"),
    *("fcntl", "pwd", "grp", "termios", "resource", "syslog", "posix1e", "logging", "subprocess"),
    *("urllib", "ssl", "tempfile", "pathlib", "multiprocessing", "concurrent"),
)


def names() -> list[str]:
    return [
        f"storaged.{folder}.{path.stem}".removesuffix(".__init__")
        for folder in ("rpc", "client", "libvirt")
        for path in sorted((ROOT / "storaged" / folder).glob("*.py"))
        if path.stem not in _ENGINE and not path.stem.startswith("engine")
    ]


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_heavy_is_loaded() -> None:
    modules = names()
    assert {"storaged.client.socketlink", "storaged.client.opening", "storaged.rpc.xdr"} <= {
        *modules
    }
    python(
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({_BLOCKED!r}))\n"
        "from importlib import import_module\n"
        f"for name in {modules!r}:\n"
        "    import_module(name)\n"
    )


def test_nothing_of_linux_is_used_while_loading() -> None:
    python(
        "import sys, socket, select, os\n"
        "for module, names in ((socket, ('AF_UNIX', 'MSG_DONTWAIT', 'SO_PEERCRED')),\n"
        "                      (select, ('poll', 'epoll')),\n"
        "                      (os, ('geteuid', 'getegid', 'fork', 'O_DIRECTORY'))):\n"
        "    for name in names:\n"
        "        delattr(module, name)\n"
        "from importlib import import_module\n"
        f"for name in {names()!r}:\n"
        "    import_module(name)\n"
    )


def test_start_is_fast() -> None:
    """Less than 60 ms, Python included, on a machine that starts Python alone in 12 ms."""
    modules = "storaged.client.opening, storaged.client.socketlink, storaged.client.sockets"
    if (ROOT / "storaged/libvirt/__init__.py").exists():
        modules += ", storaged.libvirt"
    python(f"import {modules}")  # now there is byte code
    ours = min(seconds(f"import {modules}") for _ in range(8))
    alone = min(seconds("pass") for _ in range(8))
    assert ours < 0.06 * max(1.0, alone / 0.012)


def seconds(code: str) -> float:
    """Return what a run of Python takes of a processor, whoever else wants it meanwhile."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environ = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environ, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
