"""What capacity a volume may get, and the passphrases that come with the wish."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import storaged
from storaged.ensure import ensure_volume
from storaged.imaging import CloneOptions, ConvertOptions
from storaged.model import VolumeDef
from storaged.poolhandle import Pool
from storaged.storage import Storage
from tests.doubles import refused
from tests.storaged.conftest import Engine, driver_of, idle

MIB = 1 << 20
SECRET = b"correct horse battery staple"


@pytest.fixture
def pool(engine: Engine, storage: Storage) -> Pool:
    return engine.pool("p", "dir")


@pytest.fixture
def locked(pool: Pool) -> storaged.Volume:
    """An encrypted qcow2, whose data no native reader sees."""
    return pool.create("locked", 4 * MIB, format="qcow2", secret=SECRET)


def test_zeros_that_take_space_are_no_data(pool: Pool) -> None:
    """A block device, and a file over NFS 3, do not tell where their holes are."""
    volume = pool.create("plain", 12 * MIB, format="raw")
    Path(volume.path).write_bytes(b"x" * 5 * MIB + bytes(7 * MIB))
    with refused(8) as caught:
        volume.resize(4 * MIB, shrink=True)
    assert f"The smallest safe size is {5 * MIB} bytes" in (caught.value.advice or "")
    volume.resize(6 * MIB, shrink=True)
    assert volume.info().capacity == 6 * MIB


@pytest.mark.slow
def test_where_encrypted_data_end_cannot_be_told(pool: Pool, locked: storaged.Volume) -> None:
    attempts: tuple[Callable[[], None], ...] = (
        lambda: locked.resize("2 MiB", shrink=True),
        lambda: locked.resize("2 MiB", shrink=True, secret=SECRET),
    )
    for attempt in attempts:
        with refused(84) as caught:
            attempt()
        assert "it cannot be told where the data of volume 'locked' end" in str(caught.value)
        assert "--shrink --force" in (caught.value.advice or "")
    assert locked.info().capacity == 4 * MIB
    locked.resize("2 MiB", shrink=True, force=True, secret=SECRET)
    assert locked.info().capacity == 2 * MIB
    assert pool.clone(locked, "copy", format="raw", source_secret=SECRET).info().capacity == 2 * MIB


@pytest.mark.slow
def test_a_wrong_passphrase_is_one_error_for_all_formats(
    pool: Pool, locked: storaged.Volume
) -> None:
    raw = pool.clone(locked, "raw", format="raw", source_secret=SECRET, secret=SECRET)
    for volume in (locked, raw):
        text = f"Invalid secret: volume '{volume.name}': no key slot opens with this passphrase"
        with refused(65, text) as caught:
            pool.clone(volume, "copy", format="qcow2", source_secret=b"wrong")
        assert isinstance(caught.value, storaged.InvalidSecret)
        with refused(65, text):
            volume.convert(cluster_size=4096, secret=b"wrong", format="qcow2")
    assert sorted(pool.names()) == ["locked", "raw"]
    assert idle(pool)


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_no_secret_for_what_is_not_encrypted(pool: Pool, format: Any) -> None:
    plain = pool.create("plain", MIB, format=format)
    text = "invalid argument: a secret was given for volume 'plain', which is not encrypted"
    with refused(8, text):
        plain.resize("2 MiB", secret=SECRET)
    with refused(8, text):
        plain.resize(4096, secret=SECRET, shrink=True)
    assert plain.info().capacity == MIB
    # An ensure has a secret for the volume that it would make.
    wanted = VolumeDef("plain", 2 * MIB, format=format)
    assert ensure_volume(driver_of(pool), pool.ref, wanted, secret=SECRET).changed


def test_a_secret_is_bytes(pool: Pool) -> None:
    volume = pool.create("v", MIB, format="qcow2")
    text: Any = "text"
    attempts = (
        lambda: pool.create("new", MIB, secret=text),
        lambda: pool.clone(volume, "new", secret=text),
        lambda: pool.clone(volume, "new", source_secret=text),
        lambda: volume.convert(secret=text),
        lambda: volume.resize(MIB, secret=text),
        lambda: CloneOptions(source_secret=text),
        lambda: ConvertOptions(secret=text),
    )
    for attempt in attempts:
        with refused(8, "invalid argument: a secret must be bytes, not str") as caught:
            attempt()
        assert text not in (caught.value.advice or "").split()
    assert pool.names() == ["v"]
    assert idle(pool)


def test_a_size_is_told_before_anything_is_changed(pool: Pool) -> None:
    volume = pool.create("v", MIB)
    with Path(volume.path).open("r+b") as file:
        file.write(b"data")
    with refused(8, "invalid argument: can't shrink capacity below existing allocation") as caught:
        volume.resize(0, shrink=True)
    assert "The smallest safe size is" in (caught.value.advice or "")
    most = (1 << 63) - 1
    with refused(8, f"invalid argument: capacity {most + MIB} is above {most} bytes"):
        volume.resize(most, delta=True)
    assert volume.info().capacity == MIB
