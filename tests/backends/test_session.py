"""A pool of an ordinary user."""

from __future__ import annotations

import os
from pathlib import Path

from storaged.backend import Host
from storaged.model import Permissions, VolumeDef
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
