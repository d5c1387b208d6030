"""The functions of event loops: register one, run the default one, watch files and clocks."""

from __future__ import annotations

from collections.abc import Callable
from operator import index
from typing import Any, Final

from storaged.libvirt.errors import libvirtError
from storaged.libvirt.eventloop import (
    CustomLoop,
    DefaultLoop,
    EventLoop,
    HandleCallback,
    TimeoutCallback,
    invoke_handle,
    invoke_timeout,
)
from storaged.libvirt.process import PROCESS

#: Libvirt's own loop; connections use it once it is registered.
_DEFAULT: Final = DefaultLoop()

_eventInvokeHandleCallback = invoke_handle  # noqa: N816 -- names that libvirtaio uses
_eventInvokeTimeoutCallback = invoke_timeout  # noqa: N816


def virEventRegisterDefaultImpl() -> int:  # noqa: N802
    """Let connections tell their events through the default loop; `virEventRunDefaultImpl` runs it.

    A loop that is registered already stays.
    """
    if PROCESS.loop is None:
        PROCESS.loop = _DEFAULT
    return 0


def virEventRunDefaultImpl() -> int:  # noqa: N802
    """Run one turn of the default loop: wait until something happens, and call back."""
    return _DEFAULT.run()


def virEventRegisterImpl(  # noqa: N802
    addHandle: Callable[..., int],  # noqa: N803
    updateHandle: Callable[..., object],  # noqa: N803
    removeHandle: Callable[..., object],  # noqa: N803
    addTimeout: Callable[..., int],  # noqa: N803
    updateTimeout: Callable[..., object],  # noqa: N803
    removeTimeout: Callable[..., object],  # noqa: N803
) -> None:
    """Let connections tell their events through a loop of the caller's.

    The two functions that add get a callable and a value, and call ``cb(watch, fd, events, value)``
    or ``cb(timer, value)``; they return the number that the other functions get.
    """
    PROCESS.loop = CustomLoop(
        addHandle, updateHandle, removeHandle, addTimeout, updateTimeout, removeTimeout
    )


def virEventAddHandle(fd: int, events: int, cb: HandleCallback, opaque: Any) -> int:  # noqa: N802
    """Watch a file; *cb* is called with the watch, the file, the events and *opaque*.

    :raise libvirtError: there is no loop.
    """
    watch = _loop("virEventAddHandle").add_handle(index(fd), index(events), cb, opaque)
    return _checked(watch, "virEventAddHandle")


def virEventUpdateHandle(watch: int, events: int) -> None:  # noqa: N802
    """Watch for other events."""
    if PROCESS.loop is not None:
        PROCESS.loop.update_handle(index(watch), index(events))


def virEventRemoveHandle(watch: int) -> int:  # noqa: N802
    """Stop watching.

    :raise libvirtError: there is no such watch.
    """
    loop = _loop("virEventRemoveHandle")
    return _checked(loop.remove_handle(index(watch)), "virEventRemoveHandle")


def virEventAddTimeout(timeout: int, cb: TimeoutCallback, opaque: Any) -> int:  # noqa: N802
    """Call *cb* with the timer and *opaque* every *timeout* milliseconds; -1 is never.

    :raise libvirtError: there is no loop.
    """
    timer = _loop("virEventAddTimeout").add_timeout(index(timeout), cb, opaque)
    return _checked(timer, "virEventAddTimeout")


def virEventUpdateTimeout(timer: int, timeout: int) -> None:  # noqa: N802
    """Change the time of a timer."""
    if PROCESS.loop is not None:
        PROCESS.loop.update_timeout(index(timer), index(timeout))


def virEventRemoveTimeout(timer: int) -> int:  # noqa: N802
    """Stop a timer.

    :raise libvirtError: there is no such timer.
    """
    loop = _loop("virEventRemoveTimeout")
    return _checked(loop.remove_timeout(index(timer)), "virEventRemoveTimeout")


def virEventInvokeFreeCallback(opaque: Any) -> None:  # noqa: N802
    """Do nothing: what a loop of the caller's drops frees itself."""


def _loop(function: str) -> EventLoop:
    if PROCESS.loop is None:
        PROCESS.reset()
        raise libvirtError(f"{function}() failed")
    return PROCESS.loop


def _checked(found: int, function: str) -> int:
    if found < 0:
        PROCESS.reset()
        raise libvirtError(f"{function}() failed")
    return found
