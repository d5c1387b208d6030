"""The value of a secret goes nowhere but where it is kept and where it is used."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
import threading
from base64 import b64encode
from contextlib import suppress
from pathlib import Path

import pytest

from storaged.driver import Driver, open_driver
from storaged.errors import StorageError
from storaged.paths import Paths
from storaged.rpc import secret as wire
from tests.secrets.conftest import document, numbered
from tests.storaged.libvirtd import libvirtd

pytestmark = pytest.mark.slow

MARKER = b"the-marker-that-nobody-may-see"
#: What might stand for it in a text.
SHOWN = (MARKER, b64encode(MARKER), MARKER.hex().encode())

VOLUME = (
    "<volume><name>{0}.{1}</name><capacity unit='MiB'>1</capacity><target>"
    "<format type='{1}'/><encryption format='luks'><secret type='passphrase' uuid='{2}'/>"
    "</encryption></target></volume>"
)


def leaks(text: str | bytes) -> bool:
    data = text.encode(errors="surrogateescape") if isinstance(text, str) else text
    return any(shown in data for shown in SHOWN)


def representations() -> list[str]:
    """Return how all objects of ours show themselves."""
    found = []
    for one in gc.get_objects():
        ours = str(type(one).__module__).startswith("storaged.")
        if ours or isinstance(one, BaseException):
            with suppress(AttributeError):  # one that is only half made, by a test before this one
                found.append(f"{one!r} {one!s}")
    return found


class Children:
    """Looks at the command lines and environments of all processes until it is told to end."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.leaked: set[str] = set()
        self.seen: set[str] = set()
        self._thread.start()

    def _look(self) -> None:
        while not self._ended.wait(0.1):
            for process in Path("/proc").glob("[0-9]*"):
                for name in ("cmdline", "environ"):
                    try:
                        data = (process / name).read_bytes()
                    except OSError:
                        continue
                    self.seen.add(Path(data.partition(b"\0")[0].decode(errors="replace")).name)
                    if leaks(data):
                        self.leaked.add(str(process / name))

    def end(self) -> None:
        self._ended.set()
        self._thread.join()


def use(driver: Driver, directory: Path, formats: tuple[str, ...]) -> list[str]:
    """Use a secret in every way, and return the texts that came of it."""
    texts = []
    secret = driver.secret_define_xml(document(1, "/any", private=True))
    driver.secret_set_value(secret.uuid, MARKER)
    texts += [driver.secret_xml(secret.uuid), repr(driver.secrets())]
    pool = driver.pool_define_xml(
        f"<pool type='dir'><name>p</name><target><path>{directory}</path></target></pool>"
    )
    driver.pool_start(pool).result()
    for format in formats:
        job = driver.volume_create_xml(pool, VOLUME.format("a", format, secret.uuid))
        texts.append(driver.volume_xml(job.result()))
        texts.append(repr(job))
    calls = (
        lambda: driver.secret_value(secret.uuid),
        lambda: driver.secret_define_xml(document(2, "/any")),
        lambda: driver.secret_set_value(secret.uuid, MARKER * 10_000),
        lambda: driver.volume_create_xml(pool, VOLUME.format("a", "raw", secret.uuid)).result(),
        lambda: driver.volume_create_xml(pool, VOLUME.format("b", "vdi", secret.uuid)).result(),
    )
    for call in calls:
        with pytest.raises(StorageError) as caught:
            call()
        texts += [str(caught.value), repr(caught.value), str(caught.value.advice)]
    texts += [*driver.problems(), *representations()]
    return texts


@pytest.mark.parametrize("daemon", [False, True], ids=["files", "daemon"])
def test_the_value_is_seen_nowhere(
    paths: Paths, tmp_path: Path, caplog: pytest.LogCaptureFixture, daemon: bool
) -> None:
    caplog.set_level(logging.DEBUG)
    pool = tmp_path / "pool"
    pool.mkdir()
    root = paths.config.parents[2]
    children = Children()
    try:
        if daemon:
            with libvirtd(root, secrets=True, storage=False), open_driver(paths) as driver:
                texts = use(driver, pool, ("raw",))
        else:
            with open_driver(paths) as driver:
                texts = use(driver, pool, ("raw", "qcow2"))
    finally:
        children.end()
    assert not [text for text in texts if leaks(text)]
    assert not leaks(caplog.text)
    assert children.leaked == set()
    assert daemon or "qemu-storage-daemon" in children.seen
    holding = [path for path in root.rglob("*") if path.is_file() and leaks(path.read_bytes())]
    assert holding == [paths.secrets / f"{numbered(1)}.base64"]
    assert not [path for path in pool.iterdir() if leaks(path.read_bytes())]


def test_messages_do_not_show_it() -> None:
    named = wire.Secret(numbered(1).bytes, 1, "/a")
    assert not leaks(repr(wire.SetValueArgs(named, MARKER, 0)))
    assert not leaks(repr(wire.ValueRet(MARKER)))


def test_the_daemon_writes_no_core() -> None:
    code = "import resource; from storaged.daemon import main; main._forbid_cores();"
    code += "print(resource.getrlimit(resource.RLIMIT_CORE))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(0, 0)"
