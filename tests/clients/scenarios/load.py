"""Many clients at once, each of which knows what must be answered."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

from tests.clients.peer import Client, volume_xml

MIB = 1 << 20


def crowd(client: Client, clients: int, seconds: float, seed: int) -> object:
    """Have many connections do what they like for a while; return how many calls were right.

    Each works on volumes of its own, in pools that they share, and fails on any wrong answer.
    """
    for number in range(4):
        client.pool(f"load-{seed}-{number}")
    until = time.monotonic() + seconds
    members = [_Member(client, seed, number, until) for number in range(clients)]
    for member in members:
        member.start()
    for member in members:
        member.join()
    wrong = [member.wrong for member in members if member.wrong]
    assert not wrong, wrong[:3]
    for number in range(4):
        pool = client.connection.storagePoolLookupByName(f"load-{seed}-{number}")
        assert pool.listVolumes() == [], "members leave nothing"
    return sum(member.calls for member in members)


class _Member(threading.Thread):
    """One client with one connection."""

    def __init__(self, client: Client, seed: int, number: int, until: float) -> None:
        super().__init__()
        self._client = client
        self._number = number
        self._until = until
        self._random = random.Random(seed * 1000 + number)
        self._pool = f"load-{seed}-{number % 4}"
        self.calls = 0
        self.wrong = ""

    def run(self) -> None:
        try:
            self._work(self._client.connect())
        except Exception as err:
            self.wrong = f"client {self._number}: {type(err).__name__}: {err}"

    def _work(self, conn: Any) -> None:
        pool = conn.storagePoolLookupByName(self._pool)
        rounds = 0
        while time.monotonic() < self._until or not rounds:
            rounds += 1
            self._round(conn, pool, f"v{self._number}-{rounds}")
        conn.close()

    def _round(self, conn: Any, pool: Any, name: str) -> None:
        capacity = self._random.randrange(1, 64) * 4096
        format = self._random.choice(("raw", "raw", "qcow2"))
        volume = pool.createXML(volume_xml(name, capacity, format=format))
        assert pool.isActive() == 1
        assert volume.info()[1] == capacity, name
        assert name in pool.listVolumes()
        assert conn.storageVolLookupByPath(volume.path()).key() == volume.key()
        assert conn.storageVolLookupByKey(volume.key()).name() == name
        assert f"<name>{name}</name>" in volume.XMLDesc()
        error = self._client.error(pool.createXML, volume_xml(name, capacity))
        assert error[0] == 90, error
        if format == "raw":
            data = self._random.randbytes(min(capacity, 9000))
            self._client.upload(volume, data)
            assert self._client.download(volume, 0, len(data)) == data, name
        volume.resize(capacity + 4096)
        assert volume.info()[1] == capacity + 4096, name
        assert self._client.error(pool.storageVolLookupByName, f"{name}-not")[0] == 50
        volume.delete()
        assert self._client.error(volume.info)[0] == 50
        assert self._client.error(conn.storagePoolLookupByName, "nobody")[0] == 49
        self.calls += 16
