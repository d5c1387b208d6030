"""Putting the daemon together, in the order that keeps clients away until all is ready."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path

from storaged.atomic import make_directory
from storaged.daemon import admission, background, config
from storaged.daemon.admission import Admission
from storaged.daemon.config import Auth, Loaded, limits
from storaged.daemon.figures import figures
from storaged.daemon.logs import Logs
from storaged.daemon.options import Options
from storaged.daemon.pidfile import PidFile
from storaged.daemon.places import NAME, places
from storaged.daemon.reloading import Reload
from storaged.daemon.running import Running
from storaged.daemon.systemd import Activated, Notifier, activated
from storaged.driver import Driver, open_driver
from storaged.driverlock import EngineKind
from storaged.errors import StorageError
from storaged.rpc.remote import AuthType
from storaged.server.admin import Admin
from storaged.server.identity import system_token
from storaged.server.polkit import Polkit
from storaged.server.server import Role, Server
from storaged.server.sockets import Bound, bind
from storaged.service import Service
from storaged.version import VERSION

_log = logging.getLogger(__name__)

_WIRE = {Auth.NONE: AuthType.NONE, Auth.POLKIT: AuthType.POLKIT}


@dataclass(frozen=True, slots=True)
class _Socket:
    """A socket to be served."""

    bound: Bound
    role: Role
    auth: AuthType


class Program:
    """One run of the daemon.

    :param environ: the environment; what concerns this process alone is taken out.
    """

    def __init__(self, options: Options, environ: MutableMapping[str, str]) -> None:
        self._options = options
        self._environ = environ
        self._places = places(root=options.root, session=options.session, environ=environ)
        detached = options.ready_fd is not None
        self._logs = Logs(dict(environ), file=self._places.log if detached else None)

    def run(self) -> int:
        """Serve until a signal, or the time without clients, ends it; return the exit status.

        :raise StorageError: it cannot be started; nothing is left behind.
        """
        signal.signal(signal.SIGHUP, _not_yet)
        loaded = self._read()
        self._start_log(loaded)
        notifier = Notifier.of(self._environ)
        handed = activated(self._environ)
        admitted = admission.decide(loaded.settings, privileged=not self._options.session)
        if handed.rw is not None:
            admission.require_closed(handed.rw, admitted)
        elif not handed:
            admission.require_closed_mode(self._directory(loaded) / self._places.rw.name, admitted)
        driver = self._open_driver(loaded, handed)
        try:
            return self._serve(loaded, notifier, handed, admitted, driver)
        finally:
            driver.close()

    def _read(self) -> Loaded:
        given = self._options.config
        path = self._places.config if given is None else Path(given)
        return config.load(path, required=given is not None)

    def _start_log(self, loaded: Loaded) -> None:
        settings = loaded.settings
        level = min(settings.log_level, 2) if self._options.verbose else settings.log_level
        self._logs.start(level, settings.log_filters, settings.log_outputs)
        for warning in loaded.warnings:
            _log.warning("%s", warning)

    def _open_driver(self, loaded: Loaded, handed: Activated) -> Driver:
        served = self._directory(loaded) / self._places.rw.name
        if handed.rw is not None:
            served = handed.rw.path
        driver = open_driver(
            self._places.paths,
            autostart=True,
            watch=True,
            kind=EngineKind.DAEMON,
            socket=os.fspath(served),
            rbd_python=loaded.settings.rbd_python,
        )
        for problem in driver.problems():
            _log.warning("%s", problem)
        # What was loaded stays: garbage is not looked for in it any more.
        gc.collect()
        gc.freeze()
        return driver

    def _directory(self, loaded: Loaded) -> Path:
        return Path(loaded.settings.unix_sock_dir or self._places.sockets)

    def _serve(
        self,
        loaded: Loaded,
        notifier: Notifier,
        handed: Activated,
        admitted: Admission,
        driver: Driver,
    ) -> int:
        given = self._options.pid_file
        pid_file = PidFile(self._places.pid_file if given is None else Path(given))
        try:
            service = Service(driver, token=self._token())
            service.set_protect_backing(bool(loaded.settings.protect_backing))
            return asyncio.run(self._main(loaded, notifier, handed, admitted, service))
        finally:
            pid_file.remove()

    def _token(self) -> str | None:
        try:
            return system_token(self._places.token)
        except StorageError as err:
            # Then no daemon is believed that it speaks for others, but for those of the superuser.
            _log.warning("other daemons cannot be recognised: %s", err.message)
            return None

    def _sockets(self, loaded: Loaded, handed: Activated, admitted: Admission) -> list[_Socket]:
        """Listen where the configuration says; or, if systemd does that for us, at nothing else."""
        rw, ro = _WIRE[admitted.rw], _WIRE[admitted.ro]
        if handed:
            given = (
                (handed.rw, Role.READ_WRITE, rw),
                (handed.ro, Role.READ_ONLY, ro),
                (handed.admin, Role.ADMIN, AuthType.NONE),
            )
            return [_Socket(bound, role, auth) for bound, role, auth in given if bound is not None]
        settings, places = loaded.settings, self._places
        directory = self._directory(loaded)
        make_directory(directory, mode=places.paths.public_mode)
        queue, admin_queue = settings.max_queued_clients, settings.admin_max_queued_clients
        wanted = (
            (places.admin, admitted.admin_mode, admin_queue, Role.ADMIN, AuthType.NONE),
            (places.ro, admitted.ro_mode, queue, Role.READ_ONLY, ro),
            # last: whoever waits for it finds the others there
            (places.rw, admitted.rw_mode, queue, Role.READ_WRITE, rw),
        )
        made: list[_Socket] = []
        try:
            for path, mode, backlog, role, auth in wanted:
                if path is not None:
                    at = directory / path.name
                    bound = bind(at, mode=mode, group=admitted.group, backlog=backlog)
                    made.append(_Socket(bound, role, auth))
                    if role is Role.READ_WRITE:
                        admission.require_closed(bound, admitted)
        except BaseException:
            for socket in made:
                socket.bound.close()
            raise
        return made

    async def _main(
        self,
        loaded: Loaded,
        notifier: Notifier,
        handed: Activated,
        admitted: Admission,
        service: Service,
    ) -> int:
        servers: dict[str, Server] = {}
        running = Running(
            servers,
            service.driver,
            notifier,
            Reload(service, self._read, self._start_log, loaded),
            timeout=self._options.timeout,
        )
        # Before anybody can take the sockets for a sign that signals are heard.
        running.listen_to_signals()
        settings = loaded.settings
        admin = Admin(servers, self._logs, running.set_timeout)
        servers["admin"] = Server("admin", limits(settings, admin=True), admin=admin)
        servers[NAME] = Server(NAME, limits(settings), service=service, authority=Polkit())
        service.add_metrics(lambda: figures(servers))
        for socket in self._sockets(loaded, handed, admitted):
            name = "admin" if socket.role is Role.ADMIN else NAME
            servers[name].listen(socket.bound, socket.role, socket.auth)
        return await running.run(self._say_ready)

    def _say_ready(self) -> None:
        _log.info("storaged %s serves %s", VERSION, self._places.paths.uri)
        if self._options.ready_fd is not None:
            background.say_ready(self._options.ready_fd)


def _not_yet(_number: int, _frame: object) -> None:
    _log.warning("a reload was asked for while the daemon was starting: there is nothing to reload")
