"""A real Ceph cluster of one node: a monitor, an OSD, a manager, all of them our own children.

It listens on one address of the loopback interface, lives in one directory and needs no root. It is
there within a second, which takes some care:

* keys and capabilities of the first users stand in the monitor's first keyring;
* the OSD's disk is made while the monitor starts;
* nothing is read or written before the OSD is up and the client knows it: what is sent before waits
  for the client's next tick, 5 seconds;
* the manager, without which capacities are 0, has no module and starts last, so that the OSD
  reports to it at once.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from tests.ceph.admin import Admin, python_with_bindings
from tests.ceph.child import Child, Daemon
from tests.ceph.configuration import CAPS, Endpoint, conf_text, keyring_entry, new_key
from tests.ceph.images import Pool
from tests.kernel.iscsi import listens
from tests.kernel.programs import SYSTEM_PATH, patience, run

Auth = Literal["cephx", "none"]
Store = Literal["memstore", "bluestore"]

#: What it needs, and Debian's package of each.
_PROGRAMS = {
    "ceph-mon": "ceph-mon",
    "monmaptool": "ceph-base",
    "ceph-osd": "ceph-osd",
    "ceph-mgr": "ceph-mgr",
    "setpriv": "util-linux",
}

#: The ports that clients know, of versions 1 and 2 of the protocol.
KNOWN_PORTS = (6789, 3300)


def missing() -> str | None:
    """Return what a cluster needs and this machine lacks, with the package; None if nothing."""
    for program, package in _PROGRAMS.items():
        if shutil.which(program, path=SYSTEM_PATH) is None:
            return f"{program} is not installed (Debian: {package}; make setup)"
    if python_with_bindings() is None:
        return "no Python here has Ceph's bindings (Debian: python3-rados python3-rbd; make setup)"
    return None


class Cluster:
    """A cluster; it exists from `start` to `stop`, or for the length of a ``with``.

    :param directory: where all of it is; made, or empty, and removed in the end.
    :param store: ``memstore`` has its data in memory, all of which it forgets when the OSD is
        killed; ``bluestore`` in a file.
    :param host: a numeric address of the loopback interface, IPv6 too.
    :param port: of version 1 of the protocol; with 6789, version 2 has 3300, and clients know which
        is which. Else they try one after the other, and learn of a wrong key only when their time
        is up. None for any port.
    :param size: of the disk in bytes; its file is sparse.
    """

    def __init__(
        self,
        directory: Path,
        *,
        auth: Auth = "cephx",
        store: Store = "memstore",
        host: str = "127.0.0.1",
        port: int | None = None,
        size: int = 4 << 30,
    ) -> None:
        self.directory = directory.absolute()
        self.auth = auth
        self.store = store
        self.size = size
        self.conf = self.directory / "ceph.conf"
        self.keyring = self.directory / "keyring"
        self.mon, self.osd, self.mgr = (
            Daemon(name, self.conf) for name in ("mon.a", "osd.0", "mgr.x")
        )
        self._keys = {user: new_key() for user in CAPS}
        self._clients: list[Admin] = []
        self._reserved: list[socket.socket] = []
        self._asked = (host, port)
        self._endpoint: Endpoint | None = None
        self._full = False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    # where it is, and who may use it

    @property
    def endpoint(self) -> Endpoint:
        """Where its monitor listens."""
        assert self._endpoint is not None, "the cluster was not started"
        return self._endpoint

    @property
    def host(self) -> str:
        """The monitor's address, without brackets."""
        return self.endpoint.host

    @property
    def port(self) -> int:
        """The monitor's port for version 1 of the protocol."""
        return self.endpoint.port

    @property
    def monitors(self) -> str:
        """The monitor's addresses as ``mon_host`` takes them: ``[v2:HOST:PORT,v1:HOST:PORT]``."""
        return self.endpoint.monitors

    def key(self, user: str = "client.libvirt") -> str:
        """Return a user's key, as base64."""
        return self._keys[user]

    def add_user(self, user: str, caps: Mapping[str, str]) -> str:
        """Add a user such as ``client.reader``; return the key.

        :param caps: such as ``{"mon": "profile rbd", "osd": "profile rbd-read-only"}``.
        """
        words = [word for pair in caps.items() for word in pair]
        key: str = self.admin.mon_json("auth get-or-create", entity=user, caps=words)[0]["key"]
        self._keys[user] = key
        with self.keyring.open("a") as file:
            file.write(keyring_entry(user, key, caps))
        return key

    def remove_user(self, user: str) -> None:
        """Remove a user; a connection that was made before stays for a while."""
        self.admin.mon_command("auth rm", entity=user)

    # its life

    def start(self) -> None:
        """Start it; when this returns, images can be made and capacities are known.

        :raise FileExistsError: there is something in the directory.
        :raise AssertionError: it does not start; the text has what its daemons say. Nothing of it
            is left.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        if any(self.directory.iterdir()):
            raise FileExistsError(f"{self.directory} is not empty")
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    @property
    def started(self) -> bool:
        """Tell whether it is between `start` and `stop`; parts of it may be down."""
        return bool(self._clients)

    def stop(self) -> None:
        """Kill all of it and remove its directory."""
        for client in self._clients:
            client.close()
        for daemon in self._daemons:
            daemon.kill()
        for held in self._reserved:
            held.close()
        self._clients.clear()
        self._reserved.clear()
        shutil.rmtree(self.directory, ignore_errors=True)

    def heal(self) -> None:
        """Let frozen daemons go on, start dead ones, end `full`; return when all works again.

        Pools that memstore forgot, because the OSD was killed, can only be deleted.
        """
        for daemon in self._daemons:
            daemon.thaw()
        if not self.mon.running:
            self._start_mon()
        if not self.osd.running:
            self.admin.mon_command("osd down", ids=["0"])  # it will tell when it is up again
            self.osd.start()
        if not self.mgr.running:
            self.mgr.start()
        self._await(self._osd_is_up, "the OSD", self.osd)
        if self._full:
            self._set_full(False)
        self.admin.wait_for_latest_map()

    @contextmanager
    def full(self) -> Iterator[None]:
        """Let the cluster be full for the length of a block; it takes a second or two.

        Reads work; writes, creations and removals wait for space until their time is up. The
        figures of `Admin.stats` do not change.
        """
        self._set_full(True)
        try:
            yield
        finally:
            self._set_full(False)

    # clients

    @property
    def admin(self) -> Admin:
        """Somebody who may do everything; there from `start` on."""
        return self._clients[0]

    def client(self, user: str = "client.admin", options: Mapping[str, str] | None = None) -> Admin:
        """Return somebody more, connected; it ends with the cluster at the latest.

        :param options: of Ceph's for this client.
        :raise AdminError: the cluster does not let that user in.
        """
        client = self._new_client(user, options)
        client.connect()
        return client

    def create_pool(self, name: str, *, init: bool = True) -> Pool:
        """Create a RADOS pool for images."""
        return self.admin.create_pool(name, init=init)

    def run(self, program: str, *words: str, user: str = "client.libvirt") -> str:
        """Run ``rbd``, ``ceph`` or ``rados`` on this cluster and return what it printed."""
        return run(program, "-c", os.fspath(self.conf), "--name", user, *words)

    # how it starts

    @property
    def _daemons(self) -> tuple[Daemon, ...]:
        return self.mon, self.osd, self.mgr

    def _start(self) -> None:
        for name in ("mon", "osd", "mgr", "run", "log", "empty"):
            (self.directory / name).mkdir()
        self._endpoint = self._reserve(*self._asked)
        identity, disk = str(uuid.uuid4()), str(uuid.uuid4())
        self._configure(identity)
        monmap = self.directory / "monmap"
        self._new_client("client.admin", None)
        making_disk = self._make(
            *("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", disk),
            *("--no-mon-config", "--monmap", os.fspath(monmap)),
        )
        words = ("--monmap", os.fspath(monmap), "--keyring", os.fspath(self.keyring))
        _succeeded(self._make("ceph-mon", "-i", "a", "--mkfs", *words))
        self._start_mon()
        self.admin.connect()
        self.admin.mon_command("osd new", uuid=disk)
        self.admin.mon_command(
            "osd crush add", id=0, weight=1.0, args=["host=localhost", "root=default"]
        )
        _succeeded(making_disk)
        self.osd.start()
        self._await(self._osd_is_up, "the OSD", self.osd)
        self.admin.wait_for_latest_map()
        self.mgr.start()
        self._await(lambda: self.admin.stats()["kb"] > 0, "capacities", self.mgr)

    def _configure(self, identity: str) -> None:
        text = conf_text(
            self.directory,
            self.endpoint,
            identity,
            auth=self.auth,
            store=self.store,
            size=self.size,
        )
        self.conf.write_text(text)
        self.keyring.touch(mode=0o600)
        self.keyring.write_text(
            "".join(keyring_entry(user, self._keys[user], caps) for user, caps in CAPS.items())
        )
        run(
            *("monmaptool", "--create", "--fsid", identity, "--enable-all-features"),
            *("--addv", "a", self.monitors, os.fspath(self.directory / "monmap")),
        )

    def _reserve(self, host: str, port: int | None) -> Endpoint:
        """Keep ports for the monitor, as long as the cluster exists, also while it is dead.

        A socket that is bound and does not listen keeps others from being given its port, but not
        from listening on it, if both say that addresses may be used again, as Ceph does.
        """
        known = (port, KNOWN_PORTS[1] if port == KNOWN_PORTS[0] else port + 1) if port else (0, 0)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        ports = []
        for number in known:
            held = socket.socket(family)
            self._reserved.append(held)
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind((host, number))
            ports.append(held.getsockname()[1])
        return Endpoint(host, *ports)

    def _make(self, program: str, *words: str) -> Child:
        log = self.directory / "log" / f"{program}-mkfs.err"
        return Child([program, "-c", self.conf, *words], log=log)

    def _start_mon(self) -> None:
        self.mon.start()
        self._await(lambda: listens(self.endpoint.port2, self.host), "the monitor", self.mon)

    def _new_client(self, user: str, options: Mapping[str, str] | None) -> Admin:
        log = self.directory / "log" / f"admin-{len(self._clients)}.err"
        client = Admin(self.conf, log, user, options)
        self._clients.append(client)
        return client

    def _osd_is_up(self) -> bool:
        return int(self.admin.mon_json("osd stat")["num_up_osds"]) > 0

    def _set_full(self, full: bool) -> None:
        # No ratio is small enough for a disk that is nearly empty. The OSD tells the monitor at
        # its next heartbeat, the monitor everybody.
        self._full = full
        if full:
            self.admin.osd_command("injectfull", type="full")
        else:
            self.admin.osd_command("injectfull", type="none")
        self._await(lambda: self._says_full() == full, "the pools' flags", self.osd)
        self.admin.wait_for_latest_map()

    def _says_full(self) -> bool:
        pools = self.admin.mon_json("osd dump")["pools"]
        return any("full" in pool["flags_names"].split(",") for pool in pools)

    def _await(self, ask: Callable[[], bool], what: str, daemon: Daemon) -> None:
        """Ask until the answer is true; a daemon that ends meanwhile will never give it."""
        deadline = time.monotonic() + patience(60)
        while not ask():
            assert daemon.running, f"{daemon.name} ended: {daemon.child.last_words()}"
            assert time.monotonic() < deadline, f"waited in vain for {what}"
            time.sleep(0.01)


def _succeeded(making: Child) -> None:
    status = making.wait(60)
    assert status == 0, f"{making.name}: exit {status}: {making.last_words()}"
