# mypy: allow-untyped-calls
"""How connections end by themselves, for libvirt-python and for ours.

Called as `recording` says, and then with the process id of a daemon and with what befalls it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

from tests.libvirt.recording import POOL, URI, VOLUME, libvirt, show, turn

PID, FATE = int(sys.argv[5]), sys.argv[6]
LOOP = "without a loop" not in FATE
THREAD = FATE == "stopped in a call"


def run_loop():
    """Run the loop for good, on a thread: a call of libvirt-python's does not look at the clock."""
    libvirt.virEventAddTimeout(20, lambda *_: None, None)
    while True:
        libvirt.virEventRunDefaultImpl()


def await_end(seen, conn):
    """Wait until the end was told, or nobody will tell it."""
    begun = time.monotonic()
    if THREAD:
        while not seen and time.monotonic() < begun + 8:
            time.sleep(0.02)
    else:
        turn(lambda: seen or not conn.isAlive(), 8)
        turn(lambda: seen, 0.5)
    show("in time", lambda: time.monotonic() - begun < 6)


def later(number):
    """Signal the daemon when the next call waits."""
    threading.Timer(0.3, os.kill, (PID, number)).start()


def main():
    libvirt.registerErrorHandler(lambda *_: None, None)
    if LOOP:
        libvirt.virEventRegisterDefaultImpl()
    if THREAD:
        threading.Thread(target=run_loop, daemon=True).start()
    seen = []
    conn = libvirt.open(URI)
    pool = conn.storagePoolDefineXML(POOL)
    pool.build()
    pool.create()
    volume = pool.createXML(VOLUME % ("a.img", 1 << 20, "raw"))
    stream = conn.newStream()
    volume.upload(stream, 0, 0)
    show("send", stream.send, b"x")
    show("close callback", conn.registerCloseCallback, lambda *told: seen.append(told), "o")
    show("event", conn.storagePoolEventRegisterAny, None, 0, print, None)
    if FATE == "killed":
        os.kill(PID, signal.SIGKILL)
    elif FATE == "killed without a loop":
        show("stream callback", stream.eventAddCallback, 1, print, None)
        os.kill(PID, signal.SIGKILL)
        time.sleep(0.3)
    elif FATE == "killed in a call":
        os.kill(PID, signal.SIGSTOP)
        later(signal.SIGKILL)
        show("call under way", pool.info)
    elif FATE == "killed in a transfer":
        os.kill(PID, signal.SIGSTOP)
        later(signal.SIGKILL)
        show("transfer under way", stream.finish)
    elif FATE == "stopped":
        show("keepalive", conn.setKeepAlive, 1, 1)
        os.kill(PID, signal.SIGSTOP)
    elif FATE == "stopped in a call":
        show("keepalive", conn.setKeepAlive, 1, 1)
        os.kill(PID, signal.SIGSTOP)
        show("call under way", pool.info)
    elif FATE == "stopped while nobody listens":
        show("keepalive", conn.setKeepAlive, 1, 1)
        conn.unregisterCloseCallback()
        os.kill(PID, signal.SIGSTOP)
    if LOOP:
        await_end(seen, conn)
    else:
        show("who finds out", pool.info)
    show("told", lambda: [[each[0] is conn, *each[1:]] for each in seen])
    show("alive", conn.isAlive)
    show("uri", lambda: conn.getURI() == URI)
    show("type", conn.getType)
    show("info", pool.info)
    show("path", volume.path)
    show("stream send", stream.send, b"y")
    show("stream recv", stream.recv, 5)
    show("stream finish", stream.finish)
    show("stream abort", stream.abort)
    show("new stream", lambda: volume.upload(conn.newStream(), 0, 0))
    show("keepalive", conn.setKeepAlive, 1, 1)
    show("deregister", conn.storagePoolEventDeregisterAny, 0)
    show("register", conn.storagePoolEventRegisterAny, None, 1, print, None)
    show("unregister close", conn.unregisterCloseCallback)
    show("register close", conn.registerCloseCallback, print, None)
    stream = volume = pool = None
    show("close", conn.close)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # the thread with the loop
