"""Programs that end and leave everything open."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.daemon.running import storaged_daemon
from tests.libvirt.conftest import PROJECT

LEAVE = """
import sys
from storaged import libvirt
libvirt.virEventRegisterDefaultImpl()
conn = libvirt.open(sys.argv[1])
xml = f"<pool type='dir'><name>p</name><target><path>{sys.argv[2]}</path></target></pool>"
pool = conn.storagePoolCreateXML(xml)
conn.storagePoolEventDeregisterAny(conn.storagePoolEventRegisterAny(None, 0, print, None))
volume = pool.createXML("<volume><name>v</name><capacity>1048576</capacity></volume>")
stream = conn.newStream()
volume.upload(stream, 0, 0)
stream.send(b"kept")
cycle = [conn, pool, volume, stream]
cycle.append(cycle)  # which only the last garbage collection takes apart
print("end")
"""


@pytest.mark.parametrize("embedded", [False, True])
def test_exit_waits_for_nothing(tmp_path: Path, embedded: bool) -> None:
    with storaged_daemon(tmp_path / "d") as daemon:
        uri = f"storage:///embed?root={tmp_path}/root" if embedded else daemon.uri()
        begun = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", LEAVE, uri, str(tmp_path)],
            capture_output=True,
            text=True,
            cwd=PROJECT,
            timeout=60,
        )
        taken = time.monotonic() - begun
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")
    assert (tmp_path / "v").read_bytes()[:4] == b"kept"
    assert taken < 4.5  # a good-bye that nobody answers would take five
