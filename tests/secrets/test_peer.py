"""The client of a daemon that keeps the secrets, against daemons that do not behave."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from storaged.backend import SecretUsage
from storaged.driver import open_driver
from storaged.driverlock import DriverLock, EngineKind
from storaged.errors import AccessDenied, ResourceBusy, StorageError, SystemFailure, Timeout
from storaged.paths import Paths
from storaged.rpc import remote
from storaged.rpc.errors import RPCError
from storaged.rpc.packet import Kind, Splitter, Status, pack, reply
from storaged.secrets import peer
from storaged.secrets.peer import connect
from tests.secrets.conftest import document, numbered

Serve = Callable[[socket.socket], None]


@contextmanager
def served(path: Path, serve: Serve, *, accept: bool = True) -> Iterator[None]:
    """Listen at *path* and have each connection served by a thread."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))
        listener.listen(4)
        listener.settimeout(0.05)
        ended = threading.Event()

        def loop() -> None:
            while not ended.is_set():
                with suppress(OSError):
                    if accept:
                        with closing(listener.accept()[0]) as sock:
                            sock.settimeout(10)
                            serve(sock)
                ended.wait(0.01)

        thread = threading.Thread(target=loop)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


@pytest.fixture(autouse=True)
def strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the servers of this process pass for others."""
    monkeypatch.setattr(peer, "_is_own", lambda _sock: False)


def silent(sock: socket.socket) -> None:
    while sock.recv(4096):
        pass


def saying(data: bytes) -> Serve:
    """Return what sends *data* once it was asked, and hangs up."""

    def serve(sock: socket.socket) -> None:
        sock.recv(4096)
        sock.sendall(data)

    return serve


def answering(payload: bytes, *, status: Status = Status.OK, serial: int = 0) -> Serve:
    """Return what answers every call alike."""

    def serve(sock: socket.socket) -> None:
        splitter = Splitter()
        while data := sock.recv(65536):
            for packet in splitter.feed(data):
                header = packet.header._replace(serial=packet.header.serial + serial)
                sock.sendall(reply(header, payload, status=status))

    return serve


def ask(paths: Paths, patience: float = 0.3) -> None:
    asked = connect(paths, paths.sockets / "virtsecretd-sock", patience=patience)
    assert asked is not None
    with asked:
        asked.all()


def test_a_daemon_that_says_nothing(paths: Paths) -> None:
    with served(paths.sockets / "virtsecretd-sock", silent):
        begun = time.monotonic()
        with pytest.raises(Timeout, match="does not answer") as caught:
            ask(paths)
        assert 0.2 < time.monotonic() - begun < 3
        assert "systemctl" in (caught.value.advice or "")


def test_a_daemon_that_answers_other_calls_for_ever(paths: Paths) -> None:
    none = remote.AuthListRet((0,)).pack()
    with (
        served(paths.sockets / "virtsecretd-sock", answering(none, serial=7)),
        pytest.raises(Timeout),
    ):
        ask(paths)


@pytest.mark.parametrize(
    ("serve", "error"),
    [
        (lambda sock: None, SystemFailure),
        (saying(b"\xff" * 64), RPCError),
        (saying(pack(1, 2, Kind.REPLY, 1)), RPCError),
        (answering(b""), RPCError),
        (answering(b"", status=Status.ERROR), RPCError),
        (answering(remote.AuthListRet((1,)).pack()), AccessDenied),
        (answering(b"\0\0\0\1" + b"\xff" * 40), StorageError),
    ],
)
def test_a_daemon_that_talks_nonsense(paths: Paths, serve: Serve, error: type[Exception]) -> None:
    with served(paths.sockets / "virtsecretd-sock", serve), pytest.raises(error):
        ask(paths, 2)


def test_a_socket_that_was_left_behind(paths: Paths) -> None:
    path = paths.sockets / "virtsecretd-sock"
    with served(path, silent):
        pass
    assert path.exists()
    assert connect(paths, path, patience=1) is None
    with open_driver(paths) as driver:
        assert driver.secrets() == []


def test_a_daemon_that_hangs_makes_no_query_slow(paths: Paths, tmp_path: Path) -> None:
    with (
        open_driver(paths) as driver,
        served(paths.sockets / "virtsecretd-sock", silent),
    ):
        source = driver._services.host.secrets
        begun = time.monotonic()
        for _ in range(50):  # asked once, for all that ask meanwhile
            with pytest.raises(Timeout):
                source.find(SecretUsage.VOLUME, "/a")
        assert time.monotonic() - begun < 1


def test_who_holds_the_lock_and_cannot_be_asked(paths: Paths) -> None:
    from dataclasses import replace

    places = replace(paths, state=paths.secrets_state, runtime=paths.runtime / "secrets")
    with open_driver(paths) as driver:
        driver.secret_define_xml(document(1))
    with (
        DriverLock(places).acquire(timeout=1, kind=EngineKind.DAEMON),
        open_driver(paths) as driver,
    ):
        with pytest.raises(ResourceBusy, match="secrets are kept by process"):
            driver.secrets()
        with pytest.raises(ResourceBusy, match="which cannot be asked for them"):
            driver.secret_undefine(numbered(1))
    with open_driver(paths) as driver:
        assert [secret.uuid for secret in driver.secrets()] == [numbered(1)]


def test_we_do_not_ask_ourselves(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    path = paths.sockets / "virtsecretd-sock"
    with served(path, silent), open_driver(paths) as driver:
        driver.secret_define_xml(document(1))
        assert len(driver.secrets()) == 1
    monkeypatch.setattr(peer, "_is_own", lambda _sock: False)
    path.unlink()
    with served(path, silent), open_driver(paths, socket=str(path)) as driver:
        assert len(driver.secrets()) == 1
