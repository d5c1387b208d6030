"""What libvirt has no call for: jobs, problems, metrics, lists without a bound."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from storaged.errors import InvalidArgument, NoSuchPool, Unsupported
from storaged.filters import PoolFilter
from storaged.job import Pending
from storaged.model import PoolInfo, PoolRef, PoolState, VolumeInfo
from storaged.rpc import extension as rpc
from storaged.rpc import images, remote
from storaged.rpc.errors import OperationDenied, RPCError
from storaged.rpc.extension import (
    CallArgs,
    CallFlag,
    CallRet,
    Hello,
    HelloRet,
    JobId,
    JobListRet,
    JobRet,
    Metric,
    MetricsRet,
    OutageFacts,
    OutagesRet,
    Policy,
    PolicyArgs,
    PolicyRet,
    PolicySetArgs,
    PoolFacts,
    PoolFactsArgs,
    PoolFactsRet,
    PoolListArgs,
    PoolListRet,
    Strings,
    VolFacts,
    VolFactsArgs,
    VolFactsRet,
    VolPageArgs,
    VolPageRet,
    VolUsersRet,
)
from storaged.rpc.program import Access, AnyProcedure
from storaged.rpc.record import Record, Void
from storaged.rpc.unserved import refusal
from storaged.service.handler import (
    Begun,
    Handlers,
    Needs,
    Outcome,
    Query,
    Work,
    always,
    answering,
    never,
    refuse_unknown,
)
from storaged.service.jobs import facts
from storaged.service.records import volume_ref
from storaged.settings import PoolPolicy
from storaged.version import VERSION
from storaged.wirenames import VOLUME_NUMBERS, pool_record, pool_ref, volume_record

if TYPE_CHECKING:
    from storaged.driver import Driver
    from storaged.service.session import Session

#: Flags of the facts of a pool.
_MEASURE: Final = 1
_REQUIRE_TARGET: Final = 2
_CALL_FLAGS: Final = int(sum(CallFlag))
_ALL_FILTERS: Final = int(sum(PoolFilter))


def _hello(_session: Session, _args: Hello) -> HelloRet:
    return HelloRet(VERSION, rpc.LEVEL)


# Calls within a call


def _call(session: Session, args: CallArgs) -> Outcome:
    procedure, inner, flags = _inner(args)
    handler = session.admit(procedure, inner)
    if isinstance(handler, Query):
        outcome = handler.call(session, inner)
        if isinstance(outcome, Record):
            return _packed(outcome)
        assert isinstance(outcome, Pending)  # noqa: S101 -- `_inner` lets no stream through
        return answering(outcome, _packed)
    begun = _begin(session, handler, inner, flags)
    return answering(begun.job, lambda result: _packed(begun.answer(result)))


def _packed(record: Record) -> CallRet:
    return CallRet(record.pack())


def _job_begin(session: Session, args: CallArgs) -> JobRet:
    procedure, inner, flags = _inner(args)
    handler = session.admit(procedure, inner)
    if not isinstance(handler, Work):
        raise Unsupported(f"{procedure.name} is not done as a job", advice="Call it without a job.")
    begun = _begin(session, handler, inner, flags)
    found = facts(begun.job.progress())
    session.jobs.announce(begun)
    return JobRet(found)


def _begin(session: Session, work: Work, args: Record, flags: CallFlag) -> Begun:
    return session.begin(
        work,
        args,
        own=True,
        force=bool(flags & CallFlag.FORCE),
        detach=bool(flags & CallFlag.DETACH),
    )


def _inner(args: CallArgs) -> tuple[AnyProcedure, Record, CallFlag]:
    """Return the call that a call carries.

    :raise StorageError: it is not served, or cannot be carried.
    """
    refuse_unknown(args.flags, _CALL_FLAGS, "storagedCall")
    procedure = _carried(args)
    if procedure is None and args.flags & CallFlag.OWN:
        raise RPCError(f"unknown procedure: {args.procedure}")
    if procedure is None or procedure.access is Access.EVENT:
        raise refusal(args.procedure)
    if procedure.stream or procedure.access is Access.ANYBODY or procedure is remote.CLOSE:
        raise Unsupported(f"{procedure.name} within another call")
    return procedure, procedure.args.unpack(args.args), CallFlag(args.flags)


def _carried(args: CallArgs) -> AnyProcedure | None:
    """Return the procedure that is to be called: of this program only what works on images."""
    table = images.PROCEDURES if args.flags & CallFlag.OWN else remote.PROCEDURES
    return table.get(args.procedure)


def _inner_ready(session: Session, args: CallArgs) -> bool:
    procedure = _carried(args)
    if procedure is None or len(args.args) > 4096:
        return False
    try:
        inner = procedure.args.unpack(args.args)
    except Exception:  # `call` says what is wrong
        return True
    return session.ready(procedure, inner)


# Jobs


def _job_list(session: Session, _args: Void) -> JobListRet:
    found = tuple(facts(job.progress()) for job in session.driver.jobs())
    return JobListRet(found[: rpc.LIST_MAX])


def _job_get(session: Session, args: JobId) -> JobRet:
    return JobRet(facts(session.jobs.find(args.id).progress()))


def _job_cancel(session: Session, args: JobId) -> Void:
    found = session.jobs.find(args.id)
    if session.readonly and not session.jobs.has_begun(args.id):
        raise OperationDenied(f"read only access prevents {rpc.JOB_CANCEL.name}")
    found.cancel()
    return Void()


def _job_follow(session: Session, args: JobId) -> Void:
    session.jobs.follow(args.id)
    return Void()


def _job_unfollow(session: Session, args: JobId) -> Void:
    session.jobs.unfollow(args.id)
    return Void()


# Problems and figures


def _problems(session: Session, _args: Void) -> Strings:
    return Strings(session.driver.problems()[: rpc.LIST_MAX])


def _metrics(session: Session, _args: Void) -> MetricsRet:
    found = (*_figures(session.driver), *session.shared.metrics())
    return MetricsRet(found[: rpc.LIST_MAX])


def _figures(driver: Driver) -> Iterator[Metric]:
    for kind, count in sorted(Counter(job.kind for job in driver.jobs()).items()):
        yield Metric(f'storaged_jobs_running{{kind="{kind}"}}', None, float(count))
    overviews = driver.overviews()
    states = Counter(overview.info.state for overview in overviews)
    for state in PoolState:
        name = f'storaged_pools{{state="{state.name.lower()}"}}'
        yield Metric(name, None, float(states[state]))
    for overview in overviews:
        name = overview.info.ref.name
        yield Metric("storaged_volumes_known", name, float(overview.volumes))
        yield Metric("storaged_workers_stuck", name, float(overview.stuck))
        yield Metric("storaged_pool_problems", name, float(len(overview.info.problems)))


# Pools


def _pool_list(session: Session, args: PoolListArgs) -> PoolListRet:
    refuse_unknown(args.flags, _ALL_FILTERS, "storagedPoolList")
    driver = session.driver
    refs = sorted(driver.pools(PoolFilter(args.flags)), key=lambda ref: ref.name)
    found = [one for ref in refs if (one := _facts_if_there(driver, ref)) is not None]
    return PoolListRet(tuple(found[: rpc.LIST_MAX]))


def _facts_if_there(driver: Driver, ref: PoolRef) -> PoolFacts | None:
    try:
        return _pool_facts(driver, ref, driver.pool_state(ref))
    except NoSuchPool:  # it has gone since it was listed
        return None


def _pool_facts_call(session: Session, args: PoolFactsArgs) -> PoolFactsRet:
    refuse_unknown(args.flags, _MEASURE | _REQUIRE_TARGET, "storagedPoolFacts")
    driver, ref = session.driver, pool_ref(args.pool)
    if args.flags & _REQUIRE_TARGET:
        driver.require_target(ref)
    info = driver.pool_info(ref) if args.flags else driver.pool_state(ref)
    return PoolFactsRet(_pool_facts(driver, ref, info))


def _pool_facts_ready(session: Session, args: PoolFactsArgs) -> bool:
    if args.flags & _REQUIRE_TARGET:
        return False
    return not args.flags or session.driver.known.figures(pool_ref(args.pool))


def _pool_facts(driver: Driver, ref: PoolRef, info: PoolInfo) -> PoolFacts:
    definition, space = driver.pool_definition(ref), info.space
    return PoolFacts(
        pool_record(info.ref),
        str(definition.type),
        int(info.state),
        int(info.persistent),
        int(info.autostart),
        space.capacity,
        space.allocation,
        space.available,
        definition.target,
        info.problems[: rpc.LIST_MAX],
    )


def _outages(session: Session, _args: Void) -> OutagesRet:
    infos = [overview.info for overview in session.driver.overviews()]
    found = [
        OutageFacts(pool_record(info.ref), int(info.outage.since * 1000), info.outage.why)
        for info in infos
        if info.outage is not None
    ]
    return OutagesRet(tuple(found[: rpc.LIST_MAX]))


# Volumes


def _vol_page(session: Session, args: VolPageArgs) -> VolPageRet:
    if not 0 < args.count <= rpc.PAGE_MAX:
        raise InvalidArgument(f"a page has 1 to {rpc.PAGE_MAX} volumes")
    infos, more = session.driver.volume_page(pool_ref(args.pool), args.after, args.count)
    return VolPageRet(tuple([_vol_facts(info) for info in infos]), int(more))


def _vol_facts_call(session: Session, args: VolFactsArgs) -> Pending[VolFactsRet]:
    driver = session.driver
    looked = driver.volume_info_job(volume_ref(driver, args.vol))
    return looked.giving(lambda info: VolFactsRet(_vol_facts(info)))


def _vol_users(session: Session, args: VolFactsArgs) -> VolUsersRet:
    driver = session.driver
    users = driver.volume_users(volume_ref(driver, args.vol))
    return VolUsersRet(tuple(volume_record(user) for user in users[: rpc.PAGE_MAX]))


def _users_known(session: Session, args: VolFactsArgs) -> bool:
    return _vol_known(session, args) and session.driver.known.all_scanned()


def _vol_known(session: Session, args: VolFactsArgs) -> bool:
    return session.driver.known.volume(args.vol.pool, args.vol.name)


def _vol_facts(info: VolumeInfo) -> VolFacts:
    return VolFacts(
        volume_record(info.ref),
        VOLUME_NUMBERS[info.type],
        info.capacity,
        info.allocation,
        info.physical,
        info.format,
        info.path,
        info.problem,
        int(info.building),
        _hundredths(info.data_percent),
        _hundredths(info.metadata_percent),
    )


def _hundredths(percent: float | None) -> int | None:
    return None if percent is None else round(percent * 100)


# Policies


def _policy_get(session: Session, args: PolicyArgs) -> PolicyRet:
    found = session.driver.pool_policy(pool_ref(args.pool))
    return PolicyRet(Policy(found.owner, found.group, found.mode, found.thin_pool))


def _policy_set(session: Session, args: PolicySetArgs) -> Void:
    given = args.policy
    policy = PoolPolicy(given.owner, given.group, given.mode, given.thin_pool)
    session.driver.pool_set_policy(pool_ref(args.pool), policy)
    return Void()


HANDLERS: Final[Handlers] = {
    rpc.HELLO: Query(_hello, always, Needs.NOTHING),
    rpc.CALL: Query(_call, _inner_ready),
    rpc.JOB_BEGIN: Query(_job_begin, _inner_ready),
    rpc.JOB_LIST: Query(_job_list, always),
    rpc.JOB_GET: Query(_job_get, always),
    rpc.JOB_CANCEL: Query(_job_cancel, always),
    rpc.JOB_FOLLOW: Query(_job_follow, always),
    rpc.JOB_UNFOLLOW: Query(_job_unfollow, always),
    rpc.PROBLEMS: Query(_problems, always),
    rpc.METRICS: Query(_metrics, never),
    rpc.POOL_LIST: Query(_pool_list, never),
    rpc.POOL_FACTS: Query(_pool_facts_call, _pool_facts_ready),
    rpc.OUTAGES: Query(_outages, always),
    rpc.VOL_PAGE: Query(_vol_page, never),
    rpc.VOL_FACTS: Query(_vol_facts_call, _vol_known),
    rpc.VOL_USERS: Query(_vol_users, _users_known),
    rpc.POLICY_GET: Query(_policy_get, never),
    rpc.POLICY_SET: Query(_policy_set, never),
}
