"""Event loops: the default one, and one of the caller's own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from storaged.libvirt.constants import VIR_EVENT_HANDLE_HANGUP, VIR_EVENT_HANDLE_READABLE
from storaged.libvirt.eventloop import DefaultLoop
from storaged.libvirt.wakeup import Wakeup

PROJECT = Path(__file__).parents[2]


def test_timer_repeats_until_removed() -> None:
    loop, fired = DefaultLoop(), []

    def fire(timer: int, opaque: Any) -> None:
        fired.append((timer, opaque))
        if len(fired) == 2:
            assert loop.remove_timeout(timer) == 0

    timer = loop.add_timeout(1, fire, "it")
    while len(fired) < 2:
        loop.run()
    assert fired == [(timer, "it")] * 2
    assert loop.remove_timeout(timer) == -1


def test_handle() -> None:
    loop, seen = DefaultLoop(), []
    reading, writing = os.pipe()

    def read(watch: int, fd: int, events: int, opaque: Any) -> None:
        seen.append((watch, fd, events, os.read(fd, 9), opaque))

    watch = loop.add_handle(reading, VIR_EVENT_HANDLE_READABLE, read, "it")
    os.write(writing, b"x")
    loop.run()
    os.close(writing)
    loop.run()
    assert seen == [
        (watch, reading, VIR_EVENT_HANDLE_READABLE, b"x", "it"),
        (watch, reading, VIR_EVENT_HANDLE_HANGUP, b"", "it"),
    ]
    assert (loop.remove_handle(watch), loop.remove_handle(watch)) == (0, -1)
    os.close(reading)


def test_a_waiting_turn_sees_what_another_thread_adds() -> None:
    loop, done = DefaultLoop(), threading.Event()
    loop.add_timeout(-1, lambda *_: None, None)

    def turn() -> None:
        while not done.is_set():
            loop.run()

    thread = threading.Thread(target=turn)
    thread.start()
    time.sleep(0.05)
    loop.add_timeout(1, lambda *_: done.set(), None)
    thread.join(5)
    assert done.is_set()


def test_what_a_callback_raises_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    loop = DefaultLoop()
    loop.add_timeout(0, lambda *_: 1 // 0, None)
    assert loop.run() == 0
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_wakeup_keeps_the_order_and_forgets_at_the_end() -> None:
    loop, seen = DefaultLoop(), []
    wakeup = Wakeup(loop)
    for number in range(5000):  # more than a read of the pipe takes
        wakeup.post(lambda number=number: seen.append(number))  # type: ignore[misc]
    loop.run()
    assert seen == list(range(5000))
    wakeup.post(lambda: seen.append(-1))
    wakeup.close()
    wakeup.post(lambda: seen.append(-2))
    assert seen[-1] == 4999


CUSTOM = """
import select, sys
from storaged import libvirt
handles, timers, seen = {}, {}, []
def add_handle(fd, events, callback, opaque):
    handles[len(handles) + 1] = [fd, events, callback, opaque]
    return len(handles)
libvirt.virEventRegisterImpl(
    add_handle, lambda watch, events: handles[watch].__setitem__(1, events), handles.pop,
    lambda timeout, callback, opaque: timers.setdefault(1, callback) and 1,
    lambda timer, timeout: None, timers.pop)
conn = libvirt.open("storage:///embed?root=" + sys.argv[1])
conn.storagePoolEventRegisterAny(None, 0, lambda c, p, e, d, o: seen.append((p.name(), e, o)), "it")
conn.storagePoolDefineXML(
    f"<pool type='dir'><name>p</name><target><path>{sys.argv[1]}/p</path></target></pool>")
while not seen:
    for watch, (fd, events, callback, opaque) in list(handles.items()):
        if select.select([fd], [], [], 5)[0]:
            callback(watch, fd, 1, opaque)
print(seen)
"""


def test_a_loop_of_the_callers(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CUSTOM, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=PROJECT,
        timeout=30,
    )
    assert done.stdout == "[('p', 0, 'it')]\n", done.stderr


def test_a_connection_ends_with_its_last_holder(tmp_path: Path) -> None:
    from storaged import libvirt

    uri = f"storage:///embed?root={tmp_path}"
    conn = libvirt.open(uri)
    pool = conn.storagePoolDefineXML(
        f"<pool type='dir'><name>p</name><target><path>{tmp_path}/p</path></target></pool>"
    )
    assert conn.close() == 1
    assert pool.isActive() == 0
    del pool, conn
    dropped = libvirt.open(uri)  # the engine is free again
    del dropped
    assert libvirt.open(uri).close() == 0
