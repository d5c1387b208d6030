"""What a cluster of one node is told: ceph.conf and the first keyring.

The settings make it small, quick to start and quick to tell what changed; each deviation from
Ceph's defaults that is not about size or places says what it is for.
"""

from __future__ import annotations

import base64
import secrets
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

#: Users from the start, with what they may do. They need no call, as later ones do.
CAPS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "mon.": {"mon": "allow *"},
        "osd.0": {"mon": "allow profile osd", "osd": "allow *", "mgr": "allow profile osd"},
        "mgr.x": {"mon": "allow profile mgr", "osd": "allow *", "mds": "allow *"},
        "client.admin": {"mon": "allow *", "osd": "allow *", "mgr": "allow *", "mds": "allow *"},
        "client.libvirt": {"mon": "profile rbd", "osd": "profile rbd", "mgr": "profile rbd"},
    }
)

_CONF = """\
[global]
fsid = {fsid}
mon host = {monitors}
mon initial members = a
public addr = {address}
cluster addr = {address}
ms bind ipv4 = {ipv4}
ms bind ipv6 = {ipv6}
auth cluster required = {auth}
auth service required = {auth}
auth client required = {auth}
auth allow insecure global id reclaim = false
keyring = {directory}/keyring
run dir = {directory}/run
log file = {directory}/log/$name.log
crash dir = {directory}/empty
# one copy, on one disk; tests make and delete pools as they like
osd crush chooseleaf type = 0
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
mon allow pool size one = true
mon allow pool delete = true
mon max pg per osd = 100000
mon warn on pool no redundancy = false
[mon]
admin socket =
mon data = {directory}/mon
mon cluster log file = {directory}/log/cluster.log
# the disk that the tests run on may well be nearly full
mon data avail warn = 2
mon data avail crit = 1
# changes are agreed on at once, capacities told every second; who is stopped for a while is not
# given up
paxos propose interval = 0.002
paxos min wait = 0.005
mon mgr digest period = 1
mon mgr beacon grace = 3600
[osd]
osd data = {directory}/osd
osd objectstore = {store}
# what `ceph tell` reaches; relative, for the path of a socket has 107 bytes at most
admin socket = osd.asok
osd heartbeat interval = 1
osd heartbeat grace = 3600
osd mon report interval = 1
osd crush update on start = false
osd op num shards = 2
osd op num threads per shard = 2
osd class load list = rbd lock journal refcount cas
# what a deleted pool or snapshot used is free at once
osd delete sleep hdd = 0
osd delete sleep ssd = 0
osd snap trim sleep hdd = 0
# told to end, memstore writes down what it has, and asks no monitor before
osd fast shutdown = {fast_shutdown}
osd fast shutdown notify mon = false
memstore device bytes = {size}
bluestore block size = {size}
bluestore cache autotune = false
bluestore cache size = 67108864
bluestore fsck on mount = false
bluestore fsck on mkfs = false
# each close of the block file sleeps so long; 250 by default
bdev aio poll ms = 5
mgr stats period = 1
[mgr]
admin socket =
mgr data = {directory}/mgr
# no module at all: it is there in 0.2 s with 35 MiB instead of 5 s with 300 MiB
mgr module path = {directory}/empty
mgr tick period = 1
mgr stats period = 1
[client]
log file = {directory}/log/client.log
"""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the monitor listens: one address, a port for each version of the protocol."""

    host: str
    port: int  #: of version 1, which 6789 stands for
    port2: int  #: of version 2, which 3300 stands for

    @property
    def bracketed(self) -> str:
        """The address as it stands before a port."""
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def monitors(self) -> str:
        """Both ports, as ``mon host`` and monmaptool take them."""
        return f"[v2:{self.bracketed}:{self.port2},v1:{self.bracketed}:{self.port}]"


def conf_text(
    directory: Path, endpoint: Endpoint, fsid: str, *, auth: str, store: str, size: int
) -> str:
    """Return the text of ceph.conf.

    :param size: of the only disk, in bytes.
    """
    return _CONF.format(
        fsid=fsid,
        directory=directory,
        monitors=endpoint.monitors,
        address=endpoint.bracketed,
        ipv4=str(":" not in endpoint.host).lower(),
        ipv6=str(":" in endpoint.host).lower(),
        auth=auth,
        store=store,
        size=size,
        fast_shutdown=str(store != "memstore").lower(),
    )


def new_key() -> str:
    """Return a key as ``ceph-authtool --gen-print-key`` prints it.

    It is 1 (AES), the time in seconds and nanoseconds, the length, and 16 random bytes.
    """
    head = struct.pack("<HIIH", 1, int(time.time()), 0, 16)
    return base64.b64encode(head + secrets.token_bytes(16)).decode()


def keyring_entry(user: str, key: str, caps: Mapping[str, str]) -> str:
    """Return a user's section of a keyring."""
    lines = [f"[{user}]", f"\tkey = {key}"]
    lines += [f'\tcaps {service} = "{text}"' for service, text in caps.items()]
    return "\n".join(lines) + "\n"
