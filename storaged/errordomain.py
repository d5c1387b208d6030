"""Which part of libvirt an error comes from, as its clients are told."""

from __future__ import annotations

from enum import IntEnum


class Domain(IntEnum):
    """Which part of libvirt would have raised the error: the number stands on the wire."""

    NONE = 0
    #: parser helpers: missing root, missing attribute, schema
    XML = 5
    RPC = 7
    REMOTE = 13
    STORAGE = 18
    DOMAIN = 20
    NODEDEV = 22
    SECRET = 30
    DOMAIN_SNAPSHOT = 35
    STREAMS = 38
    URI = 45
    DBUS = 47
    IDENTITY = 53
    ACCESS = 55
    POLKIT = 60
    ADMIN = 62
    DOMAIN_CHECKPOINT = 69
