"""What a program of the protocol is made of: numbered procedures, each with its two records."""

from __future__ import annotations

from enum import Enum
from typing import Any, Final, Generic, TypeVar

from storaged.rpc.packet import VERSION as VERSION
from storaged.rpc.record import Record

A = TypeVar("A", bound=Record)
R = TypeVar("R", bound=Record)

REMOTE: Final = 0x20008086
QEMU: Final = 0x20008087
LXC: Final = 0x00068000
KEEPALIVE: Final = 0x6B656570
ADMIN: Final = 0x06900690
#: storaged's own, "stor": what libvirt has no call for
EXTENSION: Final = 0x73746F72


class Access(Enum):
    """Which connections may call a procedure."""

    #: also before the client has proved who it is
    ANYBODY = "anybody"
    #: also through a read-only connection
    READER = "reader"
    WRITER = "writer"
    #: nobody: the server sends it by itself
    EVENT = "event"


class Procedure(Generic[A, R]):
    """One procedure of a program.

    :param number: as it stands in the header.
    :param name: libvirt's name of the C function, as it stands in error messages.
    :param args: the record that a call carries; `Void` for a procedure without arguments.
    :param ret: the record that a reply carries; `Void` for one that returns nothing.
    :param access: who may call it.
    :param stream: whether a stream of data follows a successful call.
    :param priority: whether it may run on a worker that is kept for what ends soon.
    """

    __slots__ = ("access", "args", "name", "number", "priority", "program", "ret", "stream")

    def __init__(
        self,
        number: int,
        name: str,
        args: type[A],
        ret: type[R],
        access: Access = Access.WRITER,
        *,
        program: int = REMOTE,
        stream: bool = False,
        priority: bool = False,
    ) -> None:
        self.number = number
        self.name = name
        self.args = args
        self.ret = ret
        self.access = access
        self.program = program
        self.stream = stream
        self.priority = priority

    def __repr__(self) -> str:
        return f"<{self.name} {self.program:#x}:{self.number}>"


AnyProcedure = Procedure[Any, Any]
