"""How procedures are served: what a handler is, and when it may run where nothing may wait.

A `Query` gives its answer, a `Work` begins a job of the driver and says how its result becomes the
answer. Modules declare tables of them, from which `Service` makes one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, NoReturn, TypeVar

from storaged.errors import BadArgument, Domain
from storaged.flow import Sink, Source
from storaged.job import Job, Pending
from storaged.rpc.program import AnyProcedure
from storaged.rpc.record import Record, Void

T = TypeVar("T")

#: Tells of a session and a call's arguments whether the call neither waits nor touches storage.
Ready = Callable[[Any, Any], bool]


@dataclass(frozen=True, slots=True)
class Opened:
    """What a successful upload or download is: exactly one of the two ends is there.

    Both may block, so they belong on a thread that may.

    :param sparse: the client knows holes.
    """

    sink: Sink | None = None
    source: Source | None = None
    sparse: bool = False


#: What a call comes to; what is pending gives the reply.
Outcome = Record | Pending[Any] | Opened


class Needs(Enum):
    """What must have happened on a connection; the value is libvirt's text where it has not."""

    NOTHING = ""
    OPEN = "hypervisor connection not open"
    STORAGE = "connection not open"


@dataclass(frozen=True, slots=True)
class Begun:
    """Work of the driver that has begun.

    :param answer: makes the reply of the job's result.
    """

    job: Job[Any]
    answer: Callable[[Any], Record] = lambda _result: Void()


@dataclass(frozen=True, slots=True)
class Query:
    """A procedure that answers by itself.

    :param call: takes the session and the arguments.
    :param check: what is looked at before anything else, also before rights.
    """

    call: Callable[[Any, Any], Outcome]
    ready: Ready
    needs: Needs = Needs.STORAGE
    check: Callable[[Any], None] | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """A procedure that begins a job.

    :param begin: takes the session, the arguments, and whether to go on although a virtual machine
        has the volume open.
    :param own: begins it in place of *begin* where it was asked for through storaged's own program,
        whose rules are the library's.
    :param bound: the job is cancelled when the connection ends of who began it.
    """

    begin: Callable[[Any, Any, bool], Begun]
    ready: Ready
    bound: bool = False
    needs: Needs = Needs.STORAGE
    check: Callable[[Any], None] | None = None
    own: Callable[[Any, Any, bool], Begun] | None = None


Handlers = Mapping[AnyProcedure, Query | Work]


def always(_session: Any, _args: Any) -> bool:
    """Tell that a procedure never waits."""
    return True


def never(_session: Any, _args: Any) -> bool:
    """Tell that a procedure may always wait."""
    return False


def refuse_unknown(flags: int, known: int, function: str, domain: Domain = Domain.STORAGE) -> None:
    """Raise libvirt's error for flags that a call does not know.

    :param function: libvirt's name of what serves the call.
    :param domain: the part of libvirt that this is.
    :raise BadArgument: there are some.
    """
    unknown = flags & ~known
    if unknown:
        text = f"unsupported flags (0x{unknown:x}) in function {function}"
        refuse_argument(text, function, "flags", domain)


def refuse_argument(text: str, function: str, argument: str, domain: Domain) -> NoReturn:
    """Raise libvirt's error for an argument that a call itself refuses.

    :raise BadArgument: always.
    """
    error = BadArgument(text, function=function, argument=argument)
    error.domain = domain
    raise error


class _Answer(Pending[Record]):
    """The reply that is made of a result to come."""

    def __init__(self, work: Pending[T], answer: Callable[[T], Record]) -> None:
        super().__init__(work.kind)
        self._work: Pending[Any] = work
        self._answer: Callable[[Any], Record] = answer
        work.on_end(self._take)

    def _take(self) -> None:
        try:
            self.finish(self._answer(self._work.result()))
        except BaseException as err:
            self.fail(err)


def answering(work: Pending[T], answer: Callable[[T], Record]) -> Pending[Record]:
    """Return what ends with the work, and whose result is the reply.

    The driver's job may be shared with others and keeps its own result.
    """
    return _Answer(work, answer)
