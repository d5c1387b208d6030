"""Encrypted volumes whose passphrase is a secret."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from storaged.driver import Driver, open_driver
from storaged.errors import InvalidArgument, NoSuchSecret, StorageError
from storaged.imaging import CloneOptions
from storaged.model import PoolRef
from storaged.paths import Paths
from tests.secrets.conftest import document, numbered
from tests.storaged.libvirtd import libvirtd

pytestmark = pytest.mark.slow

PASSPHRASE = b"open sesame"
BY_UUID = f"<secret type='passphrase' uuid='{numbered(1)}'/>"
BY_USAGE = "<secret type='passphrase' usage='/any'/>"


def volume(name: str, format: str, secret: str = BY_UUID, kind: str = "luks") -> str:
    return (
        f"<volume><name>{name}</name><capacity unit='MiB'>4</capacity><target>"
        f"<format type='{format}'/><encryption format='{kind}'>{secret}</encryption>"
        "</target></volume>"
    )


def plain(name: str, format: str) -> str:
    return (
        f"<volume><name>{name}</name><capacity>0</capacity>"
        f"<target><format type='{format}'/></target></volume>"
    )


@pytest.fixture
def pool(driver: Driver, tmp_path: Path) -> PoolRef:
    """An active pool, and a private secret for a volume called /any."""
    directory = tmp_path / "pool"
    directory.mkdir()
    driver.secret_define_xml(document(1, "/any", private=True))
    driver.secret_set_value(numbered(1), PASSPHRASE)
    ref = driver.pool_define_xml(
        f"<pool type='dir'><name>p</name><target><path>{directory}</path></target></pool>"
    )
    driver.pool_start(ref).result()
    return ref


def opens(path: str, passphrase: bytes = PASSPHRASE) -> bool:
    """Tell whether QEMU reads an encrypted image with a passphrase."""
    kind = "luks" if path.endswith(".raw") else "qcow2"
    prefix = "" if kind == "luks" else "encrypt."
    secret = Path(path).with_suffix(".key")
    secret.write_bytes(passphrase)
    try:
        command = ["qemu-img", "measure", "-O", "raw"]
        command += ["--object", f"secret,id=s,file={secret}", "--image-opts"]
        command += [f"driver={kind},{prefix}key-secret=s,file.filename={path}"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    finally:
        secret.unlink()


def size(path: str) -> int:
    command = ["qemu-img", "info", "--output=json", path]
    done = subprocess.run(command, capture_output=True, check=True)
    return int(json.loads(done.stdout)["virtual-size"])


@pytest.mark.parametrize(
    ("name", "secret"), [("a.raw", BY_UUID), ("a.raw", BY_USAGE), ("a.qcow2", BY_UUID)]
)
def test_create_and_resize(driver: Driver, pool: PoolRef, name: str, secret: str) -> None:
    format = name.partition(".")[2]
    made = driver.volume_create_xml(pool, volume(name, format, secret)).result()
    assert opens(made.key)
    assert not opens(made.key, b"wrong")
    assert secret in driver.volume_xml(made)
    driver.volume_resize(made, 8 << 20).result()
    assert size(made.key) == 8 << 20
    assert opens(made.key)


@pytest.mark.skipif(shutil.which("cryptsetup") is None, reason="cryptsetup is not installed")
def test_cryptsetup_opens_it(driver: Driver, pool: PoolRef) -> None:
    made = driver.volume_create_xml(pool, volume("a.raw", "raw")).result()
    subprocess.run(["cryptsetup", "luksDump", made.key], check=True, capture_output=True)
    command = ["cryptsetup", "open", "--test-passphrase", "--key-file", "-", made.key]
    assert subprocess.run(command, input=PASSPHRASE, check=False).returncode == 0
    failed = subprocess.run(command, input=b"wrong", check=False, capture_output=True)
    assert failed.returncode == 2


REFUSED = (
    ("raw", "", "luks"),
    ("raw", BY_UUID * 2, "luks"),
    ("qcow2", "", "luks"),
    ("raw", f"<secret type='passphrase' uuid='{numbered(9)}'/>", "luks"),
    ("raw", "<secret type='passphrase' usage='/none'/>", "luks"),
    ("raw", f"<secret type='passphrase' uuid='{numbered(2)}'/>", "luks"),
    ("raw", f"<secret type='passphrase' uuid='{numbered(3)}'/>", "luks"),
    ("qcow2", BY_UUID, "qcow"),
    ("qcow2", BY_UUID, "default"),
)


def test_what_is_refused_is_refused_as_by_libvirt(
    driver: Driver, pool: PoolRef, tmp_path: Path
) -> None:
    other = f"<secret><uuid>{numbered(2)}</uuid><usage type='ceph'><name>c</name></usage></secret>"
    ours, theirs = [], []
    for text in (other, document(3, "/empty")):
        driver.secret_define_xml(text)
    driver.secret_set_value(numbered(2), b"x")
    for format, secret, kind in REFUSED:
        with pytest.raises(StorageError) as caught:
            driver.volume_create_xml(pool, volume("a", format, secret, kind)).result()
        ours.append(caught.value.message)
    assert driver.volumes(pool) == []
    with libvirtd(tmp_path / "theirs", secrets=True) as daemon:
        file, uri = tmp_path / "x.xml", daemon.uri.replace("storage:", "secret:")

        def virsh(uri: str, *words: str) -> str:
            command = ["virsh", "-c", uri, "-q", *words]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            return done.stderr.partition("\nerror: ")[2].rstrip("\n")

        for text in (document(1, "/any", private=True), other, document(3, "/empty")):
            file.write_text(text)
            assert virsh(uri, "secret-define", str(file)) == ""
        for number in (1, 2):
            virsh(uri, "secret-set-value", str(numbered(number)), "--base64", "eA==")
        (tmp_path / "other").mkdir()
        daemon.virsh("pool-create-as", "p", "dir", "--target", str(tmp_path / "other"))
        for format, secret, kind in REFUSED:
            file.write_text(volume("a", format, secret, kind))
            theirs.append(virsh(daemon.uri, "vol-create", "p", str(file)))
    assert ours == theirs


def test_the_default_secret(driver: Driver, pool: PoolRef) -> None:
    """A refresh forgets what a volume was made with; what is for its path is found."""
    made = [
        driver.volume_create_xml(pool, volume(f"a.{kind}", kind)).result()
        for kind in ("raw", "qcow2")
    ]
    driver.pool_refresh(pool).result()
    assert all("<secret" not in driver.volume_xml(one) for one in made)
    assert all("<encryption format='luks'>" in driver.volume_xml(one) for one in made)
    for number, one in enumerate(made, 5):
        driver.secret_define_xml(document(number, one.key))
        assert f"<secret type='passphrase' uuid='{numbered(number)}'/>" in driver.volume_xml(one)
    raw = made[0]
    with pytest.raises(NoSuchSecret, match="does not have a value"):
        driver.volume_clone_xml(pool, plain("plain.qcow2", "qcow2"), raw).result()
    driver.secret_set_value(numbered(5), PASSPHRASE)
    copy = driver.volume_clone_xml(pool, plain("plain.qcow2", "qcow2"), raw).result()
    assert "encryption" not in driver.volume_xml(copy)
    driver.secret_undefine(numbered(5))
    assert "<secret" not in driver.volume_xml(raw)


def test_clones(driver: Driver, pool: PoolRef) -> None:
    source = driver.volume_create_xml(pool, volume("a.raw", "raw")).result()
    driver.secret_define_xml(document(2, "/other"))
    driver.secret_set_value(numbered(2), b"another")
    wanted = volume("b.raw", "raw", f"<secret type='passphrase' uuid='{numbered(2)}'/>")
    clone = driver.volume_clone_xml(pool, wanted, source).result()
    assert opens(clone.key, b"another")
    again = driver.volume_clone_xml(pool, volume("c.raw", "raw"), clone).result()
    assert opens(again.key)
    # a container that nobody asked to open is copied as it is
    copy = driver.volume_clone_xml(pool, plain("d.raw", "raw"), source).result()
    assert opens(copy.key)
    assert Path(copy.key).read_bytes() == Path(source.key).read_bytes()


def test_a_passphrase_that_is_handed_over_wins(driver: Driver, pool: PoolRef) -> None:
    request = driver.parse_volume(pool, volume("a.raw", "raw"))
    made = driver.volume_create(pool, request, secret=b"given").result()
    assert opens(made.key, b"given")
    clone = driver.parse_volume(pool, volume("b.raw", "raw"), clone=True)
    options = CloneOptions(secret=b"new", source_secret=b"given")
    copy = driver.volume_clone(pool, clone, made, options=options).result()
    assert opens(copy.key, b"new")
    with pytest.raises(InvalidArgument, match="not to be encrypted"):
        driver.volume_create(pool, driver.parse_volume(pool, plain("c", "raw")), secret=b"x")


def test_the_secret_daemon_is_asked(paths: Paths, tmp_path: Path) -> None:
    """Libvirt's daemon keeps a private secret, and tells it to us for our volumes."""
    (tmp_path / "pool").mkdir()
    with (
        libvirtd(paths.config.parents[2], secrets=True, storage=False),
        open_driver(paths) as driver,
    ):
        driver.secret_define_xml(document(1, "/any", private=True, ephemeral=True))
        driver.secret_set_value(numbered(1), PASSPHRASE)
        pool = driver.pool_define_xml(
            f"<pool type='dir'><name>p</name><target><path>{tmp_path}/pool</path></target></pool>"
        )
        driver.pool_start(pool).result()
        made = driver.volume_create_xml(pool, volume("a.raw", "raw")).result()
        assert opens(made.key)
        driver.pool_refresh(pool).result()
        driver.secret_define_xml(document(2, made.key))
        assert f"uuid='{numbered(2)}'/>" in driver.volume_xml(made)
    assert not paths.secrets.exists() or not list(paths.secrets.glob("*.base64"))
