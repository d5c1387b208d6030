"""The client of a daemon that keeps the secrets, against daemons that do not behave."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from storaged.backend import SecretUsage
from storaged.driver import open_driver
from storaged.errors import AccessDenied, ResourceBusy, StorageError, SystemFailure, Timeout
from storaged.model import SecretRef
from storaged.paths import Paths
from storaged.rpc import remote
from storaged.rpc import secret as wire
from storaged.rpc.errors import RPCError
from storaged.rpc.identity import Identity
from storaged.rpc.packet import Kind, Packet, Splitter, Status, pack, reply
from storaged.rpc.record import Record, Void
from storaged.rpc.storage import XML, Uuid, XMLArgs
from storaged.secrets.peer import connect
from storaged.service import Service
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
    path = paths.sockets / "virtsecretd-sock"
    asked = connect(paths, path, caller=None, patience=patience)
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
    assert connect(paths, path, caller=None, patience=1) is None
    with open_driver(paths) as driver:
        assert driver.secrets() == []


def test_a_daemon_that_hangs_makes_no_query_slow(paths: Paths, tmp_path: Path) -> None:
    with (
        open_driver(paths) as driver,
        served(paths.sockets / "virtsecretd-sock", silent),
    ):
        source = driver._services.host.secrets
        begun = time.monotonic()
        raised = []
        for _ in range(50):  # asked once, for all that ask meanwhile
            with pytest.raises(Timeout, match="does not answer") as caught:
                source.find(SecretUsage.VOLUME, "/a")
            raised.append(caught.value)
        assert time.monotonic() - begun < 1
        assert len({id(error) for error in raised}) == 50
        assert {error.advice for error in raised} == {raised[0].advice}


def test_who_holds_the_lock_and_cannot_be_asked(paths: Paths) -> None:
    code = (
        "import sys; from dataclasses import replace; from storaged.paths import Paths;"
        "from storaged.driverlock import DriverLock, EngineKind; paths = Paths.below(sys.argv[1]);"
        "paths = replace(paths, state=paths.secrets_state, runtime=paths.runtime / 'secrets');"
        "held = DriverLock(paths).acquire(timeout=1, kind=EngineKind.DAEMON);"
        "print('held', flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", code, str(paths.config.parents[2])]
    with open_driver(paths) as driver:
        driver.secret_define_xml(document(1))
    with (
        subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other,
        open_driver(paths) as driver,
    ):
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ResourceBusy, match="secrets are kept by process"):
            driver.secrets()
        with pytest.raises(ResourceBusy, match="which cannot be asked for them"):
            driver.secret_undefine(numbered(1))
        other.communicate()
    with open_driver(paths) as driver:
        assert [secret.uuid for secret in driver.secrets()] == [numbered(1)]


def test_we_do_not_ask_ourselves(paths: Paths) -> None:
    path = paths.sockets / "virtsecretd-sock"
    with served(path, silent), open_driver(paths, socket=str(path)) as driver:
        driver.secret_define_xml(document(1))
        assert len(driver.secrets()) == 1


# For whom it is asked


class Recording:
    """A daemon that keeps one secret, and notes what it was asked, and for whom."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.callers: list[dict[str, object]] = []

    def __call__(self, sock: socket.socket) -> None:
        splitter = Splitter()
        while data := sock.recv(65536):
            for packet in splitter.feed(data):
                assert isinstance(packet, Packet)
                sock.sendall(reply(packet.header, self._answer(packet)))

    def _answer(self, packet: Packet) -> bytes:
        named = wire.Secret(numbered(1).bytes, 1, "/a")
        procedure = remote.PROCEDURES[packet.header.procedure]
        if procedure is remote.AUTH_LIST:
            return remote.AuthListRet((0,)).pack()
        if procedure is remote.SET_IDENTITY:
            params = remote.IdentityArgs.unpack(packet.payload).params
            self.callers.append({param.field: param.value[1] for param in params})
        elif procedure in wire.PROCEDURES:
            self.calls.append(procedure.name)
        if procedure is wire.LIST_ALL_SECRETS:
            return wire.ListSecretsRet((named,), 1).pack()
        if procedure is wire.GET_XML_DESC:
            return XML(document(1, "/a")).pack()
        if procedure is wire.GET_VALUE:
            return wire.ValueRet(b"x").pack()
        found = procedure in (wire.LOOKUP_BY_USAGE, wire.DEFINE_XML)
        return wire.SecretRet(named).pack() if found else b""


@pytest.fixture
def recording(paths: Paths) -> Iterator[Recording]:
    keeper = Recording()
    token = paths.sockets / "common/system.token"
    token.parent.mkdir(parents=True)
    token.write_text("the-token")
    with served(paths.sockets / "virtsecretd-sock", keeper):
        yield keeper


NAMED = wire.Secret(numbered(1).bytes, 1, "/a")
#: All that a client can ask, and the calls that it costs.
ASKED: list[tuple[Any, Record, list[str]]] = [
    (wire.NUM_OF_SECRETS, Void(), ["virConnectListAllSecrets"]),
    (wire.LIST_SECRETS, wire.MaxUuids(9), ["virConnectListAllSecrets"]),
    (wire.LIST_ALL_SECRETS, wire.ListSecretsArgs(1, 5), ["virConnectListAllSecrets"]),
    (wire.LOOKUP_BY_UUID, Uuid(NAMED.uuid), ["virSecretGetXMLDesc"]),
    (
        wire.LOOKUP_BY_USAGE,
        wire.UsageArgs(1, "/a"),
        ["virSecretLookupByUsage", "virSecretGetXMLDesc"],
    ),
    (wire.DEFINE_XML, XMLArgs(document(1, "/a"), 0), ["virSecretDefineXML"]),
    (wire.SET_VALUE, wire.SetValueArgs(NAMED, b"y"), ["virSecretSetValue"]),
    (wire.GET_VALUE, wire.SecretFlagsArgs(NAMED), ["virSecretGetValue"]),
    (wire.GET_XML_DESC, wire.SecretFlagsArgs(NAMED), ["virSecretGetXMLDesc"]),
    (wire.UNDEFINE, wire.SecretArgs(NAMED), ["virSecretUndefine"]),
]


@pytest.mark.parametrize(
    ("procedure", "args", "calls"), ASKED, ids=[each[0].name for each in ASKED]
)
def test_a_client_is_asked_for_in_its_own_name(
    paths: Paths, recording: Recording, procedure: Any, args: Record, calls: list[str]
) -> None:
    """Never with the token: what it may see and do is decided by who keeps the secrets."""
    client = Identity(uid=107, gid=108, pid=42, started=7, user="x", selinux="l", trusted=True)
    with open_driver(paths) as driver:
        session = Service(driver).session(lambda *_: None, identity=client)
        session.opened("storage:///system", readonly=False)
        session.call(procedure, args)
        session.close()
    shown = {"unix-user-id": 107, "unix-group-id": 108, "process-id": 42, "process-time": 7}
    assert recording.callers == [shown | {"user-name": "x", "selinux-context": "l"}]
    assert recording.calls[-len(calls) :] == calls


def test_for_whom_it_is_asked(paths: Paths, recording: Recording) -> None:
    ours = {"unix-user-id": os.geteuid(), "process-id": os.getpid(), "system.token": "the-token"}
    with open_driver(paths) as driver:
        assert len(driver.secrets()) == 1  # by whoever has opened the engine
        assert recording.callers == []
        driver.secret_value(numbered(1), caller=Identity(uid=1, elevated=True))
        assert recording.callers.pop() == {"unix-user-id": 1, "system.token": "the-token"}
        source = driver._services.host.secrets  # of pools and volumes
        assert source.value(SecretUsage.VOLUME, SecretRef(usage="/a")) == b"x"
        assert ours.items() <= recording.callers.pop().items()
        assert source.find(SecretUsage.VOLUME, "/a") == numbered(1)
        assert ours.items() <= recording.callers.pop().items()
        assert recording.callers == []
