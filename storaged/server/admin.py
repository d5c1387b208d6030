"""The administration of a running daemon, as ``virt-admin`` asks for it.

Figures come from the servers themselves. The socket asks nobody to prove who they are: only the
daemon's own user, and the superuser, are served.

Source: libvirt's administration protocol and what its daemons answer.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from storaged.errors import (
    AccessDenied,
    ArgumentUnsupported,
    BadArgument,
    Domain,
    InternalError,
    InvalidArgument,
    OperationUnsupported,
)
from storaged.rpc import admin as proto
from storaged.rpc.errors import NoSuchClient, NoSuchServer, RPCError
from storaged.rpc.identity import Identity
from storaged.rpc.program import ADMIN, AnyProcedure
from storaged.rpc.record import Record, Void
from storaged.rpc.typedparam import ParamType, TypedParam, Value
from storaged.server.administered import Administered, ClientView, LogControl
from storaged.server.identity import with_names

#: What may be changed of a worker pool and of the limits, and how the server calls it.
_WORKERS: Final = {
    "minWorkers": "min_workers",
    "maxWorkers": "max_workers",
    "prioWorkers": "prio_workers",
}
_CLIENTS: Final = {
    "nclients_max": "max_clients",
    "nclients_unauth_max": "max_anonymous_clients",
}


class Admin:
    """What the administration's procedures do.

    :param servers: the daemon's servers by name, in the order in which they are listed.
    :param set_timeout: takes the seconds after which an idle daemon ends; 0 for never.
    :param level: the version of libvirt that is reported, such as 9000000.
    """

    def __init__(
        self,
        servers: Mapping[str, Administered],
        logs: LogControl,
        set_timeout: Callable[[int], None],
        *,
        level: int = 9_000_000,
    ) -> None:
        self._servers = servers
        self._logs = logs
        self._set_timeout = set_timeout
        self._level = level

    def session(self, identity: Identity) -> AdminSession:
        """Return what serves one client."""
        return AdminSession(self, identity)

    def serve(self, procedure: AnyProcedure, args: Any) -> Record:
        """Serve one call; some wait for files or a directory of users.

        :raise StorageError: what the client is answered instead.
        """
        flags = getattr(args, "flags", 0)
        if flags:
            raise BadArgument(
                f"unsupported flags (0x{flags:x}) in function {procedure.name}",
                function=procedure.name,
                argument="flags",
            )
        return _HANDLERS[procedure.number](self, args)

    # The daemon

    def _nothing(self, _args: object) -> Record:
        return Void()

    def _version(self, _args: object) -> Record:
        return proto.LibVersion(self._level)

    def _list_servers(self, args: proto.ListServersArgs) -> Record:
        found = tuple(proto.Server(name) for name in self._servers) if args.need_results else ()
        return proto.ListServersRet(found, len(self._servers))

    def _lookup_server(self, args: proto.LookupServerArgs) -> Record:
        self._server(args.name)
        return proto.ServerRet(proto.Server(args.name))

    def _timeout(self, args: proto.TimeoutArgs) -> Record:
        self._set_timeout(args.timeout)
        return Void()

    def _update_tls(self, args: proto.ServerArgs) -> Record:
        self._server(args.server.name)
        raise OperationUnsupported("storaged does not listen for TLS", domain=Domain.RPC)

    # The log

    def _log_outputs(self, _args: object) -> Record:
        text = self._logs.outputs_text()
        return proto.LogOutputsRet(text, len(text.split()))

    def _log_filters(self, _args: object) -> Record:
        text = self._logs.filters_text()
        return proto.LogFiltersRet(text, len(text.split()))

    def _set_log_outputs(self, args: proto.LogOutputsArgs) -> Record:
        self._logs.set_outputs(args.outputs)
        return Void()

    def _set_log_filters(self, args: proto.LogFiltersArgs) -> Record:
        self._logs.set_filters(args.filters)
        return Void()

    # One server

    def _server(self, name: str) -> Administered:
        found = self._servers.get(name)
        if found is None:
            raise NoSuchServer(f"No server named '{name}'", domain=Domain.RPC)
        return found

    def _threadpool(self, args: proto.ServerArgs) -> Record:
        figures = self._server(args.server.name).worker_figures()
        values = {
            "minWorkers": figures.min_workers,
            "maxWorkers": figures.max_workers,
            "nWorkers": figures.workers,
            "freeWorkers": figures.free_workers,
            "prioWorkers": figures.prio_workers,
            "jobQueueDepth": figures.job_queue_depth,
        }
        return proto.ThreadpoolRet(_uints(values))

    def _set_threadpool(self, args: proto.ThreadpoolArgs) -> Record:
        server = self._server(args.server.name)
        limits = dataclasses.replace(server.limits, **_changes(args.params, _WORKERS))
        if limits.max_workers < 1:
            raise InvalidArgument("maxWorkers must be at least 1", domain=Domain.RPC)
        if limits.min_workers > limits.max_workers:
            raise InvalidArgument("minWorkers cannot be larger than maxWorkers", domain=Domain.RPC)
        server.set_limits(limits)
        return Void()

    def _limits(self, args: proto.ServerArgs) -> Record:
        server = self._server(args.server.name)
        values = {
            "nclients_max": server.limits.max_clients,
            "nclients": len(server.clients()),
            "nclients_unauth_max": server.limits.max_anonymous_clients,
            "nclients_unauth": server.anonymous(),
        }
        return proto.LimitsRet(_uints(values))

    def _set_limits(self, args: proto.LimitsArgs) -> Record:
        server = self._server(args.server.name)
        limits = dataclasses.replace(server.limits, **_changes(args.params, _CLIENTS))
        if limits.max_anonymous_clients > limits.max_clients:
            raise InvalidArgument(
                "the limit of clients that wait for authentication cannot be larger than that "
                "of all clients",
                domain=Domain.RPC,
            )
        server.set_limits(limits)
        return Void()

    # Clients

    def _list_clients(self, args: proto.ListClientsArgs) -> Record:
        found = self._server(args.server.name).clients()
        if len(found) > proto.LIST_MAX:
            raise InternalError(
                f"too many clients '{len(found)}' for limit '{proto.LIST_MAX}'",
                domain=Domain.RPC,
            )
        shown = found if args.need_results else []
        return proto.ListClientsRet(
            tuple(_client(args.server, client) for client in shown), len(found)
        )

    def _lookup_client(self, args: proto.LookupClientArgs) -> Record:
        return proto.ClientRet(_client(args.server, self._view(args.server.name, args.id)))

    def _client_info(self, args: proto.ClientArgs) -> Record:
        view = self._view(args.client.server.name, args.client.id)
        identity = with_names(view.identity)
        known: tuple[tuple[str, ParamType, Value | None], ...] = (
            ("readonly", ParamType.BOOLEAN, view.readonly),
            ("sasl_user_name", ParamType.STRING, identity.sasl_user),
            ("unix_user_id", ParamType.INT, _signed(identity.uid)),
            ("unix_user_name", ParamType.STRING, identity.user),
            ("unix_group_id", ParamType.INT, _signed(identity.gid)),
            ("unix_group_name", ParamType.STRING, identity.group),
            ("unix_process_id", ParamType.INT, identity.pid),
            ("selinux_context", ParamType.STRING, identity.selinux),
        )
        return proto.ClientInfoRet(
            tuple(
                TypedParam(name, (kind, value)) for name, kind, value in known if value is not None
            )
        )

    def _close_client(self, args: proto.ClientArgs) -> Record:
        if not self._server(args.client.server.name).close_client(args.client.id):
            raise _no_client(args.client.id)
        return Void()

    def _view(self, server: str, number: int) -> ClientView:
        for client in self._server(server).clients():
            if client.id == number:
                return client
        raise _no_client(number)


class AdminSession:
    """The calls of one client of the administration.

    :param identity: who it is: the daemon's own user, or the superuser, or it is refused.
    """

    def __init__(self, admin: Admin, identity: Identity) -> None:
        self._admin = admin
        self._allowed = identity.uid in (0, os.geteuid())
        self._opened = False

    def procedure(self, program: int, number: int) -> AnyProcedure:
        """Return a procedure by its numbers.

        :raise RPCError: there is none.
        """
        if program != ADMIN:
            raise RPCError(f"Cannot find program {program} version 1")
        found = proto.PROCEDURES.get(number)
        if found is None:
            raise RPCError(f"unknown procedure: {number}")
        return found

    def ready(self, procedure: AnyProcedure, args: Record) -> bool:
        """Tell whether `call` does not wait."""
        return procedure.number not in _WAITING

    def call(self, procedure: AnyProcedure, args: Record) -> Record:
        """Serve one call.

        :raise StorageError: what the client is answered instead.
        """
        if not self._allowed:
            raise AccessDenied("the daemon is administered by its own user", domain=Domain.ADMIN)
        opening = procedure is proto.OPEN
        if opening == self._opened:
            already = "already open" if opening else "not open"
            raise InternalError(f"connection {already}", domain=Domain.RPC)
        answer = self._admin.serve(procedure, args)
        self._opened = True
        return answer

    def close(self) -> None:
        """End what ends with the connection: nothing."""


#: What may wait for a directory of users, or for a file.
_WAITING: Final = frozenset((proto.CLIENT_GET_INFO.number, proto.SET_LOG_OUTPUTS.number))

_HANDLERS: Final[Mapping[int, Callable[[Admin, Any], Record]]] = {
    proto.OPEN.number: Admin._nothing,
    proto.CLOSE.number: Admin._nothing,
    proto.GET_LIB_VERSION.number: Admin._version,
    proto.LIST_SERVERS.number: Admin._list_servers,
    proto.LOOKUP_SERVER.number: Admin._lookup_server,
    proto.GET_THREADPOOL.number: Admin._threadpool,
    proto.SET_THREADPOOL.number: Admin._set_threadpool,
    proto.LIST_CLIENTS.number: Admin._list_clients,
    proto.LOOKUP_CLIENT.number: Admin._lookup_client,
    proto.CLIENT_GET_INFO.number: Admin._client_info,
    proto.CLIENT_CLOSE.number: Admin._close_client,
    proto.GET_LIMITS.number: Admin._limits,
    proto.SET_LIMITS.number: Admin._set_limits,
    proto.GET_LOG_OUTPUTS.number: Admin._log_outputs,
    proto.GET_LOG_FILTERS.number: Admin._log_filters,
    proto.SET_LOG_OUTPUTS.number: Admin._set_log_outputs,
    proto.SET_LOG_FILTERS.number: Admin._set_log_filters,
    proto.UPDATE_TLS_FILES.number: Admin._update_tls,
    proto.SET_DAEMON_TIMEOUT.number: Admin._timeout,
}


def _client(server: proto.Server, view: ClientView) -> proto.Client:
    return proto.Client(server, view.id, view.since, proto.Transport.UNIX)


def _no_client(number: int) -> NoSuchClient:
    return NoSuchClient(f"No client with requested ID '{number}'", domain=Domain.RPC)


def _signed(number: int | None) -> int | None:
    """Return a user's or group's id as the protocol has it: signed."""
    return number - (1 << 32) if number is not None and number >= 1 << 31 else number


def _uints(values: Mapping[str, int]) -> tuple[TypedParam, ...]:
    return tuple(TypedParam(name, (ParamType.UINT, value)) for name, value in values.items())


def _changes(params: Iterable[TypedParam], known: Mapping[str, str]) -> dict[str, Any]:
    """Return what typed parameters set, by the names of the limits.

    :raise ArgumentUnsupported: a parameter that cannot be set.
    :raise InvalidArgument: one of the wrong type, or given twice.
    """
    found: dict[str, Any] = {}
    for param in params:
        kind, value = param.value
        name = known.get(param.field)
        if name is None:
            raise ArgumentUnsupported(
                f"parameter '{param.field}' not supported", domain=Domain.NONE
            )
        if kind is not ParamType.UINT:
            raise InvalidArgument(
                f"invalid type '{kind.name.lower()}' for parameter '{param.field}', "
                "expected 'uint'",
                domain=Domain.NONE,
            )
        if name in found:
            raise InvalidArgument(
                f"parameter '{param.field}' occurs multiple times", domain=Domain.NONE
            )
        found[name] = value
    return found
