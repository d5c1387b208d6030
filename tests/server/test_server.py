"""The server as a whole: its clients, its limits at run time, its end."""

from __future__ import annotations

import dataclasses
import os
import threading
import time

import pytest

from storaged.rpc import remote, storage
from storaged.rpc import streams as wire
from storaged.rpc.storage import ListPoolsArgs, PoolXMLArgs
from storaged.server.limits import ServerLimits
from tests.doubles import eventually, promptly
from tests.server.conftest import Daemon
from tests.server.peer import Refusal

VOLUME = "<volume><name>v</name><capacity>4096</capacity></volume>"


def test_clients_as_the_administration_sees_them(served: Daemon) -> None:
    before = int(time.time())
    served.connect().open()
    served.connect("ro").open()
    first, second = served.server.clients()
    assert second.id == first.id + 1
    assert (first.readonly, second.readonly) == (False, True)
    assert before <= first.since <= time.time()
    assert (first.identity.uid, first.identity.pid) == (os.geteuid(), os.getpid())


def test_client_is_sent_away(served: Daemon) -> None:
    peer = served.connect().open()
    (client,) = served.server.clients()
    assert served.server.close_client(client.id)
    assert peer.hung_up(5)
    eventually(lambda: not served.server.clients())
    assert not served.server.close_client(client.id)


def test_limits_change_while_it_runs(served: Daemon) -> None:
    server = served.server
    server.set_limits(dataclasses.replace(server.limits, max_clients=1, max_workers=7))
    assert server.worker_figures().max_workers == 7
    first, second = served.connect().open(), served.connect()
    serial = second.begin(remote.AUTH_LIST)
    assert second.silent()
    server.set_limits(ServerLimits())
    assert second.reply(serial, remote.AUTH_LIST).types == (0,)
    with pytest.raises(ValueError, match="workers"):
        server.set_limits(ServerLimits(min_workers=9, max_workers=8))
    assert server.limits == ServerLimits()
    assert first.call(storage.LIST_ALL_POOLS, ListPoolsArgs(1)).ret == 1


def test_idle_time(served: Daemon) -> None:
    eventually(lambda: served.server.idle_for() > 0.01)
    peer = served.connect().open()
    assert served.server.idle_for() == 0
    peer.close()
    eventually(lambda: served.server.idle_for() > 0)


def test_stop_answers_what_is_under_way(served: Daemon) -> None:
    """A client's jobs are cancelled, it hears of that, and then the connection ends."""
    peer, idle = served.connect().open(), served.connect().open()
    served.control.hold("create", lively=True)
    serial = peer.begin(storage.VOL_CREATE_XML, PoolXMLArgs(peer.pool(), VOLUME))
    served.control.wait_for("create")
    with promptly(5):
        served.running[-1].stop()
    with pytest.raises(Refusal) as caught:
        peer.reply(serial, storage.VOL_CREATE_XML)
    assert caught.value.code == 78
    assert peer.hung_up(5)
    assert idle.hung_up(5)


def test_stop_does_not_wait_for_the_lost(served: Daemon) -> None:
    """Storage that does not answer delays the end no longer than the bound."""
    peer = served.connect().open()
    served.control.hold("create")
    peer.begin(storage.VOL_CREATE_XML, PoolXMLArgs(peer.pool(), VOLUME))
    served.control.wait_for("create")
    with promptly(6):
        served.running[-1].stop(2)
    assert peer.hung_up(5)


def test_stop_with_open_streams(served: Daemon) -> None:
    (served.root / "pool-p" / "v").write_bytes(bytes(4096))
    served.refresh()
    peer = served.connect().open()
    header = peer.stream(storage.VOL_UPLOAD, peer.volume("v"))
    peer.send(wire.data(header, b"written"))
    eventually(lambda: (served.root / "pool-p" / "v").read_bytes().startswith(b"written"))
    with promptly(6):
        served.running[-1].stop()
    assert (served.root / "pool-p" / "v").read_bytes().startswith(b"written")


def test_no_thread_is_left(daemon: Daemon) -> None:
    before = threading.active_count()
    daemon.serve()
    for _ in range(10):
        daemon.connect().open()
    daemon.running[-1].stop()
    eventually(lambda: threading.active_count() <= before)
