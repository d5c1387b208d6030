"""Which engine a command uses: each way there is, and what an error says of the ways tried."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

import storaged
from storaged.cli.connection import Chooser
from storaged.cli.invocation import Invocation
from storaged.driverlock import DriverLock, EngineKind
from storaged.errors import OperationFailed, ResourceBusy, SystemFailure
from storaged.paths import Paths


@dataclass
class World:
    """What there is to be found: sockets below *root*, and how each one answers."""

    root: Path
    #: what was opened: ("connect", URI, readonly) or ("open", root, session, readonly)
    opened: list[tuple[object, ...]] = field(default_factory=list)
    #: the errno that a connection to a socket fails with, by the socket's name
    refusing: dict[str, int] = field(default_factory=dict)

    def socket(self, name: str, number: int = 0) -> Path:
        path = self.root / "run/libvirt" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        path.chmod(0o660)
        self.refusing[name] = number
        return path

    def connect(self, uri: str, *, readonly: bool = False) -> str:
        number = self.refusing.get(uri.rpartition("%2F")[2], 0)
        if number:
            raise SystemFailure(f"Failed to connect socket to '{uri}'", number)
        self.opened.append(("connect", uri, readonly))
        return "daemon"

    def open(self, root: object, *, session: bool, readonly: bool, lock_timeout: float) -> str:
        self.opened.append(("open", root, session, readonly))
        return "embedded"

    def uri(self, name: str) -> str:
        kind = "session" if os.geteuid() else "system"
        path = str(self.root / "run/libvirt" / name).replace("/", "%2F")
        return f"storage:///{kind}?socket={path}"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path / "root")
    monkeypatch.setattr(storaged, "connect", made.connect)
    monkeypatch.setattr(storaged, "open", made.open)
    return made


@pytest.fixture
def call(world: World) -> Invocation:
    return Invocation(root=str(world.root))


def test_an_uri_that_is_given_decides(world: World):
    world.socket("virtstoraged-sock")
    with_uri = Invocation(connect="qemu+ssh://root@host/system")
    with_uri.look()
    with_uri.change()
    with_uri.connect_daemon("event")
    assert world.opened == [("connect", "qemu+ssh://root@host/system", False)] * 3


def test_secrets_are_another_driver_of_libvirts_daemon(world: World, call: Invocation):
    """It gives one driver a connection; ours serves both on one."""
    world.socket("libvirt-sock")
    call.look("secret")
    world.socket("virtstoraged-sock")
    call.look("secret")
    uris = [str(uri).partition("?")[0] for _, uri, _ in world.opened]
    assert uris == ["secret:///system", "storage:///system"]


def test_our_daemon_goes_before_libvirts(world: World, call: Invocation):
    world.socket("libvirt-sock")
    call.look()
    world.socket("virtstoraged-sock")
    call.change()
    assert world.opened == [
        ("connect", world.uri("libvirt-sock"), False),
        ("connect", world.uri("virtstoraged-sock"), False),
    ]


def test_a_socket_without_a_daemon_is_passed_over(world: World, call: Invocation):
    world.socket("virtstoraged-sock", errno.ECONNREFUSED)
    world.socket("libvirt-sock")
    call.change()
    assert world.opened == [("connect", world.uri("libvirt-sock"), False)]


def test_without_a_daemon_it_works_in_this_process(world: World, call: Invocation):
    call.look()
    call.change()
    root = str(world.root)
    assert world.opened == [("open", root, False, True), ("open", root, False, False)]


def test_embedded_asks_no_daemon(world: World, call: Invocation):
    world.socket("virtstoraged-sock")
    replace(call, embedded=True).change()
    assert world.opened == [("open", str(world.root), False, False)]


def test_who_may_only_read_uses_the_socket_for_that(world: World, call: Invocation):
    world.socket("virtstoraged-sock", errno.EACCES)
    call.look()
    assert world.opened == [("connect", world.uri("virtstoraged-sock-ro"), True)]


def test_who_may_not_write_is_told_who_may(world: World, call: Invocation):
    world.socket("virtstoraged-sock", errno.EACCES)
    world.socket("libvirt-sock")
    with pytest.raises(SystemFailure) as refused:
        call.change()
    assert refused.value.errno == errno.EACCES
    assert "Members of the group " in (refused.value.advice or "")
    assert "storagectl --session" in (refused.value.advice or "")
    assert world.opened == []


def test_a_failure_of_a_daemon_is_not_passed_over(world: World, call: Invocation):
    world.socket("virtstoraged-sock", errno.EMFILE)
    with pytest.raises(SystemFailure):
        call.look()
    assert world.opened == []


@pytest.fixture
def held(world: World) -> Iterator[Callable[[EngineKind, str | None], None]]:
    """Have an engine hold the state directory."""
    locks = []

    def hold(kind: EngineKind, socket: str | None) -> None:
        lock = DriverLock(Paths.below(world.root))
        locks.append(lock.acquire(timeout=0, kind=kind, socket=socket))

    yield hold
    for lock in locks:
        lock.release()


def test_the_daemon_that_holds_the_state_is_found(world: World, call: Invocation, held):
    elsewhere = world.socket("elsewhere-sock")
    held(EngineKind.DAEMON, str(elsewhere))
    call.look()
    call.change()
    assert world.opened == [("connect", world.uri("elsewhere-sock"), False)] * 2


@pytest.mark.parametrize("kind", list(EngineKind))
def test_who_holds_it_without_a_socket_is_left_to_the_lock(world, call, held, kind):
    held(kind, None)
    call.change()
    assert world.opened == [("open", str(world.root), False, False)]


def test_a_session_has_sockets_of_its_own(world: World, tmp_path: Path, monkeypatch):
    world.root = tmp_path
    (tmp_path / "run/libvirt").mkdir(parents=True)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    world.socket("virtstoraged-sock")
    Invocation(session=True).change()
    (tmp_path / "run/libvirt/virtstoraged-sock").unlink()
    Invocation(session=True).change()
    assert world.opened == [
        ("connect", world.uri("virtstoraged-sock").replace("/system?", "/session?"), False),
        ("open", None, True, False),
    ]


@pytest.mark.parametrize("user", [0, 1000])
def test_an_ordinary_user_gets_a_session(world: World, monkeypatch, user: int):
    monkeypatch.setattr(Paths, "system", lambda: Paths.below(world.root))
    monkeypatch.setattr(os, "geteuid", lambda: user)
    Invocation().change()
    assert world.opened == [("open", None, user != 0, False)]


def test_an_error_lists_what_was_tried(world: World, call: Invocation, monkeypatch):
    world.socket("virtstoraged-sock", errno.ECONNREFUSED)

    def fail(*_: object, **__: object) -> None:
        raise ResourceBusy("it is busy", advice="Wait.")

    monkeypatch.setattr(storaged, "open", fail)
    with pytest.raises(ResourceBusy) as busy:
        call.change()
    sockets = world.root / "run/libvirt"
    assert busy.value.advice == (
        f"Wait. Tried first: {sockets}/virtstoraged-sock (Connection refused), "
        f"{sockets}/libvirt-sock (No such file or directory)."
    )


def test_what_only_a_daemon_can_do(world: World, call: Invocation):
    with pytest.raises(OperationFailed, match="event needs a daemon, and none answers") as failed:
        call.connect_daemon("event")
    assert "libvirt-sock (No such file or directory). To have one: systemctl start" in (
        failed.value.advice or ""
    )
    with pytest.raises(OperationFailed):
        replace(call, embedded=True).connect_daemon("event")
    world.socket("virtstoraged-sock")
    call.connect_daemon("event")
    assert world.opened == [("connect", world.uri("virtstoraged-sock"), False)]


def test_the_choice_is_made_once(call: Invocation):
    chooser = Chooser(call, writes=False)
    chooser.open()
    assert [why for _, why in chooser.tried] == ["No such file or directory"] * 2
