"""Somebody who works on a Ceph cluster beside us: a process of its own, with Ceph's bindings."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.ceph.child import Child
from tests.ceph.images import Image, Pool
from tests.kernel.programs import SYSTEM_PATH

_SCRIPT = Path(__file__).with_name("adminscript.py")

#: Seconds after which a call fails with `errno.ETIMEDOUT`, whatever is down.
_PATIENCE = 30

#: How the bindings of each thing are told to wait no longer.
_TIMEOUTS = ("client_mount_timeout", "rados_mon_op_timeout", "rados_osd_op_timeout")


class AdminError(Exception):
    """Ceph refused something, or could not do it.

    :param kind: the name of the bindings' exception, such as ``ImageBusy``.
    :param errno: its number, as of `errno`; 0 if it has none.
    """

    def __init__(self, kind: str, errno: int, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind
        self.errno = errno


@cache
def python_with_bindings() -> str | None:
    """Return the path of a Python that imports rados and rbd, None if there is none."""
    for name in ("/usr/bin/python3", shutil.which("python3", path=SYSTEM_PATH)):
        if name is not None and Path(name).exists():
            argv = [name, "-I", "-c", "import rados, rbd"]
            if subprocess.run(argv, capture_output=True, check=False).returncode == 0:
                return name
    return None


class Admin:
    """A client of a cluster, as a user, in a process of its own.

    What it reads and writes is bytes; names that are not UTF-8 have surrogates, as `os.fsdecode`
    gives them. Every failure of Ceph's is an `AdminError`. Threads may share it; one call is done
    at a time.

    :param options: Ceph's, such as ``{"rados_osd_op_timeout": "3"}``.
    """

    def __init__(
        self,
        conf: Path,
        log: Path,
        user: str = "client.admin",
        options: Mapping[str, str] | None = None,
    ) -> None:
        python = python_with_bindings()
        assert python is not None
        settings = {name: str(_PATIENCE) for name in _TIMEOUTS} | dict(options or {})
        self._lock = threading.Lock()
        self.child = Child(
            [python, "-I", os.fspath(_SCRIPT), os.fspath(conf), user, json.dumps(settings)],
            log=log,
            pipes=True,
            # images of format 1 can be made only so
            environment={"RBD_FORCE_ALLOW_V1": "1"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def connect(self) -> None:
        """Connect to the cluster, which all else needs.

        :raise AdminError: no monitor answers, or it refuses the user.
        """
        self.call(["cluster"], "connect")

    def close(self) -> None:
        """End it at once; what it had open is as a crash leaves it: close an image before."""
        self.child.kill()

    # the cluster

    def mon_command(self, prefix: str, **arguments: Any) -> str:
        """Ask the monitor, as ``ceph PREFIX ...`` does; return what that would print.

        :raise AdminError: it refuses, or does not answer in time.
        """
        return self._command("mon_command", [], prefix, arguments)

    def mon_json(self, prefix: str, **arguments: Any) -> Any:
        """Ask the monitor for something in JSON."""
        return json.loads(self.mon_command(prefix, format="json", **arguments))

    def osd_command(self, prefix: str, **arguments: Any) -> str:
        """Ask the OSD, as ``ceph tell osd.0 PREFIX ...`` does."""
        return self._command("osd_command", [0], prefix, arguments)

    def stats(self) -> dict[str, int]:
        """Return ``kb``, ``kb_used``, ``kb_avail`` and ``num_objects`` of the cluster."""
        answer: dict[str, int] = self.call(["cluster"], "get_cluster_stats")
        return answer

    def wait_for_latest_map(self) -> None:
        """Learn what has changed: pools, what is up, what is full."""
        self.call(["cluster"], "wait_for_latest_osdmap")

    # pools

    def create_pool(self, name: str, *, init: bool = True, pg_num: int = 8) -> Pool:
        """Create a RADOS pool; *init* is what ``rbd pool init`` does."""
        self.mon_command("osd pool create", pool=name, pg_num=pg_num)
        self.wait_for_latest_map()
        pool = self.pool(name)
        if init:
            pool.rbd("pool_init", True)
        return pool

    def delete_pool(self, name: str) -> None:
        """Delete a RADOS pool and all that is in it."""
        self.mon_command("osd pool delete", pool=name, pool2=name, yes_i_really_really_mean_it=True)
        self.wait_for_latest_map()

    def pools(self) -> list[str]:
        """Return the names of the RADOS pools."""
        names: list[str] = self.call(["cluster"], "list_pools")
        return names

    def pool(self, name: str, namespace: str = "") -> Pool:
        """Return a RADOS pool, or a namespace of one, that is there (nobody looks)."""
        return Pool(self, name, namespace)

    def image(self, pool: str, name: str, namespace: str = "") -> Image:
        """Return an image that is there (nobody looks)."""
        return Pool(self, pool, namespace).image(name)

    # the other process

    def call(self, on: list[Any], method: str, *args: Any, **named: Any) -> Any:
        """Call a method of Ceph's bindings; the script says what objects there are.

        :raise AdminError: it raised something.
        :raise AssertionError: the process is gone.
        """
        request = {
            "on": on,
            "method": method,
            "args": [_encoded(value) for value in args],
            "kwargs": {name: _encoded(value) for name, value in named.items()},
        }
        with self._lock:
            answer = self._ask(json.dumps(request).encode() + b"\n")
        if "error" in answer:
            raise AdminError(*answer["error"])
        return _decoded(answer["result"])

    def _ask(self, request: bytes) -> dict[str, Any]:
        requests, answers = self.child.process.stdin, self.child.process.stdout
        assert requests is not None
        assert answers is not None
        try:
            requests.write(request)
            requests.flush()
            line = answers.readline()
        except BrokenPipeError:
            line = b""
        assert line, f"the admin's process ended: {self.child.last_words()}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _command(
        self, method: str, first: list[Any], prefix: str, arguments: dict[str, Any]
    ) -> str:
        text = json.dumps({"prefix": prefix, **arguments})
        number, out, said = self.call(["cluster"], method, *first, text, b"")
        if number != 0:
            raise AdminError(prefix, abs(number), said)
        assert isinstance(out, bytes)
        return out.decode()


def _encoded(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, Pool):
        return {"pool": [value.name, value.namespace]}
    return value


def _decoded(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"bytes"}:
            return base64.b64decode(value["bytes"])
        return {key: _decoded(item) for key, item in value.items()}
    return [_decoded(item) for item in value] if isinstance(value, list) else value
