"""The ADMIN program: looking after a daemon through its administration socket.

Source: libvirt's administration protocol, by number, order and type.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Final

from storaged.rpc.program import ADMIN, AnyProcedure, Procedure
from storaged.rpc.record import Nested, Record, Void
from storaged.rpc.storage import Flags
from storaged.rpc.typedparam import TypedParam
from storaged.rpc.xdr import Array, Hyper, MaybeString, String, UHyper, UInt

#: The most servers or clients that a list carries.
LIST_MAX: Final = 16384
#: The most parameters of a worker pool, of a client, and of a server's limits.
THREADPOOL_PARAMS_MAX: Final = 32
CLIENT_PARAMS_MAX: Final = 64
LIMITS_PARAMS_MAX: Final = 32


class Transport(IntEnum):
    """How a client is connected."""

    UNIX = 0
    TCP = 1
    TLS = 2


class Server(Record):
    """Names one of the daemon's servers: ``virtstoraged``, or ``admin`` for this program."""

    name: String


class Client(Record):
    """Names a client of a server.

    :param timestamp: when it connected, in seconds since 1970.
    :param transport: a `Transport`.
    """

    server: Server
    id: UHyper
    timestamp: Hyper
    transport: UInt


class LibVersion(Record):
    """A version: major * 1,000,000 + minor * 1,000 + release."""

    version: UHyper


class ListServersArgs(Record):
    """Whether the servers are wanted, or only how many there are."""

    need_results: UInt
    flags: UInt = 0


class ListServersRet(Record):
    """Servers, and how many there are."""

    servers: Annotated[tuple[Server, ...], Array(Nested(Server), LIST_MAX)]
    ret: UInt


class LookupServerArgs(Record):
    """The name of a server."""

    name: String
    flags: UInt = 0


class ServerRet(Record):
    """A server."""

    server: Server


class ServerArgs(Record):
    """A server."""

    server: Server
    flags: UInt = 0


class ThreadpoolRet(Record):
    """The figures of a server's worker pool."""

    params: Annotated[tuple[TypedParam, ...], Array(Nested(TypedParam), THREADPOOL_PARAMS_MAX)]


class ThreadpoolArgs(Record):
    """A server, and what to change of its worker pool."""

    server: Server
    params: Annotated[tuple[TypedParam, ...], Array(Nested(TypedParam), THREADPOOL_PARAMS_MAX)]
    flags: UInt = 0


class ListClientsArgs(Record):
    """A server, and whether its clients are wanted, or only how many there are."""

    server: Server
    need_results: UInt
    flags: UInt = 0


class ListClientsRet(Record):
    """Clients, and how many there are."""

    clients: Annotated[tuple[Client, ...], Array(Nested(Client), LIST_MAX)]
    ret: UInt


class LookupClientArgs(Record):
    """A server, and the number of a client of it."""

    server: Server
    id: UHyper
    flags: UInt = 0


class ClientRet(Record):
    """A client."""

    client: Client


class ClientArgs(Record):
    """A client."""

    client: Client
    flags: UInt = 0


class ClientInfoRet(Record):
    """What is known of a client."""

    params: Annotated[tuple[TypedParam, ...], Array(Nested(TypedParam), CLIENT_PARAMS_MAX)]


class LimitsRet(Record):
    """How many clients a server takes, and has."""

    params: Annotated[tuple[TypedParam, ...], Array(Nested(TypedParam), LIMITS_PARAMS_MAX)]


class LimitsArgs(Record):
    """A server, and how many clients it is to take."""

    server: Server
    params: Annotated[tuple[TypedParam, ...], Array(Nested(TypedParam), LIMITS_PARAMS_MAX)]
    flags: UInt = 0


class LogOutputsRet(Record):
    """Where the log goes, in the syntax of the configuration, and to how many places."""

    outputs: String
    noutputs: UInt


class LogFiltersRet(Record):
    """What is logged, in the syntax of the configuration, and how many rules there are.

    :param filters: None if there are no rules.
    """

    filters: MaybeString
    nfilters: UInt


class LogOutputsArgs(Record):
    """Where the log is to go; None is the default."""

    outputs: MaybeString
    flags: UInt = 0


class LogFiltersArgs(Record):
    """What is to be logged; None is everything of the level."""

    filters: MaybeString
    flags: UInt = 0


class TimeoutArgs(Record):
    """After how many seconds without clients the daemon ends; 0 is never."""

    timeout: UInt
    flags: UInt = 0


_P: Final = ADMIN

OPEN: Final = Procedure(1, "virAdmConnectOpen", Flags, Void, program=_P)
CLOSE: Final = Procedure(2, "virAdmConnectClose", Void, Void, program=_P)
GET_LIB_VERSION: Final = Procedure(3, "virAdmConnectGetLibVersion", Void, LibVersion, program=_P)
LIST_SERVERS: Final = Procedure(
    4, "virAdmConnectListServers", ListServersArgs, ListServersRet, program=_P
)
LOOKUP_SERVER: Final = Procedure(
    5, "virAdmConnectLookupServer", LookupServerArgs, ServerRet, program=_P
)
GET_THREADPOOL: Final = Procedure(
    6, "virAdmServerGetThreadPoolParameters", ServerArgs, ThreadpoolRet, program=_P
)
SET_THREADPOOL: Final = Procedure(
    7, "virAdmServerSetThreadPoolParameters", ThreadpoolArgs, Void, program=_P
)
LIST_CLIENTS: Final = Procedure(
    8, "virAdmServerListClients", ListClientsArgs, ListClientsRet, program=_P
)
LOOKUP_CLIENT: Final = Procedure(
    9, "virAdmServerLookupClient", LookupClientArgs, ClientRet, program=_P
)
CLIENT_GET_INFO: Final = Procedure(10, "virAdmClientGetInfo", ClientArgs, ClientInfoRet, program=_P)
CLIENT_CLOSE: Final = Procedure(11, "virAdmClientClose", ClientArgs, Void, program=_P)
GET_LIMITS: Final = Procedure(12, "virAdmServerGetClientLimits", ServerArgs, LimitsRet, program=_P)
SET_LIMITS: Final = Procedure(13, "virAdmServerSetClientLimits", LimitsArgs, Void, program=_P)
GET_LOG_OUTPUTS: Final = Procedure(
    14, "virAdmConnectGetLoggingOutputs", Flags, LogOutputsRet, program=_P
)
GET_LOG_FILTERS: Final = Procedure(
    15, "virAdmConnectGetLoggingFilters", Flags, LogFiltersRet, program=_P
)
SET_LOG_OUTPUTS: Final = Procedure(
    16, "virAdmConnectSetLoggingOutputs", LogOutputsArgs, Void, program=_P
)
SET_LOG_FILTERS: Final = Procedure(
    17, "virAdmConnectSetLoggingFilters", LogFiltersArgs, Void, program=_P
)
UPDATE_TLS_FILES: Final = Procedure(18, "virAdmServerUpdateTlsFiles", ServerArgs, Void, program=_P)
SET_DAEMON_TIMEOUT: Final = Procedure(
    19, "virAdmConnectSetDaemonTimeout", TimeoutArgs, Void, program=_P
)

#: All procedures, by number.
PROCEDURES: Final[dict[int, AnyProcedure]] = {
    found.number: found for found in list(vars().values()) if isinstance(found, Procedure)
}
