"""The calls on images, and libvirt's calls with what libvirt cannot be asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from storaged.errors import InvalidArgument
from storaged.imagerecords import (
    change_of,
    clone_options,
    convert_options,
    inspection_record,
    report_record,
)
from storaged.rpc import images as rpc
from storaged.rpc.images import (
    RebaseFlag,
    VolAmendArgs,
    VolCheckArgs,
    VolCloneArgs,
    VolConvertArgs,
    VolCreateArgs,
    VolRebaseArgs,
    VolResizeArgs,
)
from storaged.service.handler import Begun, Handlers, Work, never, refuse_unknown
from storaged.service.records import volume_ref
from storaged.service.volumes import made
from storaged.wirenames import pool_ref

if TYPE_CHECKING:
    from storaged.service.session import Session

# Flags of libvirt's calls.
_PREALLOCATE: Final = 1
_REFLINK: Final = 2
_VALIDATE: Final = 4
_ALLOCATE: Final = 1
_DELTA: Final = 2
_SHRINK: Final = 4


def _check(session: Session, args: VolCheckArgs, force: bool) -> Begun:
    driver = session.driver
    job = driver.volume_check(volume_ref(driver, args.vol), force=force)
    return Begun(job, report_record)


def _inspect(session: Session, args: VolCheckArgs, _force: bool) -> Begun:
    driver = session.driver
    return Begun(driver.volume_inspect(volume_ref(driver, args.vol)), inspection_record)


def _rebase(session: Session, args: VolRebaseArgs, force: bool) -> Begun:
    refuse_unknown(args.flags, int(RebaseFlag.FORMAT_ONLY), "storagedVolRebase")
    driver = session.driver
    ref = volume_ref(driver, args.vol)
    if not args.flags:
        return Begun(driver.volume_rebase(ref, args.backing, args.format, force=force))
    if args.format is None or args.backing is not None:
        raise InvalidArgument("a format alone is what is recorded alone")
    return Begun(driver.volume_set_backing_format(ref, args.format, force=force))


def _amend(session: Session, args: VolAmendArgs, _force: bool) -> Begun:
    driver = session.driver
    return Begun(driver.volume_amend(volume_ref(driver, args.vol), change_of(args)))


def _convert(session: Session, args: VolConvertArgs, force: bool) -> Begun:
    driver = session.driver
    ref = volume_ref(driver, args.vol)
    return Begun(driver.volume_convert(ref, convert_options(args), force=force))


def _create(session: Session, args: VolCreateArgs, _force: bool) -> Begun:
    refuse_unknown(args.flags, _PREALLOCATE | _VALIDATE, "storagedVolCreate")
    driver, pool = session.driver, pool_ref(args.pool)
    driver.require_active(pool)
    request = driver.parse_volume(pool, args.xml, validate=bool(args.flags & _VALIDATE))
    job = driver.volume_create(
        pool,
        request,
        preallocate_metadata=bool(args.flags & _PREALLOCATE),
        secret=args.secret,
    )
    return Begun(job, made)


def _clone(session: Session, args: VolCloneArgs, _force: bool) -> Begun:
    refuse_unknown(args.flags, _PREALLOCATE | _REFLINK | _VALIDATE, "storagedVolClone")
    options = clone_options(args)
    driver, pool = session.driver, pool_ref(args.pool)
    source = volume_ref(driver, args.clonevol)
    driver.require_active(pool)
    validate = bool(args.flags & _VALIDATE)
    request = driver.parse_volume(pool, args.xml, clone=True, validate=validate)
    job = driver.volume_clone(
        pool,
        request,
        source,
        reflink=bool(args.flags & _REFLINK),
        preallocate_metadata=bool(args.flags & _PREALLOCATE),
        options=options,
    )
    return Begun(job, made)


def _resize(session: Session, args: VolResizeArgs, force: bool) -> Begun:
    refuse_unknown(args.flags, _ALLOCATE | _DELTA | _SHRINK, "storagedVolResize")
    driver = session.driver
    job = driver.volume_resize(
        volume_ref(driver, args.vol),
        args.capacity,
        allocate=bool(args.flags & _ALLOCATE),
        delta=bool(args.flags & _DELTA),
        shrink=bool(args.flags & _SHRINK),
        force=force,
        secret=args.secret,
    )
    return Begun(job)


HANDLERS: Final[Handlers] = {
    rpc.VOL_CHECK: Work(_check, never, bound=True),
    rpc.VOL_INSPECT: Work(_inspect, never, bound=True),
    rpc.VOL_REBASE: Work(_rebase, never),
    rpc.VOL_AMEND: Work(_amend, never),
    rpc.VOL_CONVERT: Work(_convert, never, bound=True),
    rpc.VOL_CREATE: Work(_create, never, bound=True),
    rpc.VOL_CLONE: Work(_clone, never, bound=True),
    rpc.VOL_RESIZE: Work(_resize, never),
}
