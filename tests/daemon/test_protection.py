"""``protect_backing``: whether libvirt's clients may delete what other volumes need."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storaged import libvirt
from tests.daemon.running import configure, storaged_daemon
from tests.doubles import eventually

POOL = "<pool type='dir'><name>p</name><target><path>{}</path></target></pool>"
BASE = "<volume><name>base</name><capacity>4096</capacity></volume>"
TOP = """<volume><name>top</name><capacity>4096</capacity><target><format type='qcow2'/></target>
    <backingStore><path>{}</path><format type='raw'/></backingStore></volume>"""


def reload(pid: int, log: Callable[[], str]) -> None:
    times = log().count("were read again")
    os.kill(pid, signal.SIGHUP)
    eventually(lambda: log().count("were read again") > times)


def refusal(volume: Any) -> int | None:
    """Delete a volume; return the code of the error if there was one."""
    try:
        volume.delete(0)
    except libvirt.libvirtError as err:
        return err.get_error_code()
    return None


@pytest.mark.slow
def test_protect_backing(tmp_path: Path) -> None:
    target = tmp_path / "images"
    target.mkdir()
    configure(tmp_path, "protect_backing = 1\n")
    with storaged_daemon(tmp_path, "--verbose") as daemon:
        connection = libvirt.open(daemon.uri())
        pool = connection.storagePoolCreateXML(POOL.format(target), 0)
        base = pool.createXML(BASE, 0)
        pool.createXML(TOP.format(base.path()), 0)
        assert refusal(base) == libvirt.VIR_ERR_OPERATION_INVALID
        assert (target / "base").exists()
        configure(tmp_path, "")
        reload(daemon.pid, lambda: daemon.log)
        assert refusal(base) is None
        assert not (target / "base").exists()
        del base, pool  # they keep the connection open
        connection.close()
