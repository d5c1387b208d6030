"""Storaged's own program: what libvirt has no call for. It stands on the same sockets.

`CALL` and `JOB_BEGIN` carry a call of the REMOTE program: the first to get errors with their class
and advice, the second to have it done as a job that can be followed and cancelled. With
`CallFlag.OWN` they carry one of this program. The rest is about jobs, problems, metrics, lists
without libvirt's bound of 16,384, definitions of secrets, and images (`storaged.rpc.images`).

Errors of this program carry the class in their first string, the detail in the second and the
advice in the third (`remoteerror.describe_fully`).
"""

from __future__ import annotations

from enum import IntFlag
from typing import Annotated, Final

from storaged.rpc import images
from storaged.rpc.packet import PAYLOAD_MAX
from storaged.rpc.program import EXTENSION, Access, AnyProcedure, Procedure
from storaged.rpc.record import Nested, Record, Secretive, Void
from storaged.rpc.remoteerror import RemoteError
from storaged.rpc.storage import StoragePool, StorageVol
from storaged.rpc.xdr import (
    STRING,
    UINT,
    Array,
    Int,
    Maybe,
    MaybeString,
    Opaque,
    Real,
    String,
    UHyper,
    UInt,
)

#: The most jobs, problems or metrics that a list carries.
LIST_MAX: Final = 65536
#: The most pools or volumes of one page.
PAGE_MAX: Final = 16384


class CallFlag(IntFlag):
    """How a call is to be done."""

    #: although a virtual machine has the volume open, or data of the guest are cut; or although the
    #: pool that is stopped is at work or does not answer (since level 3)
    FORCE = 1
    #: the job goes on when the connection ends
    DETACH = 2
    #: what is carried is a call of this program (since level 2)
    OWN = 4


class Hello(Record):
    """Who calls."""

    client: String


class HelloRet(Record):
    """Who answers.

    :param version: of storaged, such as ``0.3.0``.
    :param level: of this program; it grows with every procedure that is added.
    """

    version: String
    level: UInt


class CallArgs(Secretive):
    """A call within this one: its number and its packed arguments."""

    procedure: Int
    args: Annotated[bytes, Opaque(PAYLOAD_MAX)]
    flags: UInt = 0


class CallRet(Secretive):
    """What the call returned, packed."""

    ret: Annotated[bytes, Opaque(PAYLOAD_MAX)]


class JobId(Record):
    """Names a job; for `JOB_FOLLOW`, 0 is all."""

    id: UHyper


class JobFacts(Record):
    """A job at one moment. *done* and *total* in bytes; a *total* of 0 is "not known".

    :param state: running, done, failed or cancelled.
    :param elapsed: milliseconds since it began.
    """

    id: UHyper
    kind: String
    pool: String
    volume: MaybeString
    state: String
    done: UHyper
    total: UHyper
    elapsed: UHyper


class JobListRet(Record):
    """Jobs under way, the oldest first."""

    jobs: Annotated[tuple[JobFacts, ...], Array(Nested(JobFacts), LIST_MAX)]


class JobRet(Record):
    """A job."""

    job: JobFacts


class JobEnded(Record):
    """The end of a job that this connection began: with an error, or with what it returned."""

    job: JobFacts
    error: Annotated[RemoteError | None, Maybe(Nested(RemoteError))]
    ret: Annotated[bytes, Opaque(PAYLOAD_MAX)]


class Strings(Record):
    """Sentences for people."""

    strings: Annotated[tuple[str, ...], Array(STRING, LIST_MAX)]


class Metric(Record):
    """One figure.

    :param name: in the style of OpenMetrics, such as ``storaged_jobs_running``.
    :param pool: whom it is about, if about one pool.
    """

    name: String
    pool: MaybeString
    value: Real


class MetricsRet(Record):
    """Figures of the engine and the daemon."""

    metrics: Annotated[tuple[Metric, ...], Array(Nested(Metric), LIST_MAX)]


class PoolFacts(Record):
    """What is known of a pool, sizes in bytes."""

    pool: StoragePool
    type: String
    state: Int
    persistent: Int
    autostart: Int
    capacity: UHyper
    allocation: UHyper
    available: UHyper
    target: MaybeString
    problems: Annotated[tuple[str, ...], Array(STRING, LIST_MAX)]


class PoolListArgs(Record):
    """Which pools: the flags of libvirt's list."""

    flags: UInt = 0


class PoolListRet(Record):
    """Pools, sorted by name."""

    pools: Annotated[tuple[PoolFacts, ...], Array(Nested(PoolFacts), LIST_MAX)]


class PoolFactsArgs(Record):
    """A pool.

    :param flags: 1 has the figures read if nobody has yet, 2 also if they are known, with an error
        if the target is not what it was at the start.
    """

    pool: StoragePool
    flags: UInt = 0


class PoolFactsRet(Record):
    """A pool's facts."""

    facts: PoolFacts


class OutageFacts(Record):
    """A pool whose storage does not answer: since when (milliseconds since 1970), and why."""

    pool: StoragePool
    since: UHyper
    why: String


class OutagesRet(Record):
    """The pools whose storage does not answer."""

    outages: Annotated[tuple[OutageFacts, ...], Array(Nested(OutageFacts), LIST_MAX)]


class SecretListArgs(Record):
    """Which secrets: the flags of libvirt's list."""

    flags: UInt = 0


class SecretListRet(Record):
    """The XML of secrets."""

    documents: Annotated[tuple[str, ...], Array(STRING, PAGE_MAX)]


class VolFacts(Record):
    """What is known of a volume, sizes in bytes.

    :param data: how full it is, in hundredths of a percent; missing where nothing fills up.
    :param metadata: how full its metadata are, in the same way.
    """

    vol: StorageVol
    type: Int
    capacity: UHyper
    allocation: UHyper
    physical: UHyper
    format: MaybeString
    path: String
    problem: MaybeString
    building: Int
    data: Annotated[int | None, Maybe(UINT)] = None
    metadata: Annotated[int | None, Maybe(UINT)] = None


class VolPageArgs(Record):
    """A page of a pool's volumes: those whose names come after *after*, at most *count*."""

    pool: StoragePool
    after: MaybeString
    count: UInt = PAGE_MAX


class VolPageRet(Record):
    """Volumes sorted by name, and whether there are more."""

    vols: Annotated[tuple[VolFacts, ...], Array(Nested(VolFacts), PAGE_MAX)]
    more: Int


class VolFactsArgs(Record):
    """A volume."""

    vol: StorageVol


class VolFactsRet(Record):
    """A volume's facts, after one fresh look."""

    facts: VolFacts


class VolUsersRet(Record):
    """The volumes that need one, sorted by pool and name; at most so many as one message holds."""

    vols: Annotated[tuple[StorageVol, ...], Array(Nested(StorageVol), PAGE_MAX)]


class Policy(Record):
    """The defaults for new volumes of a pool; what is missing is left to libvirt's rules."""

    owner: Annotated[int | None, Maybe(UINT)]
    group: Annotated[int | None, Maybe(UINT)]
    mode: Annotated[int | None, Maybe(UINT)]
    thin_pool: MaybeString = None


class PolicyArgs(Record):
    """A pool."""

    pool: StoragePool


class PolicyRet(Record):
    """The defaults of a pool."""

    policy: Policy


class PolicySetArgs(Record):
    """A pool and its new defaults."""

    pool: StoragePool
    policy: Policy


_R: Final = Access.READER
_P: Final = EXTENSION

HELLO: Final = Procedure(1, "storagedHello", Hello, HelloRet, _R, program=_P)
CALL: Final = Procedure(2, "storagedCall", CallArgs, CallRet, _R, program=_P)
#: what is carried decides whether a read-only connection may
JOB_BEGIN: Final = Procedure(3, "storagedJobBegin", CallArgs, JobRet, _R, program=_P)
JOB_LIST: Final = Procedure(4, "storagedJobList", Void, JobListRet, _R, program=_P)
JOB_GET: Final = Procedure(5, "storagedJobGet", JobId, JobRet, _R, program=_P)
#: a read-only connection may cancel what it began
JOB_CANCEL: Final = Procedure(6, "storagedJobCancel", JobId, Void, _R, program=_P)
JOB_FOLLOW: Final = Procedure(7, "storagedJobFollow", JobId, Void, _R, program=_P)
JOB_UNFOLLOW: Final = Procedure(8, "storagedJobUnfollow", JobId, Void, _R, program=_P)
#: at most five times a second a job, and once at its end
EVENT_JOB_PROGRESS: Final = Procedure(
    9, "storagedEventJobProgress", JobRet, Void, Access.EVENT, program=_P
)
#: to who began the job
EVENT_JOB_ENDED: Final = Procedure(
    10, "storagedEventJobEnded", JobEnded, Void, Access.EVENT, program=_P
)
PROBLEMS: Final = Procedure(11, "storagedProblems", Void, Strings, _R, program=_P)
METRICS: Final = Procedure(12, "storagedMetrics", Void, MetricsRet, _R, program=_P)
POOL_LIST: Final = Procedure(13, "storagedPoolList", PoolListArgs, PoolListRet, _R, program=_P)
POOL_FACTS: Final = Procedure(14, "storagedPoolFacts", PoolFactsArgs, PoolFactsRet, _R, program=_P)
VOL_PAGE: Final = Procedure(15, "storagedVolPage", VolPageArgs, VolPageRet, _R, program=_P)
VOL_FACTS: Final = Procedure(16, "storagedVolFacts", VolFactsArgs, VolFactsRet, _R, program=_P)
POLICY_GET: Final = Procedure(17, "storagedPolicyGet", PolicyArgs, PolicyRet, _R, program=_P)
POLICY_SET: Final = Procedure(18, "storagedPolicySet", PolicySetArgs, Void, program=_P)
#: since level 2
VOL_USERS: Final = Procedure(27, "storagedVolUsers", VolFactsArgs, VolUsersRet, _R, program=_P)

#: since level 3
OUTAGES: Final = Procedure(28, "storagedOutages", Void, OutagesRet, _R, program=_P)
SECRET_LIST: Final = Procedure(
    29, "storagedSecretList", SecretListArgs, SecretListRet, _R, program=_P
)

#: What a daemon tells that has all of these: its level grows with every procedure.
LEVEL: Final = 3
#: From which level on the first of the procedures for images is there.
IMAGES_LEVEL: Final = 2
#: From which level on pools are stopped by force, and outages are told.
OUTAGES_LEVEL: Final = 3
#: From which level on the definitions of all secrets are told at once.
SECRETS_LEVEL: Final = 3

#: All procedures, by number.
PROCEDURES: Final[dict[int, AnyProcedure]] = {
    found.number: found
    for found in (*list(vars().values()), *images.PROCEDURES.values())
    if isinstance(found, Procedure)
}
