"""Secrets in libvirt's files, where no daemon keeps them."""

from __future__ import annotations

import errno
import os
import threading
from base64 import b64encode
from dataclasses import replace

import pytest

from storaged.backend import SecretUsage
from storaged.driver import Driver, open_driver
from storaged.driverlock import DriverLock, EngineKind
from storaged.errors import (
    InternalError,
    InvalidArgument,
    InvalidSecret,
    NoSuchSecret,
    OperationInvalid,
    SystemFailure,
)
from storaged.model import SecretRef
from storaged.paths import Paths
from storaged.rpc.identity import Identity
from storaged.secrets import KeptSecrets, SecretChange, SecretEvent, SecretFilter, SecretKind
from storaged.secrets.document import parse_secret
from storaged.secrets.files import SecretFiles
from storaged.secrets.local import LocalSecrets
from tests.secrets.conftest import document, numbered


def names(paths: Paths) -> list[str]:
    return sorted(path.name for path in paths.secrets.iterdir())


def test_a_life(driver: Driver, paths: Paths) -> None:
    heard: list[SecretEvent] = []
    driver.secret_events.subscribe(heard.append)
    secret = driver.secret_define_xml(document(1, "/a"))
    assert driver.secrets() == [secret]
    with pytest.raises(NoSuchSecret, match=f"secret '{secret.uuid}' does not have a value"):
        driver.secret_value(secret.uuid)
    driver.secret_set_value(secret.uuid, b"one")
    driver.secret_set_value(secret.uuid, b"\0two\n")
    assert driver.secret_value(secret.uuid) == b"\0two\n"
    assert driver.secret_lookup_by_usage(SecretKind.VOLUME, "/a") == secret
    driver.secret_undefine(secret.uuid)
    assert driver.secrets() == []
    assert names(paths) == []
    assert [event.change for event in heard] == [
        SecretChange.DEFINED,
        SecretChange.VALUE_CHANGED,
        SecretChange.VALUE_CHANGED,
        SecretChange.UNDEFINED,
    ]
    assert {event.secret for event in heard} == {secret}


def test_files_are_for_their_owner_alone(driver: Driver, paths: Paths) -> None:
    was = os.umask(0)
    try:
        driver.secret_define_xml(document(1))
        driver.secret_set_value(numbered(1), b"x")
    finally:
        os.umask(was)
    assert paths.secrets.stat().st_mode & 0o777 == 0o700
    assert paths.secrets_state.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in paths.secrets.iterdir()} == {0o600}


def test_private_ones_are_told_to_daemons_and_volumes_only(
    driver: Driver, kept: KeptSecrets
) -> None:
    secret = driver.secret_define_xml(document(1, "/a", private=True))
    driver.secret_set_value(secret.uuid, b"x")
    with pytest.raises(InvalidSecret, match=r"^Invalid secret: secret is private$"):
        driver.secret_value(secret.uuid)
    with pytest.raises(InvalidSecret):
        driver.secret_value(secret.uuid, caller=Identity(uid=0, trusted=True))
    assert driver.secret_value(secret.uuid, caller=Identity(elevated=True)) == b"x"
    assert kept.value(SecretUsage.VOLUME, SecretRef(uuid=secret.uuid)) == b"x"
    with pytest.raises(InvalidArgument, match="is of type 'volume' not expected 'ceph' type"):
        kept.value(SecretUsage.CEPH, SecretRef(uuid=secret.uuid))
    with pytest.raises(NoSuchSecret):
        kept.value(SecretUsage.CEPH, SecretRef(usage="/a"))


def test_ephemeral_ones_touch_no_disk(paths: Paths) -> None:
    with open_driver(paths) as driver:
        secret = driver.secret_define_xml(document(1, "/a", ephemeral=True))
        driver.secret_set_value(secret.uuid, b"x")
        assert driver.secret_value(secret.uuid) == b"x"
        assert not paths.secrets.exists()
        assert driver.secrets(SecretFilter.NO_EPHEMERAL) == []
    with open_driver(paths) as driver:
        assert driver.secrets() == []


def test_to_the_disk_and_back(paths: Paths) -> None:
    with open_driver(paths, kind=EngineKind.DAEMON) as driver:
        driver.secret_define_xml(document(1, "/a", ephemeral=True))
        driver.secret_set_value(numbered(1), b"x")
        assert driver.is_needed()
        driver.secret_define_xml(document(1, "/a"))
        assert names(paths) == [f"{numbered(1)}.base64", f"{numbered(1)}.xml"]
        assert driver.secret_value(numbered(1)) == b"x"
        assert not driver.is_needed()
        driver.secret_define_xml(document(1, "/a", ephemeral=True))
        assert names(paths) == []
        assert driver.secret_value(numbered(1)) == b"x"


def test_a_program_that_ends_takes_no_secret_from_the_disk(driver: Driver, paths: Paths) -> None:
    driver.secret_define_xml(document(1, "/a"))
    driver.secret_set_value(numbered(1), b"x")
    with pytest.raises(OperationInvalid, match="would end with this process"):
        driver.secret_define_xml(document(1, "/a", ephemeral=True))
    assert driver.secret_value(numbered(1)) == b"x"
    assert names(paths) == [f"{numbered(1)}.base64", f"{numbered(1)}.xml"]


def test_a_value_for_what_has_gone(paths: Paths) -> None:
    """Another thread undefined the secret between its look-up and its value."""
    files = SecretFiles(paths.secrets, durable=False)
    for ephemeral in (False, True):
        local = LocalSecrets(files)
        secret = parse_secret(document(1, "/a", ephemeral=ephemeral))
        local.define(secret)
        local.undefine(secret)
        with pytest.raises(NoSuchSecret):
            local.set_value(secret, b"x")
        with pytest.raises(NoSuchSecret):
            local.undefine(secret)
        assert names(paths) == []


def test_what_becomes_ephemeral_keeps_its_value_in_a_failure(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = LocalSecrets(SecretFiles(paths.secrets, durable=False))
    local.define(parse_secret(document(1, "/a")))
    local.set_value(parse_secret(document(1, "/a")), b"x")

    def refuse(*_: object) -> None:
        raise SystemFailure("no", errno.EIO)

    ephemeral = parse_secret(document(1, "/a", ephemeral=True))
    for step in ("remove_definition", "remove_value"):
        with monkeypatch.context() as patched:
            patched.setattr(SecretFiles, step, refuse)
            with pytest.raises(SystemFailure):
                local.define(ephemeral)
        assert local.value(ephemeral) == b"x"


def test_one_thing_has_one_secret(driver: Driver) -> None:
    driver.secret_define_xml(document(1, "/a"))
    driver.secret_define_xml(
        f"<secret><uuid>{numbered(2)}</uuid><usage type='ceph'><name>/a</name></usage></secret>"
    )
    with pytest.raises(InternalError, match="already defined for use with /a"):
        driver.secret_define_xml(
            f"<secret><uuid>{numbered(2)}</uuid><usage type='volume'><volume>/a</volume></usage>"
            "</secret>"
        )
    assert driver.secret_lookup_by_uuid(numbered(2)).usage is SecretKind.CEPH


def test_files_that_cannot_be_used_are_named_and_left_alone(paths: Paths) -> None:
    paths.secrets.mkdir(parents=True)
    good = paths.secrets / f"{numbered(1)}.xml"
    good.write_text(document(1))
    bad = {
        f"{numbered(2)}.xml": b"<secret",
        f"{numbered(3)}.xml": document(4).encode(),
        "x.xml": b"",
        f"{numbered(5)}.xml": b"\0" * 2_000_000,
    }
    for name, data in bad.items():
        (paths.secrets / name).write_bytes(data)
    (paths.secrets / f"{numbered(6)}.xml").symlink_to(good)
    os.mkfifo(paths.secrets / f"{numbered(7)}.xml")
    (paths.secrets / f"{numbered(1)}.base64").write_text("!" + b64encode(b"MARKER").decode())
    with open_driver(paths) as driver:
        assert [secret.uuid for secret in driver.secrets()] == [numbered(1)]
        assert len(driver.problems()) == 6
        assert all(str(paths.secrets) in problem for problem in driver.problems())
        with pytest.raises(InternalError, match="invalid base64 in ") as caught:
            driver.secret_value(numbered(1))
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None
    for name, data in bad.items():
        assert (paths.secrets / name).read_bytes() == data


def test_what_others_change_is_seen_at_once(kept: KeptSecrets, paths: Paths) -> None:
    assert kept.find(SecretUsage.VOLUME, "/a") is None
    paths.secrets.mkdir(parents=True)
    for number in range(1, 20):
        new = paths.secrets / "new"
        new.write_text(document(number, f"/{number}"))
        new.rename(paths.secrets / f"{numbered(number)}.xml")
        assert kept.find(SecretUsage.VOLUME, f"/{number}") == numbered(number)
        assert kept.find(SecretUsage.VOLUME, f"/{number - 1}") is None
        (paths.secrets / f"{numbered(number)}.xml").unlink()
    (paths.secrets / f"{numbered(1)}.base64").write_text("eA==\n")
    (paths.secrets / f"{numbered(1)}.xml").write_text(document(1, "/a"))
    assert kept.value(SecretUsage.VOLUME, SecretRef(usage="/a")) == b"x"


def test_an_edit_in_place_is_seen(kept: KeptSecrets, paths: Paths) -> None:
    paths.secrets.mkdir(parents=True)
    file = paths.secrets / f"{numbered(1)}.xml"
    file.write_text(document(1, "/a"))
    os.utime(file, ns=(0, 10**18))  # it was not made just now
    for use in ("/a", "/b", "/c"):
        with file.open("r+") as opened:
            opened.write(document(1, use))
        assert kept.find(SecretUsage.VOLUME, use) == numbered(1)
        os.utime(file, ns=(0, 10**18 + ord(use[1])))
        assert kept.find(SecretUsage.VOLUME, use) == numbered(1)
    with file.open("r+") as opened:
        opened.write("!")
    assert kept.find(SecretUsage.VOLUME, "/c") is None
    (problem,) = kept.problems()
    assert file.name in problem


def test_two_files_for_one_thing(paths: Paths) -> None:
    """The second is refused, as by libvirt."""
    paths.secrets.mkdir(parents=True)
    for number in (2, 1):
        (paths.secrets / f"{numbered(number)}.xml").write_text(document(number, "/a"))
    (paths.secrets / f"{numbered(3)}.xml").write_text(document(3))
    (paths.secrets / f"{numbered(4)}.xml").write_text(document(4))
    with open_driver(paths) as driver:
        assert {secret.uuid for secret in driver.secrets()} == {
            numbered(number) for number in (1, 3, 4)
        }
        assert driver.secret_lookup_by_usage(SecretKind.VOLUME, "/a").uuid == numbered(1)
        assert driver.problems() == (
            f"{paths.secrets}/{numbered(2)}.xml: a secret with UUID {numbered(1)}"
            " already defined for use with /a",
        )
        driver.secret_undefine(numbered(1))
        assert driver.secret_lookup_by_usage(SecretKind.VOLUME, "/a").uuid == numbered(2)
        assert driver.problems() == ()


def test_a_failure_leaves_what_was_there(driver: Driver, paths: Paths) -> None:
    driver.secret_define_xml(document(1, "/a", ephemeral=True))
    driver.secret_set_value(numbered(1), b"x")
    paths.secrets.parent.mkdir(parents=True, exist_ok=True)
    paths.secrets.write_bytes(b"in the way")
    with pytest.raises(SystemFailure):
        driver.secret_lookup_by_uuid(numbered(1))
    paths.secrets.unlink()
    paths.secrets.mkdir()
    (paths.secrets / f"{numbered(1)}.base64").mkdir()  # the value cannot be written
    with pytest.raises(SystemFailure):
        driver.secret_define_xml(document(1, "/a"))
    assert names(paths) == [f"{numbered(1)}.base64"]
    assert driver.secret_lookup_by_uuid(numbered(1)).ephemeral
    assert driver.secret_value(numbered(1)) == b"x"


def test_limits(driver: Driver) -> None:
    driver.secret_define_xml(document(1))
    driver.secret_set_value(numbered(1), b"x" * 65536)
    assert driver.secret_value(numbered(1)) == b"x" * 65536
    with pytest.raises(InvalidArgument, match="may have 65536 bytes, not 65537"):
        driver.secret_set_value(numbered(1), b"x" * 65537)
    with pytest.raises(InvalidArgument, match=r"unsupported flags \(0x40\) in function secretConn"):
        driver.secrets(SecretFilter(64))
    with pytest.raises(NoSuchSecret, match="no secret with matching usage ''"):
        driver.secret_lookup_by_usage(SecretKind.NONE, "")


# Who may write


def test_who_only_reads_takes_no_lock(paths: Paths) -> None:
    with open_driver(paths) as writer:
        writer.secret_define_xml(document(1, "/a"))
        writer.secret_set_value(numbered(1), b"x")
        with open_driver(paths, readonly=True) as reader:
            assert reader.secret_value(numbered(1)) == b"x"
            with pytest.raises(InvalidArgument, match="read-only"):
                reader.secret_undefine(numbered(1))


def test_the_lock_is_held_while_something_is_in_memory_only(paths: Paths) -> None:
    lock = DriverLock(replace(paths, state=paths.secrets_state, runtime=paths.runtime / "secrets"))
    with open_driver(paths, kind=EngineKind.DAEMON) as driver:
        assert driver.secrets() == []
        driver.secret_define_xml(document(1))
        driver.secret_set_value(numbered(1), b"x")
        with pytest.raises(NoSuchSecret):
            driver.secret_undefine(numbered(2))
        assert lock.owner() is None
        driver.secret_define_xml(document(2, "/a", ephemeral=True))
        driver.secret_set_value(numbered(1), b"y")
        owner = lock.owner()
        assert owner is not None
        assert owner.pid == os.getpid()
        driver.secret_define_xml(document(2, "/a"))
        assert lock.owner() is None
        driver.secret_define_xml(document(2, "/a", ephemeral=True))
        assert lock.owner() is not None
    assert lock.owner() is None
    with pytest.raises(OperationInvalid, match="the engine was closed"):
        driver.secret_undefine(numbered(1))


def test_several_threads(driver: Driver) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for _ in range(5):
                driver.secret_define_xml(document(number, f"/{number}"))
                driver.secret_set_value(numbered(number), str(number).encode())
                assert driver.secret_value(numbered(number)) == str(number).encode()
                driver.secret_undefine(numbered(number))
        except BaseException as err:
            failures.append(err)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert driver.secrets() == []
