"""The kernel's table of mounts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged import mounts
from storaged.errors import StorageError

#: a plain mount, one with every odd thing, one without optional fields, and two broken lines
SAMPLE = rb"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,errors=remount-ro
36 22 0:33 /sub\040dir /mnt/a\040b\134c ro,nosuid master:1 unbindable - nfs4 server:/x\011y hard
40 22 0:40 / /mnt/plain rw - tmpfs tmpfs rw
garbage
41 22 0:41 / /short rw -
"""


def test_parse() -> None:
    root, nfs, plain = mounts.parse(SAMPLE)
    assert (root.id, root.parent, root.device, root.type) == (22, 1, "254:0", "ext4")
    assert (nfs.root, nfs.point, nfs.source) == ("/sub dir", "/mnt/a b\\c", "server:/x\ty")
    assert nfs.options == ("ro", "nosuid")
    assert [one.read_only for one in (root, nfs, plain)] == [False, True, False]
    assert plain.super_options == ("rw",)


def test_carriage_return_in_a_name() -> None:
    """The kernel writes it as it is."""
    line = b"36 22 0:33 / /mnt/a\rb rw - tmpfs tmpfs rw\n"
    assert [mount.point for mount in mounts.parse(line)] == ["/mnt/a\rb"]


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_parse_is_total(text: bytes) -> None:
    for mount in mounts.parse(text + b"\n1 2 3 " + text + b" - " + text):
        assert isinstance(mount.point, str)


def test_this_machine(tmp_path: Path) -> None:
    everything = mounts.mounts()
    assert any(mount.point == "/" for mount in everything)
    for path, is_point in ((tmp_path, False), (Path("/proc"), True)):
        fd = os.open(path, os.O_RDONLY)
        try:
            mount = mounts.mount_of(fd)
            assert mount in everything
            assert path.is_relative_to(mount.point)
            assert mounts.is_mount_point(fd, mount) is is_point
        finally:
            os.close(fd)


def test_no_such_descriptor() -> None:
    with pytest.raises(StorageError):
        mounts.mount_of(10**6)
