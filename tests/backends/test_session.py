"""A pool of an ordinary user."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from storaged.backend import Host
from storaged.errors import OperationInvalid, SystemFailure
from storaged.imaging import ConvertOptions, HeaderChange
from storaged.model import BackingStore, Permissions, VolumeDef
from tests.backends.conftest import make_pool, new_job
from tests.storaged.conftest import ordinary_directory as ordinary_directory

SESSION = Host(id="testhost", session=True)


def test_create_clone_delete(ordinary_directory: Path) -> None:
    pool = make_pool(ordinary_directory, host=SESSION)
    pool.backend.start(new_job())
    record = pool.create("disk", 1 << 20, permissions=Permissions(mode=0o640, owner=0, group=0))
    assert pool.backend._unnamed
    status = (ordinary_directory / "disk").stat()
    assert (status.st_uid, status.st_mode & 0o777) == (os.geteuid(), 0o640)
    clone = pool.clone("clone", record)
    pool.backend.hold(pool.backend.anchor())
    for one in (record, clone):
        pool.backend.delete(one, new_job())
    assert pool.names() == []


def test_files_of_others(ordinary_directory: Path) -> None:
    secret = ordinary_directory / "secret"
    secret.write_bytes(bytes(10))
    was = os.geteuid()
    os.seteuid(os.getuid())
    try:
        if os.getuid() == 0:
            os.chown(secret, 0, 0)
        secret.chmod(0)
    finally:
        os.seteuid(was)
    pool = make_pool(ordinary_directory, host=SESSION)
    record = pool.refresh()["secret"]
    owner = "root" if os.getuid() == 0 else secret.owner()
    assert record.problem == f"unreadable: owner {owner}, mode 0000"
    assert pool.backend.describe(record).capacity == 10
    pool.backend.plan(VolumeDef("other", 1))
    pool.backend.delete(record, new_job())  # the directory is the user's own
    assert pool.names() == []


@contextmanager
def as_root() -> Iterator[None]:
    """Be who started the tests again; a test that needs root is left out for others."""
    if os.getuid() != 0:
        pytest.skip("only root can make files of others")
    was = os.geteuid()
    os.seteuid(0)
    try:
        yield
    finally:
        os.seteuid(was)


def test_a_conversion_of_the_file_of_another(ordinary_directory: Path) -> None:
    """Only root could keep its owner, so it is said that it would be lost."""
    pool = make_pool(ordinary_directory, host=SESSION)
    disk = ordinary_directory / "disk"
    disk.write_bytes(b"content" * 1024)
    with as_root():
        os.chown(disk, 0, 0)
        disk.chmod(0o4755)
    record = pool.look("disk")
    options = ConvertOptions("qcow2")
    with pytest.raises(OperationInvalid, match="volume 'disk' belongs to root") as caught:
        pool.backend.rewrite(record, options, new_job())
    assert "--force" in (caught.value.advice or "")
    assert disk.stat().st_uid == 0
    assert pool.names() == ["disk"]
    made = pool.backend.rewrite(record, options, new_job(), force=True)
    assert made.format == "qcow2"
    status = disk.stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (os.geteuid(), 0o755)


def test_a_conversion_of_an_own_file(ordinary_directory: Path) -> None:
    pool = make_pool(ordinary_directory, host=SESSION)
    record = pool.create("disk", 1 << 20, permissions=Permissions(mode=0o640))
    before = (ordinary_directory / "disk").stat()
    pool.backend.rewrite(record, ConvertOptions("qcow2"), new_job())
    after = (ordinary_directory / "disk").stat()
    assert after.st_ino != before.st_ino
    assert (after.st_uid, after.st_gid, after.st_mode) == (
        before.st_uid,
        before.st_gid,
        before.st_mode,
    )


CHANGES: dict[str, Callable[..., Any]] = {
    "amend": lambda backend, record: backend.amend(record, HeaderChange(True), new_job()),
    "rebase": lambda backend, record: backend.rebase(record, None, new_job()),
    "rebase by force": lambda backend, record: backend.rebase(
        record, BackingStore("base", "raw"), new_job(), force=True
    ),
    "set_backing_format": lambda backend, record: backend.set_backing_format(
        record, "raw", new_job()
    ),
    "rewrite": lambda backend, record: backend.rewrite(record, ConvertOptions("raw"), new_job()),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_an_image_that_may_not_be_read(
    ordinary_directory: Path, change: Callable[..., Any]
) -> None:
    pool = make_pool(ordinary_directory, host=SESSION)
    pool.create("disk", 1 << 20, format="qcow2")
    (ordinary_directory / "disk").chmod(0)
    if os.geteuid() == 0:
        pytest.skip("root can read everything")
    with pytest.raises(SystemFailure, match="Permission denied") as caught:
        change(pool.backend, pool.look("disk"))
    assert caught.value.errno == errno.EACCES
