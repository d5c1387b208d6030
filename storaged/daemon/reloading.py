"""Reading configuration and definitions again while clients are served."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from storaged.daemon.config import Loaded, Settings, limits
from storaged.daemon.places import NAME
from storaged.errors import StorageError
from storaged.server.server import Server
from storaged.service.service import Service

_log = logging.getLogger(__name__)

#: What holds from the next start only.
_FIXED = (
    *("unix_sock_group", "unix_sock_ro_perms", "unix_sock_rw_perms", "unix_sock_admin_perms"),
    *("unix_sock_dir", "auth_unix_ro", "auth_unix_rw", "rbd_python"),
    *("max_queued_clients", "admin_max_queued_clients"),
)


class Reload:
    """What SIGHUP does.

    :param service: what clients are served with.
    :param read: reads the configuration.
    :param start_log: has the log follow a configuration.
    :param loaded: the configuration that holds.
    """

    def __init__(
        self,
        service: Service,
        read: Callable[[], Loaded],
        start_log: Callable[[Loaded], None],
        loaded: Loaded,
    ) -> None:
        self._service = service
        self._driver = service.driver
        self._read = read
        self._start_log = start_log
        self._started_with = loaded.settings
        self._loaded = loaded

    def read(self) -> None:
        """Read the configuration and the pools' definitions. This may wait for storage.

        A configuration that cannot be used is reported, and the one before holds.
        """
        try:
            loaded = self._read()
            self._start_log(loaded)
        except StorageError as err:
            _log.error("the configuration stays as it was: %s", err.message)
        else:
            self._note_fixed(loaded.settings)
            self._loaded = loaded
        try:
            self._driver.reload()
        except StorageError as err:
            _log.error("the pools stay as they were: %s", err.message)
        for problem in self._driver.problems():
            _log.warning("%s", problem)
        _log.info("configuration and definitions were read again")

    def apply(self, servers: Mapping[str, Server]) -> None:
        """Have the limits and rules of the configuration hold. Call it on the event loop."""
        self._service.set_protect_backing(bool(self._loaded.settings.protect_backing))
        for name, server in servers.items():
            wanted = limits(self._loaded.settings, admin=name != NAME)
            if wanted != server.limits:
                server.set_limits(wanted)

    def _note_fixed(self, settings: Settings) -> None:
        for key in _FIXED:
            if getattr(settings, key) != getattr(self._started_with, key):
                _log.warning("a change of '%s' holds from the next start on", key)
