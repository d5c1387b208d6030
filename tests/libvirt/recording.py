# mypy: allow-untyped-calls
"""What the programs share that run for libvirt-python and for ours: a module, and lines of JSON.

They are called as ``PROGRAM MODULE URI READONLY-URI DIRECTORY ...``.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import time
from pathlib import Path

libvirt = importlib.import_module(sys.argv[1])
URI, READONLY, HERE = sys.argv[2], sys.argv[3], Path(sys.argv[4])

UUID = "6a5e2c30-9b6f-4c1e-8a58-0242ac120002"
POOL = (
    f"<pool type='dir'><name>p</name><uuid>{UUID}</uuid>"
    f"<target><path>{HERE}/p</path></target></pool>"
)
VOLUME = (
    "<volume><name>%s</name><capacity>%d</capacity><allocation>0</allocation>"
    "<target><format type='%s'/></target></volume>"
)


def plain(value):
    kind = type(value).__name__
    if isinstance(value, str):
        value = value.replace(str(HERE), "HERE")
        value = re.sub(
            r"<(uuid|capacity|allocation|available|[amc]time|btime|physical)\b.*", "", value
        )
        return re.sub(r"\s*\n\s*", "", value)
    if isinstance(value, bytes):
        return f"{len(value)} bytes {value[:16].hex()} {sum(value)}"
    if isinstance(value, (list, tuple)):
        return [kind, *(plain(each) for each in value)]
    if value is None or isinstance(value, int):
        return value
    return kind


def show(label, call, *args):
    """Print what a call returns or raises; return it."""
    try:
        found = call(*args)
    except libvirt.libvirtError as err:
        err_tuple = err.err and list(err.err)
        getters = [err.get_error_code(), err.get_error_domain(), err.get_error_level()]
        print(json.dumps([label, "!", plain(str(err)), plain(err_tuple), getters]))
    except (TypeError, ValueError, OverflowError, RuntimeError, SystemError) as err:
        print(json.dumps([label, "!", type(err).__name__, str(err)]))
    else:
        print(json.dumps([label, plain(found)]))
        return found
    return None


def turn(until, seconds=5.0):
    """Run the event loop until something is so."""
    ticks = libvirt.virEventAddTimeout(20, lambda *_: None, None)
    end = time.monotonic() + seconds
    while not until() and time.monotonic() < end:
        libvirt.virEventRunDefaultImpl()
    libvirt.virEventRemoveTimeout(ticks)
