"""The life of a daemon that serves: signals, the watchdog, the time without clients, the end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final

from storaged.daemon.reloading import Reload
from storaged.daemon.systemd import Notifier
from storaged.driver import Driver
from storaged.server.server import Server

_log = logging.getLogger(__name__)

#: The whole end may take so long, in seconds; then the process goes without waiting further.
END_BOUND: Final = 30.0
#: How long clients may fetch their last answers, and jobs come to an end.
_PATIENCE: Final = 10.0
#: How often it is looked whether the daemon is idle.
_GLANCE: Final = 0.25

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


class Running:
    """A daemon from the first client to the last.

    :param servers: by name; they are started and stopped here.
    :param timeout: seconds without clients and jobs after which it ends; 0 for never.
    """

    def __init__(
        self,
        servers: Mapping[str, Server],
        driver: Driver,
        notifier: Notifier,
        reload: Reload,
        *,
        timeout: int = 0,
    ) -> None:
        self._servers = servers
        self._driver = driver
        self._notifier = notifier
        self._reload = reload
        self._timeout = timeout
        self._busy = time.monotonic()
        self._ending = asyncio.Event()
        self._reloading = False
        self._reload_again = False

    def set_timeout(self, seconds: int) -> None:
        """End after so many seconds without clients and jobs; 0 is never. From any thread."""
        self._timeout = seconds

    def listen_to_signals(self) -> None:
        """Have signals heard; what they ask for waits for `run`. Call it on the event loop."""
        loop = asyncio.get_running_loop()
        for number in _ENDING:
            loop.add_signal_handler(number, self._end, number)
        loop.add_signal_handler(signal.SIGHUP, self._begin_reload)

    async def run(self, ready: Callable[[], None]) -> int:
        """Serve until the end; return the exit status.

        :param ready: called once clients are accepted.
        """
        for server in self._servers.values():
            server.start()
        self._notifier.ready("Serving")
        ready()
        self._give_sign_of_life()
        self._look_whether_idle()
        await self._ending.wait()
        await self._stop()
        return 0

    def _end(self, number: int) -> None:
        if self._ending.is_set():
            if number == signal.SIGINT:  # somebody at a terminal who does not want to wait
                _log.warning("a second SIGINT: ending at once")
                os._exit(1)
            return
        _log.info("%s: ending", signal.Signals(number).name)
        self._ending.set()

    async def _stop(self) -> None:
        self._notifier.stopping()
        last_resort = threading.Timer(END_BOUND, _leave)
        last_resort.daemon = True
        last_resort.start()
        await asyncio.gather(*(server.stop(_PATIENCE) for server in self._servers.values()))
        self._driver.close()
        last_resort.cancel()

    # The supervisor

    def _give_sign_of_life(self) -> None:
        """Tell the watchdog that the loop goes round, twice in the time it allows."""
        if self._notifier.watchdog:
            self._notifier.alive()
            asyncio.get_running_loop().call_later(
                self._notifier.watchdog / 2, self._give_sign_of_life
            )

    # The time without clients

    def _look_whether_idle(self) -> None:
        now = time.monotonic()
        if self._timeout and not self._ending.is_set():
            quiet = min(server.idle_for() for server in self._servers.values())
            if quiet == 0 or self._reloading or self._driver.is_needed():
                self._busy = now
            elif min(quiet, now - self._busy) >= self._timeout:
                _log.info("no clients and no jobs for %d s: ending", self._timeout)
                self._ending.set()
        asyncio.get_running_loop().call_later(_GLANCE, self._look_whether_idle)

    # Reading again

    def _begin_reload(self) -> None:
        if self._reloading:
            self._reload_again = True
            return
        self._reloading = True
        self._notifier.reloading()
        loop = asyncio.get_running_loop()
        threading.Thread(
            target=self._reload_aside, args=(loop,), name="storaged-reload", daemon=True
        ).start()

    def _reload_aside(self, loop: asyncio.AbstractEventLoop) -> None:
        """Read the files, on a thread: they may lie on storage that takes its time."""
        try:
            self._reload.read()
        except Exception:
            _log.exception("the reload failed")
        loop.call_soon_threadsafe(self._end_reload)

    def _end_reload(self) -> None:
        self._reload.apply(self._servers)
        self._notifier.ready("Serving")
        self._reloading = False
        if self._reload_again:
            self._reload_again = False
            self._begin_reload()


def _leave() -> None:
    _log.error("the end took more than %d s: leaving what is still under way", END_BOUND)
    os._exit(1)
