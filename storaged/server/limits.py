"""How much one server takes: libvirt's limits by their names, and bounds of our own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What a configuration file and the administration's program may set, by libvirt's names.

    Source of the defaults: libvirt's daemons.
    """

    #: connections at once; more wait to be accepted
    max_clients: int = 5000
    #: connections that may wait to be accepted
    max_queued_clients: int = 1000
    #: connections at once whose client has not proved who it is; more wait to be accepted; 0 is
    #: no limit
    max_anonymous_clients: int = 20
    #: threads that are kept although there is no work
    min_workers: int = 5
    #: threads at work at once; stuck ones do not count
    max_workers: int = 20
    #: threads beside these that do only what ends soon
    prio_workers: int = 5
    #: calls of one client at once; more wait
    max_client_requests: int = 5
    #: seconds of silence after which a client that asked for it is pinged; 0 or less is never
    keepalive_interval: float = 5
    #: pings without an answer after which the connection is given up
    keepalive_count: int = 5


@dataclass(frozen=True, slots=True)
class Bounds:
    """What keeps a peer, hostile or slow, from costing others. Sizes in bytes, times in seconds.

    Incomplete messages must be whole after *message_time* and what they take at *message_rate*;
    time in which the server does not read does not count.
    """

    #: the largest message of a client that has not proved who it is, without its length word
    anonymous_message: int = 256 << 10
    #: how long a client may take to prove who it is
    anonymous_time: float = 60.0
    message_time: float = 30.0
    #: bytes a second
    message_rate: int = 64 << 10
    #: what all clients together may have sent of messages that are not complete, or wait
    partial: int = 128 * MIB
    #: calls of one client that wait; what comes behind them is not read
    backlog: int = 256 << 10
    #: unsent data in memory above which nothing more is made for a client, until it reads
    unsent: int = MIB
    #: events of one client that wait until it reads; one more ends the connection
    events: int = 10_000
    #: the same, by their size
    event_bytes: int = MIB
    #: open uploads and downloads of one client
    streams: int = 1024
    #: data of one upload that wait for its storage
    upload_waiting: int = 4 * MIB
    #: data of all uploads of one client that wait
    uploads_waiting: int = 16 * MIB
    #: so much of an upload is written at once: waking a thread for each piece takes longer
    upload_batch: int = MIB
    #: the longest that less than that waits for more
    upload_delay: float = 0.005
    #: what a download reads before it is another's turn
    download_turn: int = MIB
    #: what all downloads of one client may have read and not yet sent
    downloads_waiting: int = 16 * MIB
    #: threads that move the data of streams, of all clients
    stream_workers: int = 1024
    #: how long a client may take to fetch the last replies before its connection is closed
    closing_time: float = 30.0
    #: how often the times above are looked at
    tick: float = 1.0
